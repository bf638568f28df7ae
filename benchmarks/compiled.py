"""Whether torch.compile pays within a run: passes of a model forward and back with and without it, what compiling took, and after how many it is won back.

python benchmarks/compiled.py [--device cuda --dtype bfloat16] [--models tiny qwen3-0.6b]   prints a table and writes benchmarks/out/compiled.json

Rows are as wide as those of a training step, each width another, so that the compiler makes one dynamic form. Both ways run the policy's own model: without
compiling its layers take the forms of selfdistill.kernels, of which products and rotary positions are left to the compiler's own.
"""

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from workload import RANDOM, device_here, measured_before, measured_on, model_folder, positive, write

from selfdistill.loading import load_policy

ROWS = {"cpu": ((32, 88), (32, 96), (24, 112), (40, 72), (28, 104)), "cuda": ((16, 1024), (16, 896), (12, 1152), (20, 768), (14, 960))}
"""Rows and columns of the passes of one round."""
console = Console(width=120)


def rounds(backbone: nn.Module, ids: list[torch.Tensor], count: int) -> list[float]:
    """Seconds of each round of passes forward and back."""
    found = []
    for _ in range(count):
        start = time.perf_counter()
        for rows in ids:
            backbone(rows, use_cache=False).last_hidden_state.float().square().mean().backward()
            backbone.zero_grad()
        if ids[0].is_cuda:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return found


def measure(model: str, arguments: argparse.Namespace) -> dict[str, float | None]:
    """Medians of a round, the first two rounds' seconds above them, and the rounds after which compiling has saved as much; None where it saves nothing."""
    torch.manual_seed(0)
    torch.compiler.reset()
    policy = load_policy(str(model_folder(model)), device=arguments.device, dtype=arguments.dtype).train()
    ids = [torch.randint(0, policy.vocab_size, shape, device=arguments.device) for shape in ROWS[arguments.device]]
    backbone = policy.base.base_model
    with policy.autocast():
        rounds(backbone, ids, 1)
        compiled = torch.compile(backbone, dynamic=True)
        first = rounds(compiled, ids, 2)
        # in turns, so that a machine that slows down slows both
        pairs = [(rounds(backbone, ids, 1)[0], rounds(compiled, ids, 1)[0]) for _ in range(arguments.repeats)]
    plain, fast = (statistics.median(column) for column in zip(*pairs, strict=True))
    compiling = sum(first) - 2 * fast
    return {"plain_s": plain, "compiled_s": fast, "compiling_s": compiling, "rounds_to_win_back": compiling / (plain - fast) if plain > fast else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=device_here, default="cpu", choices=tuple(ROWS))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--models", nargs="+", default=["tiny"], choices=("tiny", "smollm2-135m", *RANDOM))
    parser.add_argument("--repeats", type=positive, default=5)
    arguments = parser.parse_args()
    about = {"device": arguments.device, "dtype": arguments.dtype, "threads": torch.get_num_threads(), "torch": torch.__version__}
    machine = measured_on(arguments.device, **about)
    results = measured_before("compiled", machine=machine).get("models", {})
    table = Table("model", "a round, s", "compiled, s", "plain / compiled", "compiling, s", "won back after rounds")
    for model in arguments.models:
        results[model] = found = measure(model, arguments)
        ratio = found["plain_s"] / found["compiled_s"]
        table.add_row(
            model,
            f"{found['plain_s']:.3f}",
            f"{found['compiled_s']:.3f}",
            f"{ratio:.2f}",
            f"{found['compiling_s']:.1f}",
            "never" if found["rounds_to_win_back"] is None else f"{found['rounds_to_win_back']:,.0f}",
        )
        write("compiled", {"machine": machine, "models": results})
    console.print(table)


if __name__ == "__main__":
    main()
