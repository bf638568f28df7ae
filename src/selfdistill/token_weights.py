"""How much each token's divergence counts: TokenSignals in, weights [tokens] out, without gradient.

Sees time, never the vocabulary, and one sample at a time: no weight may depend on another sample's tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from selfdistill.types import TokenSignals

TokenWeight = Callable[[TokenSignals], Float[Tensor, " tokens"]]
Means = Mapping[str, tuple[Float[Tensor, ""], Float[Tensor, ""]]]
"""By metric: a total, and the number it is divided by when all micro-batches are in."""


@runtime_checkable
class Reporting(Protocol):
    """A part that has something to say about a step beyond its weight."""

    def means(self, signals: TokenSignals) -> Means: ...


@dataclass(frozen=True)
class Uniform:
    """value at every token; the constant control of every schedule (PW-OPSD's mean is 0.771)."""

    value: float = 1.0
    pointwise: ClassVar[bool] = True

    def __call__(self, signals: TokenSignals) -> Float[Tensor, " tokens"]:
        return torch.full_like(signals.divergence, self.value)


@dataclass(frozen=True)
class PositionSigmoid:
    """floor + (1 - floor) sigmoid((frac_t - center) / width), frac_t = (t - 0.5) / L, t from 1 (PW-OPSD, 2605.21606)."""

    floor: float = 0.25
    center: float = 0.30
    width: float = 0.10
    pointwise: ClassVar[bool] = True

    def __call__(self, signals: TokenSignals) -> Float[Tensor, " tokens"]:
        batch = signals.batch
        fraction = (batch.position + 0.5) / batch.length[batch.sample]
        return self.floor + (1 - self.floor) * torch.sigmoid((fraction - self.center) / self.width)


@dataclass(frozen=True)
class ImportanceCap:
    """sg min(exp(logp - behavior_logp), cap), the sampled token's ratio to the policy that wrote it (SDPO, code)."""

    cap: float = 2.0
    pointwise: ClassVar[bool] = True

    def __call__(self, signals: TokenSignals) -> Float[Tensor, " tokens"]:
        return (signals.policy_logp.detach() - signals.batch.behavior_logp).exp().clamp(max=self.cap)


@dataclass(frozen=True)
class Product:
    """The product of several weights."""

    factors: tuple[TokenWeight, ...]

    @property
    def pointwise(self) -> bool:
        return all(getattr(factor, "pointwise", False) for factor in self.factors)

    def __call__(self, signals: TokenSignals) -> Float[Tensor, " tokens"]:
        return torch.stack([factor(signals) for factor in self.factors]).prod(0)

    def means(self, signals: TokenSignals) -> Means:
        """What its factors report."""
        return {name: value for factor in self.factors if isinstance(factor, Reporting) for name, value in factor.means(signals).items()}


@dataclass(frozen=True)
class TeacherConfidence:
    """exp(-H(T_t) / scale): a teacher that hesitates counts less."""

    scale: float = 1.0
    """In nats."""
    pointwise: ClassVar[bool] = True

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
    pointwise: ClassVar[bool] = True

    def __call__(self, signals: TokenSignals) -> Float[Tensor, " tokens"]:
        return (signals.target_entropy > self.threshold).to(signals.divergence.dtype)


@dataclass(frozen=True)
class ContentMean:
    """m_t L / sum m: under a mean over each rollout, the mean over its content alone, m = annotations[mask], 1 where no stage wrote one.

    0 on a rollout without content. By itself it is the ablation of `PolarityGate` without polarity.
    """

    mask: str = "content"

    def __call__(self, signals: TokenSignals) -> Float[Tensor, " tokens"]:
        content, batch = self.content(signals), signals.batch
        count = torch.zeros_like(batch.advantage).index_add(0, batch.sample, content).clamp(min=1)
        return content * (batch.trained / count)[batch.sample]

    def content(self, signals: TokenSignals) -> Float[Tensor, " tokens"]:
        """The mask itself."""
        return signals.batch.annotations.get(self.mask, torch.ones_like(signals.divergence))


@dataclass(frozen=True)
class PolarityGate:
    """rho m_t L / sum m, rho = o sign(a) if |a| > threshold else 0, a = masked mean_t clip(Delta_t, -clip, clip) (SGSD, 2605.28791).

    o = 1 where the reward is at least 1, else -1. rho = 1: the teacher supports what turned out right, or opposes what turned out wrong,
    and the student is drawn to it; rho = -1 pushes the student away. A rollout's tokens share one rho for each of its teachers.
    """

    clip: float = 3.0
    """Nats."""
    threshold: float = 0.05
    """Nats a token."""
    mask: str = "content"

    def __post_init__(self) -> None:
        if self.clip <= 0 or self.threshold < 0:
            raise ValueError(f"PolarityGate(clip={self.clip}, threshold={self.threshold}): clip must be above 0 and threshold not below")

    def __call__(self, signals: TokenSignals) -> Float[Tensor, " tokens"]:
        return self.polarity(signals)[signals.batch.sample] * ContentMean(self.mask)(signals)

    def polarity(self, signals: TokenSignals) -> Float[Tensor, " samples"]:
        """rho of each sample: a rollout under one of its teachers."""
        support = self.support(signals)
        outcome = torch.where(signals.batch.reward >= 1, 1.0, -1.0)
        return torch.where(support.abs() > self.threshold, outcome * support.sign(), 0.0)

    def support(self, signals: TokenSignals) -> Float[Tensor, " samples"]:
        """a, how much likelier the teacher finds what was written, in nats a token of content."""
        return signals.sample_mean(signals.log_ratio.clamp(-self.clip, self.clip), ContentMean(self.mask).content(signals))

    def means(self, signals: TokenSignals) -> Means:
        """Shares of teachers whose rho is 1, -1 and 0; their mean a; the share of content tokens that the clip cuts.

        [open] Every teacher of a rollout counts alike, whatever its share.
        """
        taught = signals.batch.taught.float()
        content = ContentMean(self.mask).content(signals) * signals.taught
        rho, teachers = self.polarity(signals), taught.sum()
        shares = {"helpful_share": rho > 0, "harmful_share": rho < 0, "neutral_share": rho == 0}
        return {name: ((which * taught).sum(), teachers) for name, which in shares.items()} | {
            "support": ((self.support(signals) * taught).sum(), teachers),
            "support_clip_share": ((content * (signals.log_ratio.abs() > self.clip)).sum(), content.sum()),
        }
