"""What a token counts in its step: (trained tokens of the rollout, tokens and rollouts of the whole step) -> its factor in the loss.

Fixed from global counts before the first micro-batch, so accumulation and data parallelism are plain sums. `over` says whether
the divergence is averaged over taught rollouts or over all; every other term counts all.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

Over = Literal["taught", "all"]


@runtime_checkable
class Reduction(Protocol):
    @property
    def over(self) -> Over: ...

    def __call__(self, length: int, tokens: int, rollouts: int) -> float: ...


@dataclass(frozen=True)
class TokenMean:
    """1 / (all tokens of the step)."""

    over: Over = "taught"

    def __call__(self, length: int, tokens: int, rollouts: int) -> float:
        return 1 / tokens


@dataclass(frozen=True)
class SequenceMean:
    """1 / (tokens of the rollout x rollouts of the step): every rollout counts the same."""

    over: Over = "taught"

    def __call__(self, length: int, tokens: int, rollouts: int) -> float:
        return 1 / (length * rollouts)


@dataclass(frozen=True)
class Constant:
    """1 / (n x rollouts of the step) with a fixed n, so long rollouts weigh more (Dr. GRPO: n = the length limit)."""

    n: int
    over: Over = "taught"

    def __call__(self, length: int, tokens: int, rollouts: int) -> float:
        return 1 / (self.n * rollouts)
