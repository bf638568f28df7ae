"""Rows whose pass is recorded: all that it reads and leaves, each at its place in memory for as long as rows and storage stay as they are."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfdistill.heads import Head
from selfdistill.sampling.cache import RolloutCache
from selfdistill.sampling.choosing import Choice
from selfdistill.sampling.replay import Replay


@dataclass(kw_only=True, eq=False)
class Standing:
    """A token a row goes in, the next one comes out in its place, with its log-prob."""

    backbone: nn.Module
    head: Head
    cache: RolloutCache
    choice: Choice
    token: Int[Tensor, " rows"]
    position: Int[Tensor, " rows"]
    padding: Int[Tensor, " rows"]
    place: Int[Tensor, " rows"]
    uniform: Float[Tensor, " prompts"]
    column: Int[Tensor, " one"]
    near: float
    """How far rounding may move log-probs."""
    numbers: Int[Tensor, " columns"]
    """Of storage's columns."""
    logp: Float[Tensor, " rows"]
    replay: Replay = field(init=False)

    @classmethod
    def begin(cls, *, cache: RolloutCache, token: Tensor, position: Tensor, uniform: Tensor, **rest: Any) -> "Standing":
        """One token more a row, by a pass that is recorded. Raises Refused with rows and cache as they were."""
        cache.stand()
        width, device = cache.columns[0].filled[0].shape[2], token.device
        own = {"token": token.clone(), "position": position.clone(), "uniform": uniform.clone(), "logp": torch.zeros(len(token), device=device)}
        columns = {"column": torch.tensor([cache.get_seq_length()], device=device), "numbers": torch.arange(width, device=device)}
        standing = cls(cache=cache, **own, **columns, **rest)
        standing.replay = Replay(standing._step, [standing.token, standing.logp, standing.position, standing.column], near=standing.near)
        cache.advance()
        return standing

    def go_on(self, uniform: Float[Tensor, " prompts"]) -> None:
        """One token more a row."""
        self.uniform.copy_(uniform)
        self.replay()
        self.cache.advance()

    def _step(self) -> None:
        hidden = (self.numbers > self.column) | (self.numbers < self.padding[:, None])
        kind = self.cache.columns[0].filled[0].dtype
        mask = torch.zeros(hidden.shape, dtype=kind, device=hidden.device).masked_fill_(hidden, torch.finfo(kind).min)
        with self.cache.at(self.column):
            states = self.backbone(
                self.token[:, None], attention_mask=mask[:, None, None], position_ids=self.position[:, None], past_key_values=self.cache, use_cache=True
            ).last_hidden_state
        token, logp = self.choice(self.head(states[:, -1]), self.uniform[self.place])
        self.token.copy_(token)
        self.logp.copy_(logp)
        self.position += 1
        self.column += 1
