"""From what the views predict to the distribution the student should match: {role: log-probs [tokens vocab]} in, log-probs out.

Pointwise in time and without gradient. The student's own detached log-probs are in the mapping too, as "student".
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Target = Callable[[Mapping[str, Float[Tensor, "tokens vocab"]]], Float[Tensor, "tokens vocab"]]


@dataclass(frozen=True)
class TeacherDistribution:
    """log T, the teacher's own distribution."""

    def __call__(self, views: Mapping[str, Float[Tensor, "tokens vocab"]]) -> Float[Tensor, "tokens vocab"]:
        return views["teacher"]


@dataclass(frozen=True)
class PMI:
    """softmax(log B + c tanh(D / c) / beta), D = log T - log R centred over the vocabulary (Purified OPSD, 2607.02234).

    T, R, B are the roles "teacher" (question and reference), "reference" (reference alone) and "base" (question alone).
    """

    clip: float = 10.0
    """c in nats; inf: none."""
    beta: float = 1.0

    def __call__(self, views: Mapping[str, Float[Tensor, "tokens vocab"]]) -> Float[Tensor, "tokens vocab"]:
        gain = views["teacher"] - views["reference"]
        gain = gain - gain.mean(-1, keepdim=True)
        return torch.log_softmax(views["base"] + self.bounded(gain) / self.beta, dim=-1)

    def bounded(self, gain: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """c tanh(gain / c)."""
        # inf times tanh(0) is no number
        return gain if self.clip == math.inf else self.clip * torch.tanh(gain / self.clip)


@dataclass(frozen=True)
class TrustRegion:
    """softmax((1 - mix) log T_frozen + mix log T_live): two readings of one privileged prompt (SDPO, 2601.20802).

    The roles are "teacher" (frozen weights) and "live" (the student's weights); mixing logits and mixing log-probs differ by a
    constant a token, which the softmax removes.
    """

    mix: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.mix <= 1:
            raise ValueError(f"TrustRegion(mix={self.mix}): mix must lie in [0, 1]")

    def __call__(self, views: Mapping[str, Float[Tensor, "tokens vocab"]]) -> Float[Tensor, "tokens vocab"]:
        return torch.log_softmax((1 - self.mix) * views["teacher"] + self.mix * views["live"], dim=-1)
