"""What is trained on: problems and the verifier that belongs to them."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

from selfdistill.types import Problem


@runtime_checkable
class Task(Protocol):
    """A dataset with its verifier and the words it puts around privileged text."""

    @property
    def templates(self) -> Mapping[str, str]: ...

    def problems(self, split: Literal["train", "test"]) -> Sequence[Problem]:
        """The problems of a split; the splits share none."""
        ...

    def verify(self, problem: Problem, completion: str) -> float | None:
        """1 right, 0 wrong, None where it cannot be told."""
        ...
