"""What is trained on: problems and the verifier that belongs to them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, runtime_checkable

from selfdistill.types import Problem


@runtime_checkable
class Verdict(Protocol):
    """What a task's checker says of one step of a completion."""

    @property
    def text(self) -> str:
        """The step as it was written; blank where there is nothing."""
        ...

    @property
    def wrong(self) -> bool:
        """It does not hold and was let stand."""
        ...


def first_wrong(verdicts: Sequence[Verdict]) -> int | None:
    """Index of the first step that is wrong; None where all hold or were mended."""
    return next((i for i, verdict in enumerate(verdicts) if verdict.wrong), None)


@runtime_checkable
class Task(Protocol):
    """A dataset with its verifier.

    More attributes are read where a task has them. `isolated = True` runs `verify` in processes that are killed when it hangs.
    `feedback(problem, completion) -> str` is what the environment says about a completion that is not right. `critique(problem,
    completion) -> str` is the completion mended from its first error on. `judge(problem, completion)` is a Verdict a step, and one
    on the answer. `lessons(problem, completion)` is what an attempt teaches beyond its problem: mappings with "title", "principle",
    "when" (a skill) or "description", "why", "avoid" (a mistake). `concepts(problem) -> list[str]` are the words that feedback on it must
    hold one of. A problem's column `domain` lets evaluations tell domains apart.
    """

    def problems(self, split: Literal["train", "test"]) -> Sequence[Problem]:
        """The problems of a split; the splits share none."""
        ...

    def verify(self, problem: Problem, completion: str) -> float | None:
        """1 right, 0 wrong, None where it cannot be told."""
        ...


@contextmanager
def asking(task: Task, name: str, *, otherwise: str) -> Iterator[Callable[..., Any]]:
    """The task's own `name(problem, completion)`, for a stage that cannot do without it.

    Raises ValueError where the task has none, closed by what to do otherwise, and where it raises itself.
    """
    speak, who = getattr(task, name, None), type(task).__name__
    if speak is None:
        raise ValueError(f"the task {who} has no {name}(problem, completion); {otherwise}")
    try:
        yield speak
    except Exception as error:  # a user's code may raise anything; the run stops with its words
        raise ValueError(f"the {name} of {who} raised {type(error).__name__}: {error}") from error
