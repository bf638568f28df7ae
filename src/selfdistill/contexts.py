"""What the teacher reads. A context maps (rollout, group) to the teachers of that rollout: one Teaching each, none if untaught.

A text source finds the privileged text and names its kind; the problem's templates put words around it, so one method runs
on every task. The student's own prompt is worded here too, by the kind "student".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

from selfdistill.peers import PeerChoice, Uniformly
from selfdistill.templates import ENGLISH
from selfdistill.types import Group, Message, Problem, Rollout, Teaching, View

Context = Callable[[Rollout, Group], list[Teaching]]


@runtime_checkable
class TextSource(Protocol):
    """Finds privileged text: (rollout, group) -> the fields of the template `kind`, or None where there is none."""

    kind: ClassVar[str]

    def __call__(self, rollout: Rollout, group: Group) -> Mapping[str, str] | None: ...


def student_messages(problem: Problem) -> tuple[Message, ...]:
    """The chat the student answers: the prompt, closed by the answer-format instruction."""
    return worded(problem, "student", {})


def answered(rollout: Rollout, problem: Problem) -> tuple[Message, ...]:
    """The chat a rollout answered: its own conversation, else its problem's prompt."""
    return student_messages(problem) if rollout.prompt is None else rollout.prompt


def worded(problem: Problem, kind: str, fields: Mapping[str, str]) -> tuple[Message, ...]:
    """The problem's chat with its last user turn put into the words of `kind`."""
    messages = ({"role": "user", "content": problem.prompt},) if isinstance(problem.prompt, str) else tuple(problem.prompt)
    question = messages[-1]["content"]
    text = words(problem, kind).format(problem=question, instruction=problem.instruction, **fields)
    # without an instruction the template leaves blank lines behind it; a user's own prompt is never altered
    text = question if kind == "student" and not problem.instruction and not problem.templates else text.rstrip()
    return (*messages[:-1], {**messages[-1], "content": text})


def words(problem: Problem, kind: str) -> str:
    """The problem's own words of a kind, else the English ones."""
    return problem.templates.get(kind) or ENGLISH[kind]


@dataclass(frozen=True)
class Solution:
    """The reference solution, else the column `privileged_context`."""

    kind: ClassVar[str] = "solution"

    def __call__(self, rollout: Rollout, group: Group) -> Mapping[str, str] | None:
        text = group.problem.solution or group.problem.privileged_context
        return {"solution": text} if text else None


@dataclass(frozen=True)
class Answer:
    """The final answer alone."""

    kind: ClassVar[str] = "answer"

    def __call__(self, rollout: Rollout, group: Group) -> Mapping[str, str] | None:
        return {"answer": group.problem.answer} if group.problem.answer else None


@dataclass(frozen=True)
class Demonstration:
    """An expert's demonstration: the columns `demonstration`, `privileged_context` or `solution`, whichever comes first (SDFT)."""

    kind: ClassVar[str] = "demonstration"

    def __call__(self, rollout: Rollout, group: Group) -> Mapping[str, str] | None:
        problem = group.problem
        text = problem.columns.get("demonstration") or problem.privileged_context or problem.solution
        return {"demonstration": str(text)} if text else None


@dataclass(frozen=True)
class SuccessfulPeer:
    """Another rollout of the group with reward >= threshold, never the rollout itself, together with the gold answer (HSD)."""

    choice: PeerChoice = Uniformly()
    threshold: float = 1.0
    kind: ClassVar[str] = "peer"

    def __call__(self, rollout: Rollout, group: Group) -> Mapping[str, str] | None:
        peer = self.find(rollout, group)
        return {"peer": without_thinking(peer.text), "answer": group.problem.answer} if peer else None

    def find(self, rollout: Rollout, group: Group) -> Rollout | None:
        """The peer this rollout is shown."""
        peers = [r for r in group.rollouts if r is not rollout and r.reward is not None and r.reward >= self.threshold]
        seed = f"{group.problem.id}/{rollout.policy_version}/{rollout.index}"
        return self.choice(peers, seed) if peers else None


@dataclass(frozen=True)
class PeerSolution(SuccessfulPeer):
    """A successful peer shown as a solution, without the gold answer (SDPO)."""

    kind: ClassVar[str] = "solution"

    def __call__(self, rollout: Rollout, group: Group) -> Mapping[str, str] | None:
        peer = self.find(rollout, group)
        return {"solution": without_thinking(peer.text)} if peer else None


@dataclass(frozen=True)
class Written:
    """A text that a feedback stage or the environment wrote about this very rollout."""

    name: str = "environment"
    kind: ClassVar[str] = "feedback"

    def __call__(self, rollout: Rollout, group: Group) -> Mapping[str, str] | None:
        return {self.kind: rollout.feedback[self.name]} if rollout.feedback.get(self.name) else None


@dataclass(frozen=True)
class SolutionAndFeedback:
    """A successful peer of the student's own group beside what was written about this very rollout, where it has both (OPCoD)."""

    solution: PeerSolution
    feedback: Written
    kind: ClassVar[str] = "solution_feedback"

    def __call__(self, rollout: Rollout, group: Group) -> Mapping[str, str] | None:
        solution, feedback = self.solution(rollout, group), self.feedback(rollout, group)
        return {**solution, **feedback} if solution and feedback else None


@dataclass(frozen=True)
class Critique(Written):
    """The critique that the stage `WriteCritiques` wrote of this very rollout."""

    name: str = "critique"
    kind: ClassVar[str] = "critique"


@dataclass(frozen=True)
class NoTeacher:
    """No rollout is taught."""

    def __call__(self, rollout: Rollout, group: Group) -> list[Teaching]:
        return []


@dataclass(frozen=True)
class SamePrompt:
    """The student's own prompt: an external teacher without privileged information (OPD)."""

    def __call__(self, rollout: Rollout, group: Group) -> list[Teaching]:
        return [Teaching(views={"teacher": student_view(rollout, group.problem)})]


@dataclass(frozen=True)
class FullPrompt:
    """The problem's own prompt, whatever conversation the rollout answered (CCOPD)."""

    thinking: bool | None = None
    """The teacher's chat-template flag; None: the template's default."""

    def __call__(self, rollout: Rollout, group: Group) -> list[Teaching]:
        return [Teaching(views={"teacher": View(messages=student_messages(group.problem), thinking=self.thinking)})]


@dataclass(frozen=True)
class Privileged:
    """The question together with the first of the sources that has something for this rollout; untaught where none has."""

    sources: tuple[TextSource, ...]
    thinking: bool | None = None
    """The teacher's chat-template flag; None: the template's default."""
    failed_only: bool = False
    """Teaches only rollouts with reward below 1."""

    def __call__(self, rollout: Rollout, group: Group) -> list[Teaching]:
        if self.failed_only and rollout.reward is not None and rollout.reward >= 1:
            return []
        for source in self.sources:
            if (fields := source(rollout, group)) is not None:
                messages = worded(group.problem, source.kind, fields)
                return [Teaching(views={"teacher": View(messages=messages, thinking=self.thinking)})]
        return []


@dataclass(frozen=True)
class FrozenAndLive:
    """One privileged prompt read by the teacher's and by the student's weights: the roles "teacher" and "live" (trust region)."""

    privileged: Context

    def __call__(self, rollout: Rollout, group: Group) -> list[Teaching]:
        return [replace(t, views={**t.views, "live": replace(t.views["teacher"], weights="student")}) for t in self.privileged(rollout, group)]


@dataclass(frozen=True)
class ThreeViews:
    """(q, r) as "teacher", r without q as "reference", and the student's prompt byte for byte as "base" (Purified OPSD)."""

    thinking: bool | None = None

    def __call__(self, rollout: Rollout, group: Group) -> list[Teaching]:
        problem, fields = group.problem, Solution()(rollout, group)
        if fields is None:
            return []
        system = tuple(m for m in worded(problem, "student", {}) if m["role"] == "system")
        alone = (*system, worded(problem, "reference", fields)[-1])
        views = {
            "teacher": View(messages=worded(problem, "solution", fields), thinking=self.thinking),
            "reference": View(messages=alone, thinking=self.thinking),
            "base": student_view(rollout, problem),
        }
        return [Teaching(views=views)]


@dataclass(frozen=True)
class FromAnotherProblem:
    """Null control: the inner context of another problem, the donor group's, around this group's own question.

    With `keep_answer`, answer and solution stay the problem's own and only peers are foreign. Needs the LendGroups stage.
    """

    context: Context
    keep_answer: bool = False

    def __call__(self, rollout: Rollout, group: Group) -> list[Teaching]:
        return self.context(*lent(rollout, group, keep_answer=self.keep_answer))


def next_of_another(groups: Sequence[Group]) -> list[int | None]:
    """For every group of a step the place of the next group of another problem, round the end; a step may hold one problem twice."""
    prompts = [g.problem.prompt for g in groups]
    places = range(len(groups))
    return [next((j for j in (*places[i + 1 :], *places[:i]) if prompts[j] != prompts[i]), None) for i in places]


def lent(rollout: Rollout, group: Group, *, keep_answer: bool = False) -> tuple[Rollout, Group]:
    """The question and rollout of a group, with all that is known about its donor."""
    assert group.donor is not None, "LendGroups must run before this context"
    own, other = group.problem, group.donor.problem
    known = own if keep_answer else other
    foreign = replace(own, answer=known.answer, solution=known.solution, privileged_context=known.privileged_context, columns=known.columns)
    donors = group.donor.rollouts
    shown = rollout if keep_answer else replace(rollout, feedback=donors[rollout.index % len(donors)].feedback)
    return shown, Group(problem=foreign, rollouts=donors, notes=group.notes if keep_answer else group.donor.notes)


def holds(context: object, kind: type) -> bool:
    """Whether a context is of this kind, or any part inside it is."""
    inside = vars(context).values() if is_dataclass(context) else context if isinstance(context, tuple) else ()
    return isinstance(context, kind) or any(holds(part, kind) for part in inside)


def student_view(rollout: Rollout, problem: Problem) -> View:
    """The student's prompt as it was sampled from, read by the teacher's weights."""
    return View(messages=answered(rollout, problem), prompt_ids=tuple(rollout.prompt_ids))


def without_thinking(text: str) -> str:
    """A completion without its think block: what follows the last `</think>`."""
    return text.rsplit("</think>", 1)[-1].strip()
