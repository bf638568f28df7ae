"""What is trained on: problems and the verifier that belongs to them."""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from selfdistill.types import Problem


@runtime_checkable
class Task(Protocol):
    """A dataset with its verifier.

    Two more attributes are read where a task has them: `isolated = True` runs `verify` in processes that are killed when it
    hangs, and `feedback(problem, completion) -> str` is what the environment says about a completion that is not right.
    """

    def problems(self, split: Literal["train", "test"]) -> Sequence[Problem]:
        """The problems of a split; the splits share none."""
        ...

    def verify(self, problem: Problem, completion: str) -> float | None:
        """1 right, 0 wrong, None where it cannot be told."""
        ...
