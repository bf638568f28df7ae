"""Rows whose pass is recorded: all that it reads and leaves, each at its place in memory for as long as rows and storage stay as they are."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfdistill.heads import Head
from selfdistill.sampling.cache import RolloutCache, states_behind
from selfdistill.sampling.choosing import Choice
from selfdistill.sampling.masks import hiding
from selfdistill.sampling.replay import Replay


@dataclass(kw_only=True, eq=False)
class Standing:
    """A token a row goes in, the next one comes out in its place, with its log-prob: at once by a pass that is recorded, then by `go_on`.

    Raises Refused with rows and cache as they were.
    """

    backbone: nn.Module
    head: Head
    cache: RolloutCache
    choice: Choice
    token: Int[Tensor, " rows"]
    position: Int[Tensor, " rows"]
    padding: Int[Tensor, " rows"]
    place: Int[Tensor, " rows"]
    uniform: Float[Tensor, " prompts"]
    near: float
    """How far rounding may move log-probs."""

    def __post_init__(self) -> None:
        self.cache.stand()
        device = self.token.device
        # places of its own, which others do not write
        self.token, self.position, self.uniform = self.token.clone(), self.position.clone(), self.uniform.clone()
        self.logp = torch.zeros(len(self.token), device=device)
        self.column, self.columns = torch.tensor([self.cache.get_seq_length()], device=device), torch.arange(self.cache.like.shape[2], device=device)
        self.replay = Replay(self._step, [self.token, self.logp, self.position, self.column], near=self.near)
        self.cache.advance()

    def go_on(self, uniform: Float[Tensor, " prompts"]) -> None:
        """One token more a row."""
        self.uniform.copy_(uniform)
        self.replay()
        self.cache.advance()

    def _step(self) -> None:
        hidden = (self.columns > self.column) | (self.columns < self.padding[:, None])
        with self.cache.at(self.column):
            states = states_behind(self.backbone, self.cache, self.token, self.position, hiding(hidden, dtype=self.cache.like.dtype))
        token, logp = self.choice(self.head(states), self.uniform[self.place])
        self.token.copy_(token)
        self.logp.copy_(logp)
        self.position += 1
        self.column += 1
