"""Where rollouts come from: a sampler, problems and a group size in, groups of rollouts out, with their trained positions set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from selfdistill.conversations import Conversation, RawSharded
from selfdistill.sampling import Sampler
from selfdistill.types import Group, Problem


@runtime_checkable
class RolloutSource(Protocol):
    """(sampler, problems, n) -> groups; `grade` and `draw` serve sources that look at rewards and ask for further problems."""

    def __call__(
        self,
        sampler: Sampler,
        problems: Sequence[Problem],
        n: int,
        *,
        grade: Callable[[list[Group]], None],
        draw: Callable[[int], Sequence[Problem]],
    ) -> list[Group]: ...


@dataclass(frozen=True)
class OnPolicy:
    """n completions of every problem by the student itself."""

    skip_first: int = 0
    """Completion tokens at the start that are not trained (SDFT skips 3)."""

    def __call__(
        self,
        sampler: Sampler,
        problems: Sequence[Problem],
        n: int,
        *,
        grade: Callable[[list[Group]], None],
        draw: Callable[[int], Sequence[Problem]],
    ) -> list[Group]:
        groups = sampler.sample(problems, n)
        for rollout in (r for g in groups for r in g.rollouts if self.skip_first):
            rollout.trained = tuple(range(self.skip_first, len(rollout.completion_ids)))
        return groups


@dataclass(frozen=True)
class Sharded:
    """n conversations about every problem, played out with the student itself; their last replies are what is trained (CCOPD).

    Raises ValueError where a problem has no column `shards` and the conversation needs it.
    """

    conversation: Conversation = RawSharded()

    def __call__(
        self,
        sampler: Sampler,
        problems: Sequence[Problem],
        n: int,
        *,
        grade: Callable[[list[Group]], None],
        draw: Callable[[int], Sequence[Problem]],
    ) -> list[Group]:
        return self.conversation(sampler, problems, n)


@dataclass(frozen=True)
class Reference:
    """The problem's reference solution as its only completion (SFT). Raises ValueError where a problem has none."""

    def __call__(
        self,
        sampler: Sampler,
        problems: Sequence[Problem],
        n: int,
        *,
        grade: Callable[[list[Group]], None],
        draw: Callable[[int], Sequence[Problem]],
    ) -> list[Group]:
        if missing := [p.id or str(p.prompt)[:60] for p in problems if not p.solution]:
            raise ValueError(f"{len(missing)} problems have no solution to train on (the first: {missing[0]!r}); map a column with task.columns.solution")
        return [Group(problem=p, rollouts=[sampler.write(p, p.solution)]) for p in problems]


@dataclass(frozen=True)
class UntilMixed:
    """Drops groups whose rewards are all equal and samples new problems in their place, at most `tries` times (DAPO)."""

    tries: int = 3

    def __call__(
        self,
        sampler: Sampler,
        problems: Sequence[Problem],
        n: int,
        *,
        grade: Callable[[list[Group]], None],
        draw: Callable[[int], Sequence[Problem]],
    ) -> list[Group]:
        wanted, kept = len(problems), []
        for attempt in range(self.tries):
            groups = sampler.sample(problems if attempt == 0 else draw(wanted - len(kept)), n)
            grade(groups)
            kept += [g for g in groups if len({r.reward for r in g.rollouts} - {None}) > 1]
            if len(kept) >= wanted:
                break
        return kept[:wanted] or groups
