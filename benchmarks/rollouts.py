"""What rollouts cost: the sampler's loop beside transformers' `generate`, static and dynamic cache, on the same prompts, in turns in one process.

python benchmarks/rollouts.py [--models tiny mixed wide smollm2-135m qwen3-0.6b] [--threads 1] [--repeats 5] [--device cuda]
prints the table and writes benchmarks/out/rollouts.json after every model

`generate` is called with the very distribution and the very ends, and records no log-probs; the loop returns them. tiny: the shipped base
on the testbed, whose completions are nearly of one length. mixed: the same with 2 to 8 operations, so that prompts and completions are ragged.
wide, qwen3-0.6b: random weights under 49,152 and 151,936 words of which 1 in 48 ends a completion, so lengths are
geometric. fp32, or on an accelerator --dtype bfloat16: weights and products in it, for both sides.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from transformers import GenerationConfig
from workload import RANDOM, device_here, measured_before, measured_on, model_folder, positive, write

from selfdistill.chat import special_id
from selfdistill.contexts import student_messages
from selfdistill.loading import load_policy
from selfdistill.models import Policy
from selfdistill.sampling import loop
from selfdistill.sampling.choosing import Choice
from selfdistill.sampling.transformers import stop_ids
from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.teachers import evaluating

SIDES = ("ours", "static", "dynamic")
SHAPES = {"tiny": (16, 8, 112), "mixed": (16, 8, 112), "wide": (8, 8, 128), "smollm2-135m": (4, 8, 64), "qwen3-0.6b": (8, 16, 512)}
"""Prompts, completions of each, tokens of one at most."""
ENDING = 48
"""One word in so many of a random model's ends a completion."""
console = Console(width=140)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Prompts sorted by length, as the sampler sorts them, and what ends a completion."""

    policy: Policy
    prompts: Sequence[list[int]]
    limit: int
    stops: Sequence[int]


def work(name: str, device: str, dtype: str) -> Work:
    prompts, generations, limit = SHAPES[name]
    policy = load_policy(str(model_folder("tiny" if name == "mixed" else name)), device=device)
    policy.base.to(getattr(torch, dtype))
    operations = [2 + i % 7 for i in range(prompts)] if name == "mixed" else [5] * prompts
    rows = [Arithmetic(operations=n, num_train=i + 1, num_test=1).problems("train")[i] for i, n in enumerate(operations)]
    ids = sorted((policy.chat.encode(student_messages(p), None) for p in rows for _ in range(generations)), key=len)
    stops = stop_ids(policy)
    return Work(policy=policy, prompts=ids, limit=limit, stops=[*range(0, policy.vocab_size, ENDING)] if name in RANDOM else stops)


def ours(w: Work) -> list[int]:
    """Lengths of the completions."""
    return [len(line.ids) for line in loop.write(w.policy, w.prompts, choice=Choice(), limit=w.limit, stops=w.stops)]


def theirs(w: Work, cache: str) -> list[int]:
    """Lengths of the completions by `generate` from the same distribution."""
    width, base = max(map(len, w.prompts)), w.policy.base
    pad = special_id(w.policy.tokenizer, "pad")
    pad = w.stops[0] if pad is None else pad
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in w.prompts], device=w.policy.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in w.prompts], device=w.policy.device)
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        with evaluating(w.policy), w.policy.autocast():
            out = base.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                max_new_tokens=w.limit,
                cache_implementation=cache,
                eos_token_id=list(w.stops),
                pad_token_id=pad,
            )
    finally:
        base.generation_config = own
    ends = frozenset(w.stops)
    return [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in out[:, width:].tolist()]


def timed(side: str, w: Work, seed: int) -> dict[str, float]:
    write: Callable[[Work], list[int]] = ours if side == "ours" else lambda w: theirs(w, side)
    torch.manual_seed(seed)
    if w.policy.device.type == "cuda":
        torch.cuda.synchronize()
    start, busy = time.perf_counter(), time.process_time()
    lengths = write(w)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    return {"seconds": seconds, "cpu_seconds": busy, "tokens": sum(lengths), "longest": max(lengths), "mean": statistics.mean(lengths)}


def measure(name: str, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians over repeats, each side once in every one of them, after a warm-up; ratios are medians of those within a repeat."""
    w = work(name, arguments.device, arguments.dtype)
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for repeat in range(arguments.repeats + 1):
        for side in SIDES:
            run = timed(side, w, repeat)
            if repeat:
                found[side].append(run | {"rate": run["tokens"] / run["seconds"], "cpu_rate": run["tokens"] / run["cpu_seconds"]})
    result = {side: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for side, runs in found.items()}
    for side in SIDES[1:]:
        for key, rate in (("ratio", "rate"), ("cpu_ratio", "cpu_rate")):
            result[side][key] = statistics.median(a[rate] / b[rate] for a, b in zip(found["ours"], found[side], strict=True))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "mixed", "wide"], choices=tuple(SHAPES))
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--device", type=device_here, default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = measured_on(arguments.device, cpus=os.cpu_count(), **{key: getattr(arguments, key) for key in ("threads", "device", "dtype")})
    results = measured_before("rollouts", machine=machine).get("results", {})
    table = Table("model", "side", "tokens (longest, mean)", "seconds", "tokens/s", "ours / it", "ours / it, by CPU seconds")
    for name in arguments.models:
        results[name] = measure(name, arguments)
        for side, r in results[name].items():
            ratios = [f"{r[key]:.2f}" if key in r else "" for key in ("ratio", "cpu_ratio")]
            lengths = f"{r['tokens']:,.0f} ({r['longest']:.0f}, {r['mean']:.0f})"
            table.add_row(name, side, lengths, f"{r['seconds']:.2f}", f"{r['rate']:,.0f}", *ratios)
        path = write("rollouts", {"machine": machine, "shapes": SHAPES, "repeats": arguments.repeats, "results": results})
    console.print(table)
    console.print(f"wrote {path}")


if __name__ == "__main__":
    main()
