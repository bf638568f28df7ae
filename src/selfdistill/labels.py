"""What the label term reads where it is not the step's own rollouts: the step's groups in, further rollouts and their factors out.

A rollout's `labels` say what is taught at each of its tokens; without them each token is its own label. Such rollouts are in no
other term of the loss, and in no reward, length or count.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selfdistill.types import Group, Rollout

Labels = Callable[[Sequence[Group]], list[tuple[Rollout, float]]]
"""(all groups of the step) -> rollouts, and what each of their tokens counts in the label term."""


@dataclass(frozen=True)
class WindowMean:
    """(1 / W) sum over the step's W windows of (1 / length) sum over the window's tokens (TOPD, 2606.00305).

    [open] A window that ended early is divided by `length` too, as the equation is written.
    """

    length: int
    """Tokens of a whole window."""

    def __call__(self, groups: Sequence[Group]) -> list[tuple[Rollout, float]]:
        windows = [w for g in groups for r in g.rollouts for w in r.windows]
        return [(w, 1 / (self.length * len(windows))) for w in windows]
