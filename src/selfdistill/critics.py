"""Who writes a critique of a rollout: rollouts with their groups in, one text each out, None where there is none.

A critique is aligned with the rollout's steps: the rollout itself, word for word, up to its first error, and correct from there on
(2606.11173). So a teacher that reads it agrees with the student wherever the student was right.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selfdistill.contexts import Answer, Solution, TextSource
from selfdistill.steps import ClosedBy, Splitter
from selfdistill.tasks import asking
from selfdistill.tools import Tools
from selfdistill.types import Group, Rollout
from selfdistill.writers import Student, Writer, asked_about

Critic = Callable[[Sequence[tuple[Rollout, Group]], Tools], list[str | None]]
TAG = re.compile(r"</?step(?: \d+)?>[ \t]*\n?")


@dataclass(frozen=True)
class TaskChecker:
    """The task's own `critique(problem, completion)`, exact on the testbed. Raises ValueError where the task has none, or raises itself."""

    def __call__(self, pairs: Sequence[tuple[Rollout, Group]], tools: Tools) -> list[str | None]:
        with asking(tools.task, "critique", otherwise='let a model write: --method.critic "ModelCritic(Student())"') as critique:
            return [critique(group.problem, rollout.text) for rollout, group in pairs]


@dataclass(frozen=True)
class ModelCritic:
    """A writer shown problem, ground truth and the rollout with its steps between tags; tags that it repeats are taken out.

    [open] The truth is the final answer, else the reference solution; a problem with neither gets no critique. A step is a paragraph.
    """

    writer: Writer = Student()
    truth: tuple[TextSource, ...] = (Answer(), Solution())
    """The first that the problem has is shown."""
    steps: Splitter = ClosedBy("\n\n")

    def __call__(self, pairs: Sequence[tuple[Rollout, Group]], tools: Tools) -> list[str | None]:
        attempts = [(rollout, group, self._tagged(rollout.text)) for rollout, group in pairs]
        replies = asked_about(attempts, self.writer, tools, kind="critique_request", truth=self.truth)
        return [None if text is None else TAG.sub("", text).strip() or None for text in replies]

    def _tagged(self, text: str) -> str:
        return "\n".join(f"<step {i}>\n{piece.strip()}\n</step {i}>" for i, piece in enumerate(self.steps(text), start=1))
