"""The steps of a completion: its text in, pieces that join to it out; and which of its tokens belong to which piece."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

Splitter = Callable[[str], list[str]]
"""text -> pieces that join to the text; none is blank unless all of the text is."""


@dataclass(frozen=True)
class OpenedBy:
    """A step begins with the marker; what stands before the first one is a step of its own (ExpRL's `###`)."""

    marker: str = "###"

    def __call__(self, text: str) -> list[str]:
        first, *others = text.split(self.marker)
        return _joined([first, *(self.marker + other for other in others)])


@dataclass(frozen=True)
class ClosedBy:
    """A step ends with the marker, as a paragraph does with a blank line and the testbed's with `;`; what follows the last is a step of its own."""

    marker: str = "\n\n"

    def __call__(self, text: str) -> list[str]:
        *others, last = text.split(self.marker)
        return _joined([*(other + self.marker for other in others), last])


def step_of_token(ids: Sequence[int], pieces: Sequence[str], decode: Callable[[Sequence[int]], str]) -> list[int]:
    """The index of each token's piece: that in which the token's text ends; tokens without text belong to the last.

    A completion is never tokenised again: where a piece ends among the tokens is searched for by decoding the tokens before.
    """
    borders = accumulate(len(piece) for piece in pieces[:-1])
    starts = [bisect_right(range(1, len(ids) + 1), border, key=lambda n: len(decode(ids[:n]))) for border in borders]
    return [bisect_right(starts, t) for t in range(len(ids))]


def _joined(pieces: Sequence[str]) -> list[str]:
    """Blank pieces joined to the one behind them, at the end to the one before."""
    found: list[str] = []
    waiting = ""
    for piece in pieces:
        waiting += piece
        if waiting.strip():
            found.append(waiting)
            waiting = ""
    return [*found[:-1], found[-1] + waiting] if found else [waiting]
