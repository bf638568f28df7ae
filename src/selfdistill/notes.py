"""Contexts over what a feedback stage noted about a problem or a prompt: rubrics, pairs of skill and mistake, a reader's own note on what it was shown."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from selfdistill.contexts import Context, Solution, worded
from selfdistill.types import Group, Message, Problem, Rollout, Teaching, View

NOTE = "note"
"""The feedback under which a reader's own note on its context is kept."""


@dataclass(frozen=True)
class Rubric:
    """The rubric that the stage `NoteRubrics` found for the problem (RCSD)."""

    kind: ClassVar[str] = "rubric"

    def __call__(self, rollout: Rollout, group: Group) -> Mapping[str, str] | None:
        notes = group.notes.get("rubric")
        return notes[0].fields if notes else None


@dataclass(frozen=True)
class RubricAndSolution:
    """The rubric beside the reference solution, where the problem has both (RCSD, code)."""

    kind: ClassVar[str] = "rubric_solution"

    def __call__(self, rollout: Rollout, group: Group) -> Mapping[str, str] | None:
        rubric, solution = Rubric()(rollout, group), Solution()(rollout, group)
        return {**rubric, **solution} if rubric and solution else None


@dataclass(frozen=True)
class SolutionForRubric(Solution):
    """The reference solution, shown to the teacher of whoever is asked for a rubric (RCSD, stage 1)."""

    kind: ClassVar[str] = "rubric_request_solution"


@dataclass(frozen=True)
class Skills:
    """One teacher for each pair of a skill and a mistake that `RetrieveSkills` noted, with the share softmax_k(score_k) (SGSD).

    [open] A rollout without a reward is untaught: its teachers could be neither right nor wrong.
    """

    thinking: bool | None = None
    """The teacher's chat-template flag; None: the template's default."""
    kind: ClassVar[str] = "skill"

    def __call__(self, rollout: Rollout, group: Group) -> list[Teaching]:
        notes = group.notes.get("skill", ())
        known = self.known(group)
        if rollout.reward is None or known is None:
            return []
        weights = [math.exp(note.score - max(n.score for n in notes)) for note in notes]
        views = [View(messages=worded(group.problem, self.kind, {**note.fields, **known}), thinking=self.thinking) for note in notes]
        return [Teaching(views={"teacher": view}, weight=weight / sum(weights)) for view, weight in zip(views, weights, strict=True)]

    def known(self, group: Group) -> Mapping[str, str] | None:
        """What the teachers read besides their pairs; None leaves the group untaught."""
        return {}


@dataclass(frozen=True)
class SkillsAndAnswer(Skills):
    """The ablation: the same pairs, each beside the problem's final answer (SGSD, answer in context)."""

    kind: ClassVar[str] = "skill_answer"

    def known(self, group: Group) -> Mapping[str, str] | None:
        return {"answer": group.problem.answer} if group.problem.answer else None


@dataclass(frozen=True)
class AfterNote:
    """The inner context's prompt, followed by the note that the stage `NoteFirst` wrote on it; the prompt alone where there is none."""

    context: Context

    def __call__(self, rollout: Rollout, group: Group) -> list[Teaching]:
        note = rollout.feedback.get(NOTE)
        if not note:
            return self.context(rollout, group)
        return [replace(t, views={**t.views, "teacher": _followed(t.views["teacher"], group.problem, note)}) for t in self.context(rollout, _bare(group))]


def note_request(context: Context, rollout: Rollout, group: Group) -> tuple[Message, ...] | None:
    """The chat that asks the context's reader for a note on what it was shown; None where the rollout is untaught."""
    teachings = context(rollout, _bare(group))
    assert len(teachings) < 2, "a note is one teacher's"
    return worded(replace(group.problem, prompt=teachings[0].views["teacher"].messages), "note_request", {}) if teachings else None


def _followed(view: View, problem: Problem, note: str) -> View:
    return replace(view, messages=worded(replace(problem, prompt=view.messages), "noted", {"note": note}))


def _bare(group: Group) -> Group:
    """Without the answer format, which closes a prompt once, at its very end."""
    return replace(group, problem=replace(group.problem, instruction=""))
