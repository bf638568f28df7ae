"""Where rollouts come from: a step's request in, groups of rollouts out, with their trained positions set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch

from selfdistill.contexts import words
from selfdistill.conversations import Conversation, Full, RawSharded
from selfdistill.rubrics import parse_rubric
from selfdistill.sampling import Sampler
from selfdistill.types import Group, Problem


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a step wants: n rollouts of each of its problems, and what a source may need to get them."""

    sampler: Sampler
    """Samples the student."""
    problems: Sequence[Problem]
    n: int
    grade: Callable[[list[Group]], None]
    """Sets rewards, for a source that looks at them."""
    draw: Callable[[int], Sequence[Problem]]
    """That many further problems of the run."""


@runtime_checkable
class RolloutSource(Protocol):
    """Request -> groups of rollouts."""

    def __call__(self, request: Request) -> list[Group]: ...


@runtime_checkable
class Telling(Protocol):
    """A source that does not put its problems to the student as they stand: what looks at prompts before a run asks it how."""

    def told(self, problems: Sequence[Problem]) -> tuple[Sequence[Problem], Conversation]:
        """The problems in the words that the student is given, and the conversation that tells them."""
        ...


def told(source: RolloutSource, problems: Sequence[Problem]) -> tuple[Sequence[Problem], Conversation]:
    """What any source puts to the student, and how: the problems themselves, at once, unless it says otherwise."""
    return source.told(problems) if isinstance(source, Telling) else (problems, Full())


@dataclass(frozen=True)
class OnPolicy:
    """n completions of every problem by the student itself."""

    skip_first: int = 0
    """Completion tokens at the start that are not trained (SDFT skips 3)."""

    def __call__(self, request: Request) -> list[Group]:
        groups = request.sampler.sample(request.problems, request.n)
        for rollout in (r for g in groups for r in g.rollouts if self.skip_first):
            rollout.trained = tuple(range(self.skip_first, len(rollout.completion_ids)))
        return groups


@dataclass(frozen=True)
class Sharded:
    """n conversations about every problem, played out with the student itself; their last replies are what is trained (CCOPD).

    Raises ValueError where a problem has no column `shards` and the conversation needs it.
    """

    conversation: Conversation = RawSharded()

    def __call__(self, request: Request) -> list[Group]:
        return self.conversation(request.sampler, request.problems, request.n)

    def told(self, problems: Sequence[Problem]) -> tuple[Sequence[Problem], Conversation]:
        """The problems as they are, by the conversation."""
        return problems, self.conversation


@dataclass(frozen=True)
class Reference:
    """The problem's reference solution as its only completion (SFT). Raises ValueError where a problem has none."""

    def __call__(self, request: Request) -> list[Group]:
        if missing := [p.id or str(p.prompt)[:60] for p in request.problems if not p.solution]:
            raise ValueError(f"{len(missing)} problems have no solution to train on (the first: {missing[0]!r}); map a column with task.columns.solution")
        return [Group(problem=p, rollouts=[request.sampler.write(p, p.solution)]) for p in request.problems]


@dataclass(frozen=True)
class AskForRubrics:
    """n completions of every problem reworded as a request for its rubric, rewarded 1 where they parse as one, else 0 (RCSD, stage 1).

    The groups' problems are the reworded ones, so that what was sampled is what is read, shown and recorded.
    """

    def __call__(self, request: Request) -> list[Group]:
        problems, tell = self.told(request.problems)
        groups = tell(request.sampler, problems, request.n)
        for rollout in (r for g in groups for r in g.rollouts):
            rollout.reward = float(parse_rubric(rollout.text) is not None)
        return groups

    def told(self, problems: Sequence[Problem]) -> tuple[Sequence[Problem], Conversation]:
        """Problems whose own words are those of the request, at once."""
        return [replace(p, templates={**p.templates, "student": words(p, "rubric_request")}) for p in problems], Full()


@dataclass(frozen=True)
class Mixed:
    """Every problem of the step on-policy with this probability, else its reference solution (GKD, 2306.13649, lambda).

    Drawn from torch's generator, which a checkpoint keeps. Raises ValueError where a problem is to be read and has no solution.
    """

    on_policy_share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.on_policy_share <= 1:
            raise ValueError(f"Mixed(on_policy_share={self.on_policy_share}): the share must lie in [0, 1]")

    def __call__(self, request: Request) -> list[Group]:
        written = [float(u) >= self.on_policy_share for u in torch.rand(len(request.problems))]
        own, others = ([p for p, w in zip(request.problems, written, strict=True) if w is kept] for kept in (False, True))
        sampled = iter(request.sampler.sample(own, request.n) if own else [])
        read = iter(Reference()(replace(request, problems=others)))
        return [next(read if w else sampled) for w in written]


@dataclass(frozen=True)
class UntilMixed:
    """Drops groups whose rewards are all equal and samples new problems in their place, at most `tries` times (DAPO)."""

    tries: int = 3

    def __call__(self, request: Request) -> list[Group]:
        wanted, kept = len(request.problems), []
        for attempt in range(self.tries):
            groups = request.sampler.sample(request.problems if attempt == 0 else request.draw(wanted - len(kept)), request.n)
            request.grade(groups)
            kept += [g for g in groups if len({r.reward for r in g.rollouts} - {None}) > 1]
            if len(kept) >= wanted:
                break
        return kept[:wanted] or groups
