"""From logits to tokens, for all rows at once: temperature, top-k, top-p, and the log-prob that the chosen token had before both."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LIKELY = 256
"""Tokens among which the last one within top_p is looked for before a whole vocabulary is sorted."""
STRETCH = 256
"""Tokens of the vocabulary whose weights are summed before any running sum is made."""
BELOW_ONE = 1 - 2**-52
"""A uniform number times this times a sum stays below the sum in float64."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """p(y) ~ exp(z_y / temperature) among the top_k likeliest, of these among the fewest that hold top_p of their mass; temperature 0 is greedy.

    top_k 0 and top_p 1 cut nothing. Tokens as likely as the last one that is kept are kept too.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __call__(self, logits: Float[Tensor, "rows vocab"], uniform: Float[Tensor, " rows"]) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
        """A token a row, and log p of it before top-k and top-p; under greedy decoding at temperature 1. Overwrites the logits."""
        scaled = logits if self.temperature in (0, 1) else logits.div_(self.temperature)
        peak, likeliest = scaled.max(-1, keepdim=True)
        weight = scaled.sub_(peak).exp_()
        sums = _stretch_sums(weight)
        total = sums.sum(-1)
        if self.temperature == 0:
            return likeliest[:, 0], -total.log().float()
        kept = self._kept(weight)
        token = _drawn(kept, sums if kept is weight else _stretch_sums(kept), uniform)
        return token, (weight.gather(-1, token[:, None])[:, 0].double().log() - total.log()).float()

    def _kept(self, weight: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
        """The weights with 0 where a token is cut."""
        if 0 < self.top_k < weight.shape[1]:
            weight = weight.masked_fill(weight < weight.topk(self.top_k).values[:, -1:], 0)
        if self.top_p < 1:
            weight = weight.masked_fill(weight < _least_kept(weight, self.top_p), 0)
        return weight


def _least_kept(weight: Float[Tensor, "rows vocab"], top_p: float) -> Float[Tensor, "rows 1"]:
    """The smallest weight among the fewest that hold top_p of the mass."""
    enough = top_p * weight.sum(-1, keepdim=True, dtype=torch.float64)
    # a CPU is slow to sort a vocabulary; an accelerator is not, and would be waited for here
    likely = LIKELY if weight.device.type == "cpu" else weight.shape[1]
    least, held = _least_of(weight.topk(min(likely, weight.shape[1])).values, enough)
    if likely < weight.shape[1] and not bool(held.all()):
        more = (~held[:, 0]).nonzero()[:, 0]
        least[more] = _least_of(weight[more].sort(descending=True).values, enough[more])[0]
    return least


def _least_of(falling: Float[Tensor, "rows likely"], enough: Float[Tensor, "rows 1"]) -> tuple[Float[Tensor, "rows 1"], Bool[Tensor, "rows 1"]]:
    """The first weight with which the running sum is enough, the last one otherwise; and whether it is."""
    mass = falling.cumsum(-1, dtype=torch.float64)
    place = (mass < enough).sum(-1, keepdim=True)
    return falling.gather(-1, place.clamp(max=falling.shape[1] - 1)), place < falling.shape[1]


def _stretch_sums(weight: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows stretches"]:
    whole = weight.shape[1] // STRETCH * STRETCH
    sums = weight[:, :whole].unflatten(1, (-1, STRETCH)).sum(-1) if whole else weight[:, :0]
    return torch.cat([sums, weight[:, whole:].sum(-1, keepdim=True)], dim=1).double()


def _drawn(weight: Float[Tensor, "rows vocab"], sums: Float[Tensor, "rows stretches"], uniform: Float[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """The first token whose running sum exceeds uniform x total: by stretches, then inside one, in float64 so that rare tokens keep their share."""
    running = sums.cumsum(-1)
    aim = (uniform * BELOW_ONE * running[:, -1])[:, None]
    stretch = (running <= aim).sum(-1, keepdim=True)
    place = stretch * STRETCH + torch.arange(min(STRETCH, weight.shape[1]), device=weight.device)
    inside = weight.gather(-1, place.clamp(max=weight.shape[1] - 1)).double().masked_fill(place >= weight.shape[1], 0)
    within = inside.cumsum(-1)
    # the sums of a stretch in two orders differ by rounding
    rest = (aim - running.gather(-1, stretch) + sums.gather(-1, stretch)).clamp(min=0).minimum(within[:, -1:] * BELOW_ONE)
    return (stretch * STRETCH + (within <= rest).sum(-1, keepdim=True))[:, 0]
