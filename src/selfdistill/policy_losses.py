"""The policy-gradient term: TokenSignals and a credit [tokens] in, the surrogate to be *raised* [tokens] out.

rho = exp(policy_logp - proximal_logp) is clipped; exp(proximal_logp - behavior_logp), truncated at `engine_cap` and without
gradient, corrects what the engine sampled under older or differently rounded weights. Neither is applied twice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from selfdistill.types import TokenSignals

PolicyLoss = Callable[[TokenSignals, Float[Tensor, " tokens"]], tuple[Float[Tensor, " tokens"], Bool[Tensor, " tokens"]]]
"""Returns the surrogate and where its clip was active."""


@dataclass(frozen=True)
class ClippedRatio:
    """min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), a ratio a token (PPO, GRPO; DAPO: clip_high 0.28)."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    engine_cap: float = 2.0
    pointwise: ClassVar[bool] = True

    def __call__(self, signals: TokenSignals, credit: Float[Tensor, " tokens"]) -> tuple[Float[Tensor, " tokens"], Bool[Tensor, " tokens"]]:
        log_rho, correction = _log_ratios(signals, self.engine_cap)
        surrogate, clipped = _clip(log_rho.exp(), credit, self.clip_low, self.clip_high)
        return correction * surrogate, clipped


@dataclass(frozen=True)
class SequenceRatio:
    """GSPO: one ratio a rollout, s = (pi / pi_old)^(1/|y|), clipped at 3e-4 below and 4e-4 above (2507.18071).

    As in GSPO-token, each token carries the value s and the gradient s grad log pi(y_t), so the sample's mean is GSPO's.
    """

    clip_low: float = 3e-4
    clip_high: float = 4e-4
    engine_cap: float = 2.0

    def __call__(self, signals: TokenSignals, credit: Float[Tensor, " tokens"]) -> tuple[Float[Tensor, " tokens"], Bool[Tensor, " tokens"]]:
        log_rho, correction = _log_ratios(signals, self.engine_cap)
        mean = signals.sample_mean(log_rho.detach())[signals.batch.sample]
        ratio = (mean + signals.policy_logp - signals.policy_logp.detach()).exp()
        surrogate, clipped = _clip(ratio, credit, self.clip_low, self.clip_high)
        return correction * surrogate, clipped


def _log_ratios(signals: TokenSignals, engine_cap: float) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """log rho with gradient, and the truncated correction of the engine's probabilities."""
    batch = signals.batch
    proximal = signals.policy_logp.detach() if batch.proximal_logp is None else batch.proximal_logp
    return signals.policy_logp - proximal, (proximal - batch.behavior_logp).exp().clamp(max=engine_cap)


def _clip(
    ratio: Float[Tensor, " tokens"], credit: Float[Tensor, " tokens"], low: float, high: float
) -> tuple[Float[Tensor, " tokens"], Bool[Tensor, " tokens"]]:
    plain, bounded = ratio * credit, ratio.clamp(1 - low, 1 + high) * credit
    return torch.minimum(plain, bounded), bounded < plain
