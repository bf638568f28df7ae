"""The order in which problems are trained on: a shuffled pass after another, resumable at any position."""

from collections.abc import Sequence

import torch

from selfdistill.types import Problem


class ProblemStream:
    """Draws problems without end; every epoch is a new permutation by (seed, epoch). Raises ValueError on an empty dataset."""

    def __init__(self, problems: Sequence[Problem], *, seed: int) -> None:
        if not len(problems):
            raise ValueError("the dataset has 0 problems to train on; check the file, its split and its filters")
        self.problems, self.seed, self.drawn = problems, seed, 0
        self._epoch, self._permutation = -1, []

    def draw(self, n: int) -> list[Problem]:
        """The next n problems; a batch larger than the dataset repeats some."""
        taken = [self._at(i) for i in range(self.drawn, self.drawn + n)]
        self.drawn += n
        return taken

    def _at(self, i: int) -> Problem:
        epoch, position = divmod(i, len(self.problems))
        return self.problems[self._order(epoch)[position]]

    def _order(self, epoch: int) -> list[int]:
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._permutation = epoch, torch.randperm(len(self.problems), generator=generator).tolist()
        return self._permutation
