"""Every method, wrapper and writer takes real steps on SmolLM2-135M-Instruct: LoRA, bf16, sums of two one-digit numbers, one CPU core.

python benchmarks/real_model.py [--methods opsd hsd ...] [--steps 1]   prints the tables and renews its rows of benchmarks/out/real_model.json

The sums come from reasoning-gym; those that the base solves sometimes are kept, so that groups have something to compare. Methods with another
model as teacher are given the base after a few steps of SFT, merged. Rows named `... writes` let the model itself write rubrics, critiques,
judgements or skills, and count how many of its replies can be read. All rows begin with the same weights and the same seed.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from real_data import bank_file, base_folder, task, teacher_folder
from rich.console import Console
from rich.table import Table
from workload import measured_before, positive, processor, write

import selfdistill
from selfdistill.critics import ModelCritic
from selfdistill.judges import ModelJudge, likert
from selfdistill.method import Method
from selfdistill.method_names import build_method
from selfdistill.methods import METHODS, WRAPPERS, exprl, exprl_process, rcsd, sgsd, step_critique
from selfdistill.rubrics import ReferenceRubric, parse_rubric
from selfdistill.skills import WrittenLessons, items_in, whole_list_in
from selfdistill.steps import ClosedBy
from selfdistill.tools import Tools
from selfdistill.trainer import StepResult
from selfdistill.types import Message
from selfdistill.writers import Student, Writer

LONG, SHORT = 128, 64
"""Tokens of a written rubric or list of skills, and of a judgement or critique."""
OVER = "opsd"
"""What a wrapper is shown around unless NAMED says otherwise."""
NAMED = {"grpo_blend": "sdpo", "shuffled_context": "hsd", "shuffled_peers": "hsd", "constant_weight": "pw_opsd"}
EXTERNAL = ("opd", "gkd", "entropy_opd", "eopd", "topd")
WRITTEN = ("step_critique", "exprl", "exprl_process", "sgsd")
"""Methods whose default lets the model write; their rows are those of `written`."""


@dataclass(frozen=True)
class Recorded:
    """A writer whose replies are kept."""

    writer: Writer
    replies: list[str] = field(default_factory=list, compare=False, repr=False)

    def __call__(self, chats: Sequence[Sequence[Message]], tools: Tools) -> list[str]:
        said = self.writer(chats, tools)
        self.replies.extend(said)
        return said


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method with what it needs beside the common settings."""

    name: str
    method: Method
    settings: dict[str, Any] = field(default_factory=dict)
    writer: Recorded | None = None
    reads: Callable[[str], bool] = bool
    """Whether a reply of the writer can be read."""


def plain_rows(tokens: int) -> list[Row]:
    """Every method that stands alone and every wrapper around one, by the names that recipes give them."""
    alone = [f.__name__ for f in METHODS if f.__name__ not in WRITTEN]
    named = alone + [f"{w.__name__}({NAMED.get(w.__name__, OVER)})" for w in WRAPPERS]
    given: dict[str, dict[str, Any]] = {name: {"teacher": f"External({str(teacher_folder())!r})"} for name in EXTERNAL}
    given["sgsd"] = {"bank": str(bank_file())}
    # a share of the step's positions that is at least one probe each way, and short windows
    given["topd"] = given.get("topd", {}) | {"window": 8}
    more: dict[str, dict[str, Any]] = {"rcsd_writer": {"sampling": {"max_completion_length": LONG, "num_generations": 2}}}
    # the second model is the one that is the others' teacher
    more["opcod"] = {"peer": lora(teacher_folder())}
    rows = [Row(name=name, method=build_method(name, given.get(name, {}), max_completion_length=tokens), settings=more.get(name, {})) for name in named]
    return [*rows, Row(name="sgsd", method=build_method("sgsd", given["sgsd"], max_completion_length=tokens))]


def written_rows() -> list[Row]:
    """Methods whose texts the student itself writes, greedy."""
    rubrics, judge, process, critic, skills = (Recorded(Student(max_completion_length=n)) for n in (LONG, SHORT, SHORT, SHORT, LONG))
    return [
        Row(
            name="rcsd, writes rubrics",
            method=rcsd(rubrics=ReferenceRubric(rubrics)),
            writer=rubrics,
            reads=lambda t: parse_rubric(t) is not None,
        ),
        Row(name="step_critique, writes critiques", method=step_critique(critic=ModelCritic(critic)), writer=critic),
        Row(name="exprl, writes judgements", method=exprl(judge=ModelJudge(judge)), writer=judge, reads=_graded),
        Row(
            name="exprl_process, writes judgements",
            # this model's steps are sentences
            method=exprl_process(judge=ModelJudge(process), steps=ClosedBy(".")),
            writer=process,
            reads=_graded,
        ),
        Row(
            name="sgsd, writes skills",
            method=sgsd(extractor=WrittenLessons(skills), cold_start=8),
            writer=skills,
            reads=lambda t: bool(items_in(t) or whole_list_in(t, "skills") or whole_list_in(t, "mistakes")),
        ),
    ]


def _is_rubric(text: str) -> bool:
    return parse_rubric(text) is not None


def _graded(text: str) -> bool:
    return likert(text) is not None


def lora(folder: Path) -> dict[str, Any]:
    return {"path": str(folder), "dtype": "bfloat16", "device": "cpu", "lora": {"r": 16, "alpha": 32}}


def settings(a: argparse.Namespace) -> dict[str, Any]:
    """What all rows share."""
    return {
        "model": lora(base_folder()),
        "dataset": task(),
        "steps": a.steps,
        "seed": a.seed,
        "prompts_per_step": a.prompts,
        "sampling": {"num_generations": a.generations, "max_completion_length": a.tokens, "temperature": 0.7},
        "optimizer": {"lr": 1e-4},
    }


def measure(row: Row, common: dict[str, Any]) -> dict[str, Any]:
    """What the row's steps did; an error in its own words."""
    given = common | {k: v for k, v in row.settings.items() if k != "sampling"}
    given |= {"sampling": common["sampling"] | row.settings.get("sampling", {})}
    start = time.perf_counter()
    try:
        train = selfdistill.train_pair if "peer" in given else selfdistill.train
        results = [pair[0] if isinstance(pair, tuple) else pair for pair in train(method=row.method, **given)]
    except Exception as error:  # whatever a method raises is what this program is here to find
        return {"error": f"{type(error).__name__}: {error}", "wall": time.perf_counter() - start}
    figures = _figures(results) | {"wall": time.perf_counter() - start}
    if row.writer:
        said = row.writer.replies
        figures |= {"replies": len(said), "read": sum(map(row.reads, said)), "example": said[-1] if said else ""}
    return figures


def _figures(results: Sequence[StepResult]) -> dict[str, Any]:
    last = results[-1].metrics
    weights = all(bool(torch.isfinite(p).all()) for p in results[-1].policy.parameters() if p.requires_grad)
    numbers = all(math.isfinite(v) for r in results for v in r.metrics.values())
    return {
        "loss": [r.metrics.get("loss", 0.0) for r in results],
        "grad_norm": [r.metrics.get("grad_norm", 0.0) for r in results],
        "divergence": statistics.mean(r.metrics.get("divergence", 0.0) for r in results),
        "taught_share": statistics.mean(r.metrics["taught_share"] for r in results),
        "ungraded_share": statistics.mean(r.metrics["ungraded_share"] for r in results),
        "reward": statistics.mean(r.metrics.get("reward", 0.0) for r in results),
        "seconds": statistics.mean(sum(r.seconds.values()) for r in results),
        "rollouts": len([r for g in results[-1].groups for r in g.rollouts]),
        "mean_length": statistics.mean(r.metrics["mean_length"] for r in results),
        "finite": weights and numbers and not any(r.metrics.get("skipped_updates") for r in results),
        "metrics": last,
    }


def show(found: dict[str, dict[str, Any]], steps: int) -> None:
    """Both tables."""
    console = Console(width=150)
    table = Table(title=f"SmolLM2-135M-Instruct, LoRA, bf16: {steps} step(s); seconds, shares and the divergence are means over them")
    for column in ("method", "rollouts", "loss", "grad norm", "divergence", "taught", "reward", "s a step", "finite"):
        table.add_column(column)
    for name, m in found.items():
        if "error" in m:
            table.add_row(name, m["error"])
            continue
        both = (", ".join(f"{x:.3f}" for x in m[key]) for key in ("loss", "grad_norm"))
        shares = (f"{m[key]:.2f}" for key in ("taught_share", "reward"))
        divergence = f"{m['divergence']:.3f}" if m["divergence"] else ""
        table.add_row(name, str(m["rollouts"]), *both, divergence, *shares, f"{m['seconds']:.1f}", "yes" if m["finite"] else "NO")
    console.print(table)
    replies = Table(title="What the model wrote of its own accord, greedy")
    for column in ("method", "replies", "can be read", "one of them"):
        replies.add_column(column)
    for name, m in found.items():
        if "replies" in m:
            replies.add_row(name, str(m["replies"]), str(m["read"]), " ".join(m["example"].split())[:90])
    console.print(replies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"prompts": 2, "generations": 4, "tokens": 32, "steps": 1, "seed": 2}.items():
        parser.add_argument(f"--{name}", type=int if name == "seed" else positive, default=value)
    parser.add_argument("--methods", nargs="+", default=[], help="names of rows; none: all")
    a = parser.parse_args()
    rows = [*plain_rows(a.tokens), *written_rows()]
    # in the order in which they are asked for
    chosen = [row for name in a.methods for row in rows if row.name == name] if a.methods else rows
    common, found = settings(a), {}
    start = time.perf_counter()
    for row in chosen:
        found[row.name] = measure(row, common)
        _renew(found, machine(a, start))
        print(row.name, {k: v for k, v in found[row.name].items() if k not in ("metrics", "example")}, flush=True)
    show(found, a.steps)
    seconds = time.perf_counter() - start
    print(f"{len(found)} rows, {sum('error' in m for m in found.values())} of them stopped by an error, {seconds:.0f} s")


def machine(a: argparse.Namespace, start: float) -> dict[str, Any]:
    return {"processor": processor(), "threads": torch.get_num_threads(), "seconds": time.perf_counter() - start, **vars(a)}


def _renew(found: dict[str, dict[str, Any]], about: dict[str, Any]) -> None:
    """The rows measured now in place of older ones; those that were not measured stay."""
    write("real_model", {"machine": about, "rows": measured_before("real_model").get("rows", {}) | found})


if __name__ == "__main__":
    main()
