"""What a step of each method costs over one of GRPO, on the same rollouts of the shipped base.

python benchmarks/methods.py [--repeats 7] [--methods opsd hsd ...]   prints the table and writes benchmarks/out/methods.json

The rollouts are sampled and graded once; every method then learns from them with a trainer of its own, in turns, so that the
machine's moods meet all alike. Seconds are medians. Methods whose source writes other rollouts (sft, dapo, ccopd, ...) are left out.
"""

import argparse
import copy
import json
import platform
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from selfdistill.api import assemble
from selfdistill.config import make_settings
from selfdistill.method_names import build_method
from selfdistill.sources import OnPolicy, Request
from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.teachers import External, Frozen
from selfdistill.trainer import Trainer
from selfdistill.types import Group

OUT = Path(__file__).parent / "out"
FIRST = "grpo"
ARGUMENTS: dict[str, dict[str, Any]] = {
    "step_critique": {"critic": "TaskChecker()"},
    "exprl": {"judge": "StepJudge()"},
    "exprl_process": {"judge": "StepJudge()", "steps": "ClosedBy(';')"},
    "sgsd": {"extractor": "TaskLessons()", "cold_start": 32},
}
"""The testbed's own critics and judges, since the tiny base writes no judgements."""
METHODS = (
    *("grpo", "rlsd", "exprl", "exprl_process", "opd", "gkd", "entropy_opd", "eopd", "opsd", "pw_opsd", "purified_opsd", "rcsd", "step_critique"),
    *("sdft", "sdpo", "sdpo_trust_region", "hsd", "grpo_plus(hsd)", "sgsd", "topd_self"),
)


@dataclass(frozen=True)
class Fixed:
    """A source that hands out copies of the same groups."""

    groups: tuple[Group, ...]

    def __call__(self, request: Request) -> list[Group]:
        return copy.deepcopy(list(self.groups))


def trainer(name: str, groups: tuple[Group, ...], prompts: int, generations: int) -> Trainer:
    """A trainer of the method on those groups; an external teacher is the frozen base."""
    method = build_method(name, ARGUMENTS.get(name, {}), max_completion_length=112)
    method = replace(method, teacher=Frozen()) if isinstance(method.teacher, External) else method
    settings = {"prompts_per_step": prompts, "tokens_per_batch": 65536, "sampling": {"num_generations": generations, "max_completion_length": 112}}
    parts = assemble(make_settings({"steps": 10**6, **settings}, {}), method=replace(method, source=Fixed(groups)), task=Arithmetic())
    return parts.trainer


def rollouts(prompts: int, generations: int) -> tuple[tuple[Group, ...], float]:
    """Graded groups of the base and the seconds that sampling them took."""
    settings = {"prompts_per_step": prompts, "sampling": {"num_generations": generations, "max_completion_length": 112}}
    parts = assemble(make_settings(settings, {}), method=build_method(FIRST, {}, max_completion_length=112), task=Arithmetic())
    assert parts.method.source == OnPolicy()
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        groups = parts.sampler.sample(parts.trainer.stream.problems[:prompts], generations)
        seconds.append(time.perf_counter() - start)
    parts.trainer.grade(groups)
    return tuple(groups), min(seconds)


def measure(names: list[str], *, prompts: int, generations: int, repeats: int) -> dict[str, dict[str, float]]:
    """By method: seconds of annotating, of learning, and tokens that its teachers and its student read."""
    groups, sampling = rollouts(prompts, generations)
    trainers = {name: trainer(name, groups, prompts, generations) for name in names}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name, own in trainers.items():
            result = own.step()
            learning = sum(result.seconds[phase] for phase in ("teach", "pack", "score", "objective", "step"))
            read = {id(v): len(v.prompt_ids or ()) + len(s.rollout.completion_ids) for s in result.samples for v in s.views.values()}
            student = {id(s.rollout): len(s.rollout.prompt_ids) + len(s.rollout.completion_ids) for s in result.samples}
            row = {"annotate": result.seconds["annotate"], "learning": learning, "teacher_tokens": sum(read.values()), "student_tokens": sum(student.values())}
            # the first step allocates; what a skill bank or a cache costs once is not a step's
            found[name] += [row] if turn else []
    medians = {name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()}
    return {name: m | {"sampling": sampling, "step": sampling + m["annotate"] + m["learning"]} for name, m in medians.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    a = parser.parse_args()
    found = measure(list(dict.fromkeys([FIRST, *a.methods])), prompts=a.prompts, generations=a.generations, repeats=a.repeats)
    table = Table(title=f"{a.prompts} prompts x {a.generations} rollouts of the shipped base, medians of {a.repeats} steps")
    for column in ("method", "annotate, s", "learning, s", "step over GRPO's", "learning over GRPO's", "tokens its teachers read", "its student reads"):
        table.add_column(column)
    for name, m in found.items():
        step, learning = (m[key] / found[FIRST][key] for key in ("step", "learning"))
        row = (f"{m['annotate']:.3f}", f"{m['learning']:.3f}", f"{step:.2f}", f"{learning:.2f}", f"{m['teacher_tokens']:,.0f}", f"{m['student_tokens']:,.0f}")
        table.add_row(name, *row)
    Console(width=130).print(table)
    OUT.mkdir(exist_ok=True)
    machine = {"processor": platform.processor() or platform.machine(), "prompts": a.prompts, "generations": a.generations, "repeats": a.repeats}
    (OUT / "methods.json").write_text(json.dumps({"machine": machine, "methods": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
