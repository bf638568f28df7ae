"""Stages that run after grading and before packing: they write texts, annotations or reward shaping onto rollouts, in place.

Statistics over a whole step belong here, so that later stages see one rollout at a time.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

from selfdistill.contexts import NOTE, Context, note_request
from selfdistill.rubrics import RubricSource
from selfdistill.tools import Tools
from selfdistill.types import Group, Note
from selfdistill.writers import Writer

Feedback = Callable[[list[Group], Tools], None]
"""(groups, tools) -> None; the tools serve stages that let a model write or read, or that remember."""


@dataclass(frozen=True)
class SoftOverlong:
    """shaping = 0 up to limit - buffer tokens, then down linearly to -penalty at the limit (DAPO, 2503.14476, section 3.4)."""

    limit: int
    """`max_completion_length` in tokens."""
    buffer: int
    penalty: float = 1.0

    def __call__(self, groups: list[Group], tools: Tools) -> None:
        for rollout in (r for g in groups for r in g.rollouts):
            excess = len(rollout.completion_ids) - (self.limit - self.buffer)
            rollout.shaping -= self.penalty * min(max(excess / self.buffer, 0.0), 1.0)


@dataclass(frozen=True)
class LendGroups:
    """Gives every group the next group of the step as its donor, for contexts that must not fit their problem (null controls).

    Raises ValueError on a step of one problem, which has nobody to borrow from.
    """

    def __call__(self, groups: list[Group], tools: Tools) -> None:
        if len(groups) < 2:
            raise ValueError("a shuffled context needs at least 2 problems a step, not 1; raise prompts_per_step")
        for group, donor in zip(groups, groups[1:] + groups[:1], strict=True):
            group.donor = donor


@dataclass(frozen=True)
class NoteRubrics:
    """Notes every problem's rubric, for the context `Rubric`; a problem without one is noted none, and its rollouts are untaught (RCSD)."""

    source: RubricSource

    def __call__(self, groups: list[Group], tools: Tools) -> None:
        for group, rubric in zip(groups, self.source(groups, tools), strict=True):
            group.notes["rubric"] = (Note(fields={"rubric": rubric}),) if rubric else ()


@dataclass(frozen=True)
class NoteFirst:
    """Lets a writer note what the context's prompt asks for, before a completion is scored under it (`reason_first`; RCSD, code).

    One note a prompt, shared by the rollouts that are read under it; the context `AfterNote` shows it.
    """

    context: Context
    writer: Writer

    def __call__(self, groups: list[Group], tools: Tools) -> None:
        requests = [(r, chat) for g in groups for r in g.rollouts if (chat := note_request(self.context, r, g)) is not None]
        keys = [json.dumps(chat) for _, chat in requests]
        different = {key: chat for key, (_, chat) in zip(keys, requests, strict=True)}
        notes = dict(zip(different, self.writer(list(different.values()), tools), strict=True)) if different else {}
        for (rollout, _), key in zip(requests, keys, strict=True):
            rollout.feedback[NOTE] = notes[key]
