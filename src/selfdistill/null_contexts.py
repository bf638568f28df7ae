"""Contexts that cannot help, around one that should: its words stay, what they say is blank, wrong, or noise.

Together with FromAnotherProblem these are the null controls: a gain that survives them is not the context's.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from selfdistill.contexts import Context, lent
from selfdistill.types import Group, Note, Problem, Rollout, Teaching

BLANK = " "


@dataclass(frozen=True)
class Blank:
    """Every privileged text is a blank: what is left is the effect of the words around it."""

    context: Context

    def __call__(self, rollout: Rollout, group: Group) -> list[Teaching]:
        return self.context(*_rewritten(rollout, group, lambda text: BLANK))


@dataclass(frozen=True)
class Scrambled:
    """Every privileged text is another problem's in random word order: like words, like length, nothing said. Needs the LendGroups stage."""

    context: Context

    def __call__(self, rollout: Rollout, group: Group) -> list[Teaching]:
        return self.context(*_rewritten(*lent(rollout, group), _scramble))


@dataclass(frozen=True)
class Wrong:
    """False about this very problem: another one's answer that is not its own, a failed rollout as solution, failed peers as successes.

    Other texts are another problem's. A rollout is untaught where no lender's answer differs; problems without answers have none that could
    be the same. Needs the LendGroups stage.
    """

    context: Context

    def __call__(self, rollout: Rollout, group: Group) -> list[Teaching]:
        own = group.problem.answer
        lender = next((g for g in _lenders(group) if not own or g.problem.answer != own), None)
        if lender is None:
            return []
        shown, foreign = lent(rollout, replace(group, donor=lender))
        failed = [r.text for r in group.rollouts if r is not rollout and r.reward is not None and r.reward < 1]
        solution = failed[rollout.index % len(failed)] if failed else foreign.problem.solution
        inverted = [r if r is rollout or r.reward is None else replace(r, reward=float(r.reward < 1)) for r in group.rollouts]
        problem = replace(foreign.problem, solution=solution if foreign.problem.solution else "")
        return self.context(replace(rollout, feedback=shown.feedback), replace(foreign, problem=problem, rollouts=inverted))


def _lenders(group: Group) -> Iterator[Group]:
    """The donor, its donor and so on, each once; the ring need not lead back to the group, as where a step holds its problem twice."""
    seen = {id(group)}
    lender = group.donor
    while lender is not None and id(lender) not in seen:
        yield lender
        seen.add(id(lender))
        lender = lender.donor


def _rewritten(rollout: Rollout, group: Group, change: Callable[[str], str]) -> tuple[Rollout, Group]:
    """The rollout and its group with every privileged text changed; the question, its answer format and its shards stay."""
    rollouts = [replace(r, text=change(r.text), feedback=_each(r.feedback, change)) for r in group.rollouts]
    own = next((changed for r, changed in zip(group.rollouts, rollouts, strict=True) if r is rollout), None)
    notes = {kind: tuple(Note(fields=_each(n.fields, change), score=n.score) for n in found) for kind, found in group.notes.items()}
    shown = own or replace(rollout, feedback=_each(rollout.feedback, change))
    return shown, replace(group, problem=_blind(group.problem, change), rollouts=rollouts, notes=notes)


def _blind(problem: Problem, change: Callable[[str], str]) -> Problem:
    texts = {name: change(text) if (text := getattr(problem, name)) else "" for name in ("answer", "solution", "privileged_context")}
    # a context shows any column as text, whatever the dataset holds there; the user's own turns are the question
    columns = {name: change(str(value)) if value and name != "shards" else value for name, value in problem.columns.items()}
    return replace(problem, columns=columns, **texts)


def _each(texts: Mapping[str, str], change: Callable[[str], str]) -> dict[str, str]:
    return {name: change(text) for name, text in texts.items()}


def _scramble(text: str) -> str:
    words = text.split()
    random.Random(text).shuffle(words)
    return " ".join(words)
