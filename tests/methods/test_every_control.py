"""Every control of every method takes a real step: sampled, graded, annotated, taught, scored and followed by an optimizer."""

import inspect
import math
from contextlib import suppress
from dataclasses import replace
from typing import Literal, get_args, get_origin

import pytest
from stepping import Spoken, method_named
from test_resume import Words
from tiny_models import tiny_policy

from selfdistill.api import assemble
from selfdistill.config import make_settings
from selfdistill.lockstep import introduce, lockstep
from selfdistill.method import Method
from selfdistill.methods import CONTROLS, METHODS
from selfdistill.types import Problem
from selfdistill.windows import TransportWindows

SETTINGS = make_settings(
    {"steps": 1, "prompts_per_step": 2, "sampling": {"num_generations": 3, "max_completion_length": 4}, "optimizer": {"lr": 1e-3}, "eval": {"at_end": False}},
    {},
)


class Everything(Words):
    """Problems that have whatever a method reads; the first rollout of each is right, the others are wrong."""

    def problems(self, split: str) -> list[Problem]:
        columns = {"demonstration": "w7 {0}", "rubric": "w8 {0}", "shards": ["w6", "{0}"]}
        return [
            replace(p, columns={k: v.format(p.prompt) if isinstance(v, str) else ["w6", p.prompt] for k, v in columns.items()}) for p in super().problems(split)
        ]

    def critique(self, problem: Problem, completion: str) -> str:
        return f"{completion} {problem.answer}"

    def judge(self, problem: Problem, completion: str) -> list[Spoken]:
        return [Spoken(word, i > 0) for i, word in enumerate(completion.split())]


def stepped(method: Method) -> dict[str, float]:
    """What a first step reports, beside a second model where the method reads one."""
    trainers = [
        assemble(SETTINGS, policy=tiny_policy(), method=method, task=Everything(), reward=first_is_right, paired=method.reads_peer).trainer
        for _ in range(1 + method.reads_peer)
    ]
    introduce(trainers)
    return next(lockstep(trainers))[0].metrics


def short(method: Method) -> Method:
    """With windows of a few tokens."""
    return replace(method, feedback=tuple(replace(f, length=3, controls=1) if isinstance(f, TransportWindows) else f for f in method.feedback))


def first_is_right(prompts: list, completions: list[str], **columns: list) -> list[float]:
    return [float(i % 3 == 0) for i in range(len(completions))]


def controls(method: Method) -> dict[str, Method]:
    """By the call that makes it, every control that the method has a part for."""
    found = {}
    for control in CONTROLS:
        kinds = [{key: o} for key, p in inspect.signature(control).parameters.items() if get_origin(p.annotation) is Literal for o in get_args(p.annotation)]
        for options in kinds or [{}]:
            with suppress(ValueError):
                found[f"{control.__name__}(X, {options})"] = control(method, **options)
    return found


@pytest.mark.parametrize("name", [f.__name__ for f in METHODS])
def test_every_control_of_a_method_takes_a_step(name: str) -> None:
    """And reports whatever the method reports: a stage that a control leaves without work is a term of the loss gone without a word."""
    method = short(method_named(name))
    own = stepped(method)
    for written, control in controls(method).items():
        metrics = stepped(control)
        assert control.token_weight != method.token_weight or own.keys() <= metrics.keys(), written
        assert all(math.isfinite(value) for value in metrics.values()), written
        assert metrics["taught_share"] > 0 or not own["taught_share"], written
