"""How much each token's divergence counts: TokenSignals in, weights [tokens] out, without gradient.

Sees time, never the vocabulary, and one sample at a time: no weight may depend on another sample's tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from selfdistill.types import TokenSignals

TokenWeight = Callable[[TokenSignals], Float[Tensor, " tokens"]]


@dataclass(frozen=True)
class Uniform:
    """value at every token; the constant control of every schedule (PW-OPSD's mean is 0.771)."""

    value: float = 1.0

    def __call__(self, signals: TokenSignals) -> Float[Tensor, " tokens"]:
        return torch.full_like(signals.divergence, self.value)


@dataclass(frozen=True)
class PositionSigmoid:
    """floor + (1 - floor) sigmoid((frac_t - center) / width), frac_t = (t - 0.5) / L, t from 1 (PW-OPSD, 2605.21606)."""

    floor: float = 0.25
    center: float = 0.30
    width: float = 0.10

    def __call__(self, signals: TokenSignals) -> Float[Tensor, " tokens"]:
        batch = signals.batch
        fraction = (batch.position + 0.5) / batch.length[batch.sample]
        return self.floor + (1 - self.floor) * torch.sigmoid((fraction - self.center) / self.width)


@dataclass(frozen=True)
class ImportanceCap:
    """sg min(exp(logp - behavior_logp), cap), the sampled token's ratio to the policy that wrote it (SDPO, code)."""

    cap: float = 2.0

    def __call__(self, signals: TokenSignals) -> Float[Tensor, " tokens"]:
        return (signals.policy_logp.detach() - signals.batch.behavior_logp).exp().clamp(max=self.cap)


@dataclass(frozen=True)
class Product:
    """The product of several weights."""

    factors: tuple[TokenWeight, ...]

    def __call__(self, signals: TokenSignals) -> Float[Tensor, " tokens"]:
        return torch.stack([factor(signals) for factor in self.factors]).prod(0)


@dataclass(frozen=True)
class TeacherConfidence:
    """exp(-H(T_t) / scale): a teacher that hesitates counts less."""

    scale: float = 1.0
    """In nats."""

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"TeacherConfidence(scale={self.scale}): scale must be above 0; Uniform() weighs all tokens alike")

    def __call__(self, signals: TokenSignals) -> Float[Tensor, " tokens"]:
        return torch.exp(-signals.target_entropy / self.scale)


@dataclass(frozen=True)
class TeacherUnsure:
    """1[H(T_t) > threshold], over the whole vocabulary: only where the teacher sees several ways on (EOPD, 2603.07079)."""

    threshold: float = 0.8
    """In nats."""

    def __call__(self, signals: TokenSignals) -> Float[Tensor, " tokens"]:
        return (signals.target_entropy > self.threshold).to(signals.divergence.dtype)
