"""Who says how good an attempt is: attempts in, one number from 0 to 1 each out, None where it cannot be told."""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from selfdistill.contexts import Answer, Solution, TextSource
from selfdistill.null_contexts import BLANK
from selfdistill.tasks import Verdict, asking
from selfdistill.tools import Tools
from selfdistill.types import Group, Problem, Rollout
from selfdistill.writers import Student, Writer, asked_about

log = logging.getLogger(__name__)
SCORE = re.compile(r"\bscore\W{0,8}([1-5])(?!\d|\.\d)", re.IGNORECASE)
BARE = re.compile(r"\W*([1-5])\W*")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A completion, or its first steps."""

    rollout: Rollout
    group: Group
    text: str
    ends: bool
    """It is the whole completion, so that what it lacks is missing."""


Judge = Callable[[Sequence[Attempt], Tools], list[float | None]]


@dataclass(frozen=True)
class ModelJudge:
    """s = (s~ - 1) / 4, s~ a Likert grade of 1 to 5 by a writer that sees the reference, which the policy never does (ExpRL, 2606.17024).

    [open] The reference is the solution, else the final answer; the grade is the reply's last `Score: N`, or a reply that is nothing else. None
    where there is no reference or no grade.
    """

    writer: Writer = Student()
    truth: tuple[TextSource, ...] = (Solution(), Answer())
    """The first that the problem has is shown."""
    reads_reference: ClassVar[bool] = True

    def __call__(self, attempts: Sequence[Attempt], tools: Tools) -> list[float | None]:
        shown = [(attempt.rollout, attempt.group, attempt.text) for attempt in attempts]
        replies = asked_about(shown, self.writer, tools, kind="judge_request", truth=self.truth)
        scores = [None if text is None else likert(text) for text in replies]
        if lost := [text for text, score in zip(replies, scores, strict=True) if score is None]:
            log.warning("%d of %d judgements hold no score from 1 to 5; their rollouts are left out of the loss: %.80r", len(lost), len(scores), lost[0])
        return scores


@dataclass(frozen=True)
class StepJudge:
    """The share of an attempt's steps that hold, its answer counting as one, by the task's own `judge(problem, completion)`: exact on the testbed.

    A slip that is mended on the spot is not held against it. Raises ValueError where the task has no such judge, or it raises itself.
    """

    reads_reference: ClassVar[bool] = False

    def __call__(self, attempts: Sequence[Attempt], tools: Tools) -> list[float | None]:
        with asking(tools.task, "judge", otherwise='let a model judge: --method.judge "ModelJudge(Student())"') as judge:
            return [_share(judge(a.group.problem, a.text), ends=a.ends) for a in attempts]


@dataclass(frozen=True)
class WithoutReference:
    """The control: the judge is shown a blank for the reference, and no answer (ExpRL, no reference).

    Raises ValueError around a judge that reads none, such as a task's exact one, from which nothing would be taken.
    """

    judge: Judge = ModelJudge()

    def __post_init__(self) -> None:
        if not getattr(self.judge, "reads_reference", True):
            raise ValueError(
                f"WithoutReference({self.judge}) would judge as {self.judge} does, which reads no reference; give a judge that does, like ModelJudge()"
            )

    def __call__(self, attempts: Sequence[Attempt], tools: Tools) -> list[float | None]:
        return self.judge([replace(a, group=replace(a.group, problem=without_reference(a.group.problem))) for a in attempts], tools)


def without_reference(problem: Problem) -> Problem:
    """The problem with nothing known about it, its reference a blank."""
    return replace(problem, solution=BLANK, answer="", privileged_context="")


def likert(text: str) -> float | None:
    """(s~ - 1) / 4 of the last grade that a judgement states; None where it states none."""
    stated = SCORE.findall(text)
    grade = stated[-1] if stated else (bare[1] if (bare := BARE.fullmatch(text)) else None)
    return None if grade is None else (int(grade) - 1) / 4


def _share(verdicts: Sequence[Verdict], *, ends: bool) -> float | None:
    """What an attempt that goes on has not written yet is not wrong."""
    counted = [v for v in verdicts if ends or v.text.strip()]
    return sum(not v.wrong for v in counted) / len(counted) if counted else None
