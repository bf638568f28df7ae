"""How the cost of learning grows: seconds and peak memory against trained tokens, vocabulary, teachers, context length and group size.

python benchmarks/growth.py [--device cuda] [--axes tokens vocabulary ...]
prints a table an axis, writes benchmarks/out/growth.json after every point, then growth.svg and growth_AXIS.svg

Each point is, on a CPU, a process of its own: a random Qwen3, rollouts and teacher prompts of equal length, and whole `Trainer.learn` steps (every reading,
forward, backward and optimizer step), of which the first is not counted and the last is not timed. Seconds are the process's own on a CPU (one thread, so that
the machine's other work does not count), of the clock on an accelerator; the fewest of the timed steps. Memory is the last step's peak above weights,
gradients, teacher copy and optimizer state.
"""

import argparse
import gc
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import matplotlib
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import linregress
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from workload import OUT, TINY, Meter, Problems, device_here, measured_before, measured_on, write

from selfdistill.config import make_settings
from selfdistill.method import Method
from selfdistill.models import Policy
from selfdistill.sampling.transformers import TransformersSampler
from selfdistill.trainer import Trainer
from selfdistill.types import Group, Problem, Rollout, Teaching, View

matplotlib.use("Agg")
from matplotlib import pyplot as plt

matplotlib.rcParams["svg.fonttype"] = "none"

SIZES = {
    "cpu": {
        **{"hidden": 128, "layers": 2, "vocabulary": 4096, "prompt": 64, "completion": 64},
        **{"prompts": 4, "group": 4, "teachers": 1, "budget": 4096, "frozen": 0},
    },
    "cuda": {
        **{"hidden": 1024, "layers": 8, "vocabulary": 32768, "prompt": 256, "completion": 512},
        **{"prompts": 4, "group": 8, "teachers": 1, "budget": 32768, "frozen": 0},
    },
}
"""Where every axis begins; `budget` is tokens_per_batch, frozen: whether the words' vectors, which are the head, are not trained."""
AXES: dict[str, dict[str, tuple[str, tuple[int, ...], dict[str, int]]]] = {
    "cpu": {
        "tokens": ("prompts", (4, 8, 16, 32), {}),
        "vocabulary": ("vocabulary", (16384, 32768, 65536, 131072), {}),
        "frozen": ("vocabulary", (16384, 32768, 65536, 131072), {"frozen": 1}),
        "teachers": ("teachers", (1, 2, 4, 8), {}),
        "context": ("prompt", (128, 256, 512, 1024, 2048), {"completion": 32, "prompts": 2, "budget": 8192}),
        "group": ("group", (4, 8, 16, 32), {"prompts": 2}),
    },
    "cuda": {
        "tokens": ("prompts", (4, 16, 64), {}),
        "vocabulary": ("vocabulary", (16384, 65536, 262144), {}),
        "frozen": ("vocabulary", (16384, 65536, 262144), {"frozen": 1}),
        "teachers": ("teachers", (1, 3, 8), {}),
        "context": ("prompt", (512, 2048, 8192), {"completion": 256, "prompts": 2}),
        "group": ("group", (4, 16, 64), {"prompts": 2}),
    },
}
"""What is turned, through which values, and what is held otherwise than at the beginning."""
LABELS = {
    "tokens": "trained tokens a step",
    "vocabulary": "words in the vocabulary",
    "frozen": "words, head frozen",
    "teachers": "teachers of a rollout",
    "context": "tokens of every prompt",
    "group": "rollouts a prompt",
}
STEPS, ENOUGH = 2, 3.0
"""Steps that are counted, fewer where they have taken so many seconds."""
JOBS = 2
"""Processes at once on a CPU."""
console = Console(width=120)


@dataclass(frozen=True)
class Teachers:
    """K teachers whose prompts are as long as the student's and differ in their words."""

    count: int
    prompt: int

    def __call__(self, rollout: Rollout, group: Group) -> list[Teaching]:
        return [Teaching(views={"teacher": View(messages=(), prompt_ids=(k + 1,) * self.prompt)}) for k in range(self.count)]


def make_trainer(size: Mapping[str, int], device: str) -> Trainer:
    """A random Qwen3 of that size, taught by its frozen copy; bf16 under fp32 weights on an accelerator."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=size["vocabulary"],
        hidden_size=size["hidden"],
        intermediate_size=3 * size["hidden"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["hidden"] // 64,
        num_key_value_heads=max(size["hidden"] // 128, 1),
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=16384,
    )
    with torch.device(device):
        model = Qwen3ForCausalLM._from_config(config, attn_implementation="sdpa")
    model.get_input_embeddings().requires_grad_(not size["frozen"])
    policy = Policy(model, AutoTokenizer.from_pretrained(TINY), autocast=torch.bfloat16 if device == "cuda" else None).to(device)
    # every row of the head is a word here, whatever the tokenizer knows
    policy.vocab_size = size["vocabulary"]
    settings = {"steps": STEPS + 2, "tokens_per_batch": size["budget"], "optimizer": {"lr": 1e-6}}
    return Trainer(
        policy=policy,
        method=Method(context=Teachers(size["teachers"], size["prompt"])),
        problems=[Problem(prompt="", answer="")],
        sampler=TransformersSampler(policy=policy, max_completion_length=1),
        grade=lambda groups: None,
        task=Problems(1),
        settings=make_settings(settings, {}),
    )


def make_groups(size: Mapping[str, int]) -> list[Group]:
    """Random rollouts, all of one length."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(0, size["vocabulary"], (count,), generator=generator).tolist()

    groups = []
    for _ in range(size["prompts"]):
        prompt, logp = ids(size["prompt"]), [-1.0] * size["completion"]
        written = [ids(size["completion"]) for _ in range(size["group"])]
        rollouts = [Rollout(prompt_ids=prompt, completion_ids=c, behavior_logp=logp, text="", index=i, reward=1.0) for i, c in enumerate(written)]
        groups.append(Group(problem=Problem(prompt="", answer=""), rollouts=rollouts))
    return groups


def measure(size: Mapping[str, int], device: str) -> dict[str, float]:
    """Seconds and MiB of a step of that size."""
    torch.set_num_threads(1)
    clock = time.perf_counter if device == "cuda" else time.process_time
    trainer, groups, meter = make_trainer(size, device), make_groups(size), Meter(device)
    gradients = sum(p.numel() * p.element_size() for p in trainer.parameters) / 2**20
    seconds = []
    trainer.learn(groups)
    while len(seconds) < STEPS and sum(seconds) < ENOUGH:
        start = clock()
        trainer.learn(groups)
        seconds.append(clock() - start)
    # a step of its own: on a CPU being measured takes time
    meter.start()
    trainer.learn(groups)
    return {"seconds": min(seconds), "mib": meter.stop() - gradients, "trained_tokens": size["prompts"] * size["group"] * size["completion"]}


def measure_all(sizes: Sequence[Mapping[str, int]], device: str) -> Iterator[dict[str, float] | None]:
    """`measure` of each, None where it fails. On a CPU two at once, each in a process whose memory nobody used before."""
    if device == "cuda":
        yield from map(_allocated, sizes)
        return
    # forked from the only thread, so that libraries need not be imported anew
    context = multiprocessing.get_context("fork")
    for first in range(0, len(sizes), JOBS):
        started = []
        for size in sizes[first : first + JOBS]:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_send, args=(sender, size, device))
            process.start()
            sender.close()
            started.append((process, receiver))
        for pair in started:
            yield _received(*pair)


def _send(sender: Connection, size: Mapping[str, int], device: str) -> None:
    sender.send(measure(size, device))


def _received(process: multiprocessing.process.BaseProcess, receiver: Connection) -> dict[str, float] | None:
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.join()


def _allocated(size: Mapping[str, int]) -> dict[str, float] | None:
    """An accelerator's allocations are counted anew each time, so one process does."""
    try:
        return measure(size, "cuda")
    except torch.OutOfMemoryError as error:
        console.print(f"  {dict(size)}: {str(error).splitlines()[0]}")
        return None
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def grow(axis: str, device: str) -> Iterator[dict[str, Any]]:
    """The points of an axis so far, after each, and how many failed."""
    name, values, fixed = AXES[device][axis]
    sizes, points, failed = [SIZES[device] | fixed | {name: value} for value in values], [], 0
    for size, found in zip(sizes, measure_all(sizes, device), strict=True):
        failed += found is None
        points += [{"size": size, "x": found["trained_tokens"] if axis == "tokens" else size[name], **found}] if found else []
        yield {"points": points, "fits": fit(points), "failed": failed}


def fit(points: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The exponents of seconds and MiB, by least squares of their logarithms."""
    fits = {}
    for what in ("seconds", "mib"):
        x, y = ([p[key] for p in points] for key in ("x", what))
        if len(points) > 2:
            (exponent, _, _, _, error), (slope, intercept, r, _, _) = linregress([log(v) for v in x], [log(v) for v in y]), linregress(x, y)
            fits[what] = {"exponent": exponent, "error": error, "slope": slope, "intercept": intercept, "r2": r**2}
    return fits


def show(axis: str, found: Mapping[str, Any]) -> None:
    table = Table(LABELS[axis], "seconds", "peak, MiB", title_justify="left")
    for p in found["points"]:
        table.add_row(f"{p['x']:,}", f"{p['seconds']:.3f}", f"{p['mib']:,.0f}")
    console.print(table)
    for what, fit in found["fits"].items():
        console.print(
            f"  {what} ~ {axis}^{fit['exponent']:.2f} (± {fit['error']:.2f}); as a line {fit['intercept']:.3g} + {fit['slope']:.3g} x, R² {fit['r2']:.4f}"
        )
    if found["failed"]:
        console.print(f"  {found['failed']} points failed")


def draw(results: Mapping[str, Mapping[str, Any]], picture: Path, *, title: str) -> None:
    """Seconds above, memory below, a column an axis; both axes logarithmic."""
    figure, panels = plt.subplots(2, len(results), figsize=(0.4 + 2.5 * len(results), 4.6), layout="constrained", squeeze=False)
    for column, (axis, found) in zip(panels.T, results.items(), strict=True):
        x = [p["x"] for p in found["points"]]
        for panel, what, unit in zip(column, ("seconds", "mib"), ("seconds a step", "peak, MiB"), strict=True):
            y = [p[what] for p in found["points"]]
            panel.plot(x, y, marker="o", markersize=4)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log", base=2)
            panel.set_ylim(min(y) / 1.5, max(max(y), 8 * min(y)) * 1.5)
            panel.xaxis.set_major_formatter(lambda v, _: f"{v / 1024:g}k" if v >= 1024 else f"{v:g}")
            panel.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
            panel.grid(alpha=0.3)
            if what in found["fits"]:
                panel.set_title(f"exponent {found['fits'][what]['exponent']:.2f}", fontsize=9)
            if axis == next(iter(results)):
                panel.set_ylabel(unit)
        column[1].set_xlabel(LABELS[axis])
    figure.suptitle(title, fontsize=10)
    figure.savefig(picture)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=device_here, default="cpu", choices=tuple(AXES))
    parser.add_argument("--axes", nargs="+", default=list(LABELS), choices=tuple(LABELS))
    a = parser.parse_args(arguments)
    torch.set_num_threads(1)
    machine = measured_on(a.device, device=a.device, torch=torch.__version__)
    results = measured_before("growth", machine=machine, begins=SIZES[a.device]).get("axes", {})
    title = f"learning, {a.device}, torch {torch.__version__}"
    for axis in a.axes:
        found: dict[str, Any] = {}
        for found in grow(axis, a.device):
            if found["points"]:
                results[axis] = found
                # written as it goes, so that a run that is cut off leaves what it has
                write("growth", {"machine": machine, "begins": SIZES[a.device], "axes": results})
        show(axis, found)
        if found["points"]:
            draw({axis: found}, OUT / f"growth_{axis}.svg", title=title)
    if results:
        draw({axis: results[axis] for axis in LABELS if axis in results}, OUT / "growth.svg", title=title)
        console.print(f"wrote {OUT / 'growth.json'} and {OUT / 'growth.svg'}")


if __name__ == "__main__":
    main()
