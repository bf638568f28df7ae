"""Two trainers on one stream of problems: both sample the same ones, each is given the other's groups, both annotate, both learn.

So what a model reads of its peer was written before either moved, and neither is a step ahead. One trainer alone is the ordinary step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations

from selfdistill.trainer import StepResult, Trainer
from selfdistill.types import Group


def introduce(trainers: Sequence[Trainer]) -> None:
    """Hands each trainer's stages the other's tools, and with them its sampler and its weights as they are."""
    assert len(trainers) <= 2, "a peer is one other model"
    for own, other in permutations(trainers, 2):
        own.tools = replace(own.tools, peer=other.tools)


def exchange(groups: Sequence[Sequence[Group]]) -> None:
    """Gives every group the other model's group on its problem. Raises ValueError where the two hold different problems."""
    for own, other in permutations(groups, 2):
        if [g.problem for g in own] != [g.problem for g in other]:
            raise ValueError("the two models were left with different problems; a pair needs a method that keeps every problem it draws, unlike dapo")
        for group, peer in zip(own, other, strict=True):
            group.peer = peer


def lockstep(trainers: Sequence[Trainer]) -> Iterator[tuple[StepResult, ...]]:
    """The steps that are left, a result a trainer; `introduce` comes first."""
    while any(trainer.steps_done < trainer.settings.steps for trainer in trainers):
        groups = [trainer.rollouts() for trainer in trainers]
        exchange(groups)
        for trainer, own in zip(trainers, groups, strict=True):
            trainer.annotate(own)
        yield tuple(trainer.learn(own) for trainer, own in zip(trainers, groups, strict=True))
