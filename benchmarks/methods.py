"""What a step of each method costs over one of GRPO, on the same rollouts of the shipped base; or on their own, where a method's source writes others.

python benchmarks/methods.py [--repeats 7] [--methods opsd hsd ...] [--own sft dapo ...]   prints two tables and writes benchmarks/out/methods.json after each

Shared rollouts are sampled and graded once; every method then learns from them with a trainer of its own, in turns, so that the machine's moods meet all
alike. `rcsd_writer` reads them as if they were its rubrics. `--own` are whole steps, sampling included, of methods that cannot share: references (sft), groups
drawn anew (dapo), conversations (ccopd), two models in lockstep (opcod, both their steps over GRPO's one). They learn at a rate of 0, so that all steps are the
base's. Seconds are medians.
"""

import argparse
import copy
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from workload import measured_on, positive, write

from selfdistill.api import assemble
from selfdistill.config import make_settings
from selfdistill.lockstep import introduce, lockstep
from selfdistill.method import Method
from selfdistill.method_names import build_method
from selfdistill.sources import OnPolicy, Request
from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.teachers import External, Frozen
from selfdistill.trainer import StepResult, Trainer
from selfdistill.types import Group

FIRST = "grpo"
ARGUMENTS: dict[str, dict[str, Any]] = {
    "step_critique": {"critic": "TaskChecker()"},
    "exprl": {"judge": "StepJudge()"},
    "exprl_process": {"judge": "StepJudge()", "steps": "ClosedBy(';')"},
    "sgsd": {"extractor": "TaskLessons()", "cold_start": 32},
    "opcod": {"breaks_every": 0},
}
"""The testbed's own critics and judges, since the tiny base writes no judgements; nothing that only measures."""
METHODS = (
    *("grpo", "dr_grpo", "gspo", "rlsd", "exprl", "exprl_process", "opd", "gkd", "entropy_opd", "eopd", "opsd", "shuffled_context(opsd)", "pw_opsd"),
    *("purified_opsd", "rcsd_writer", "rcsd", "step_critique", "sdft", "sdpo", "sdpo_trust_region", "hsd", "grpo_plus(opsd)", "grpo_plus(hsd)"),
    *("grpo_blend(sdpo)", "sgsd", "topd", "topd_self"),
)
OWN = ("sft", "dapo", "ccopd", "opcod")


@dataclass(frozen=True)
class Fixed:
    """A source that hands out copies of the same groups."""

    groups: tuple[Group, ...]

    def __call__(self, request: Request) -> list[Group]:
        return copy.deepcopy(list(self.groups))


def settings_of(prompts: int, generations: int, **more: Any) -> dict[str, Any]:
    sampling = {"num_generations": generations, "max_completion_length": 112}
    return {"steps": 10**6, "prompts_per_step": prompts, "tokens_per_batch": 65536, "sampling": sampling, **more}


def known(name: str) -> str:
    """A method on the command line."""
    try:
        named(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name


def named(name: str) -> Method:
    """The method; an external teacher is the frozen base."""
    method = build_method(name, ARGUMENTS.get(name, {}), max_completion_length=112)
    return replace(method, teacher=Frozen()) if isinstance(method.teacher, External) else method


def trainer(name: str, groups: tuple[Group, ...], prompts: int, generations: int) -> Trainer:
    """A trainer of the method on those groups."""
    settings = make_settings(settings_of(prompts, generations), {})
    return assemble(settings, method=replace(named(name), source=Fixed(groups)), task=Arithmetic()).trainer


def own_trainers(name: str, prompts: int, generations: int) -> tuple[Trainer, ...]:
    """A trainer of the method that samples for itself; two that know each other where the method asks a peer."""
    method = named(name)
    settings = make_settings(settings_of(prompts, generations, optimizer={"lr": 0.0}), {})
    trainers = tuple(assemble(settings, method=method, task=Arithmetic(), paired=True).trainer for _ in range(1 + method.reads_peer))
    introduce(trainers)
    return trainers


def rollouts(prompts: int, generations: int) -> tuple[tuple[Group, ...], float]:
    """Graded groups of the base and the seconds that sampling them took."""
    parts = assemble(make_settings(settings_of(prompts, generations), {}), method=named(FIRST), task=Arithmetic())
    assert parts.method.source == OnPolicy()
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        groups = parts.sampler.sample(parts.trainer.stream.problems[:prompts], generations)
        seconds.append(time.perf_counter() - start)
    parts.trainer.grade(groups)
    return tuple(groups), min(seconds)


def learning_of(result: StepResult) -> float:
    """Seconds of all that follows the stages."""
    return sum(result.seconds[phase] for phase in ("teach", "pack", "score", "objective", "step"))


def measure(names: list[str], *, prompts: int, generations: int, repeats: int) -> dict[str, dict[str, float]]:
    """By method: seconds of annotating, of learning, and tokens that its teachers and its student read."""
    groups, sampling = rollouts(prompts, generations)
    trainers = {name: trainer(name, groups, prompts, generations) for name in names}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name, own in trainers.items():
            result = own.step()
            learning = learning_of(result)
            read = {id(v): len(v.prompt_ids or ()) + len(s.rollout.completion_ids) for s in result.samples for v in s.views.values()}
            student = {id(s.rollout): len(s.rollout.prompt_ids) + len(s.rollout.completion_ids) for s in result.samples}
            row = {"annotate": result.seconds["annotate"], "learning": learning, "teacher_tokens": sum(read.values()), "student_tokens": sum(student.values())}
            # the first step allocates; what a skill bank or a cache costs once is not a step's
            found[name] += [row] if turn else []
    medians = {name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()}
    return {name: m | {"sampling": sampling, "step": sampling + m["annotate"] + m["learning"]} for name, m in medians.items()}


def measure_own(names: list[str], *, prompts: int, generations: int, repeats: int) -> dict[str, dict[str, float]]:
    """By method: seconds of a whole step by phase, those of both models where there are two, and what it trains on."""
    steps = {name: lockstep(own_trainers(name, prompts, generations)) for name in names}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name, models in steps.items():
            results = next(models)
            sampling = sum(r.seconds["sample"] + r.seconds["grade"] for r in results)
            annotate, learning = sum(r.seconds["annotate"] for r in results), sum(map(learning_of, results))
            rollouts = {id(s.rollout): len(s.rollout.completion_ids) for r in results for s in r.samples}
            row = {"sampling": sampling, "annotate": annotate, "learning": learning, "step": sampling + annotate + learning}
            # the first step allocates
            found[name] += [row | {"rollouts": len(rollouts), "trained_tokens": sum(rollouts.values())}] if turn else []
    return {name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()}


def show(found: dict[str, dict[str, float]], title: str) -> None:
    table = Table(title=title)
    for column in ("method", "annotate, s", "learning, s", "step over GRPO's", "learning over GRPO's", "tokens its teachers read", "its student reads"):
        table.add_column(column, no_wrap=column == "method")
    for name, m in found.items():
        step, learning = (m[key] / found[FIRST][key] for key in ("step", "learning"))
        row = (f"{m['annotate']:.3f}", f"{m['learning']:.3f}", f"{step:.2f}", f"{learning:.2f}", f"{m['teacher_tokens']:,.0f}", f"{m['student_tokens']:,.0f}")
        table.add_row(name, *row)
    Console(width=130).print(table)


def show_own(found: dict[str, dict[str, float]], title: str) -> None:
    table = Table(title=title)
    for column in ("method", "sampling, s", "annotate, s", "learning, s", "step, s", "step over GRPO's", "rollouts it trains on", "trained tokens"):
        table.add_column(column, no_wrap=column == "method")
    for name, m in found.items():
        seconds = (f"{m[key]:.3f}" for key in ("sampling", "annotate", "learning", "step"))
        table.add_row(name, *seconds, f"{m['step'] / found[FIRST]['step']:.2f}", f"{m['rollouts']:,.0f}", f"{m['trained_tokens']:,.0f}")
    Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"repeats": 7, "prompts": 16, "generations": 8}.items():
        parser.add_argument(f"--{name}", type=positive, default=value)
    parser.add_argument("--methods", nargs="+", type=known, default=list(METHODS))
    parser.add_argument("--own", nargs="*", type=known, default=list(OWN), help="methods measured on their own rollouts; without a name none")
    a = parser.parse_args()
    size = {"prompts": a.prompts, "generations": a.generations, "repeats": a.repeats}
    found = measure(list(dict.fromkeys([FIRST, *a.methods])), **size)
    show(found, f"{a.prompts} prompts x {a.generations} rollouts of the shipped base, the same for all, medians of {a.repeats} steps")
    # the base's own device, as `assemble` chooses it
    machine = measured_on("cuda" if torch.cuda.is_available() else "cpu", **size)
    write("methods", {"machine": machine, "methods": found, "own_rollouts": {}})
    if a.own:
        own = measure_own(list(dict.fromkeys([FIRST, *a.own])), **size)
        show_own(own, f"whole steps of {a.prompts} prompts, each method's own rollouts of the shipped base, medians of {a.repeats}")
        write("methods", {"machine": machine, "methods": found, "own_rollouts": own})


if __name__ == "__main__":
    main()
