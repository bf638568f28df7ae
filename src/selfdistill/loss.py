"""The objective: one expression over per-token signals, and the sums a step's metrics are made of."""

import torch
from jaxtyping import Float
from torch import Tensor

from selfdistill.method import Method
from selfdistill.types import TokenSignals


def objective(method: Method, signals: TokenSignals) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """loss = sum_t s_distill w D - s_policy PG(rho, A) + s_label (-log S(y)) + s_reference KL(pi || pi_0), and detached sums over tokens.

    Sums of micro-batches add up to those of the step; `metrics` in metrics.py turns them into means.
    """
    batch, sums = signals.batch, {}
    terms = []
    if method.distill_coef:
        terms.append(("distill", batch.distill_scale, method.token_weight(signals).detach() * signals.divergence))
    if method.policy_coef:
        surrogate, clipped = method.policy_loss(signals, method.credit(signals).detach())
        terms.append(("policy", batch.policy_scale, -surrogate))
        sums["clipped"] = clipped.sum().float()
    if method.label_coef:
        terms.append(("label", batch.label_scale, -signals.logp))
    if method.reference_coef:
        terms.append(("reference", batch.reference_scale, signals.reference_kl))
    parts = {name: (scale[batch.sample] * value).sum() for name, scale, value in terms}
    loss = torch.stack(list(parts.values())).sum()
    return loss, {f"loss_{name}": part.detach() for name, part in parts.items()} | _sums(signals) | sums


def _sums(signals: TokenSignals) -> dict[str, Float[Tensor, ""]]:
    """Totals over tokens, from which the step's means are taken."""
    batch = signals.batch
    ones = torch.ones_like(signals.logp)
    sums = {
        "tokens": ones.sum(),
        "taught_tokens": signals.taught.sum().float(),
        "entropy": signals.entropy.sum(),
        "target_entropy": signals.target_entropy.sum(),
        "divergence": signals.divergence.sum(),
        "log_ratio": signals.log_ratio.sum(),
        "reference_kl": signals.reference_kl.sum(),
        "engine_gap": (signals.policy_logp - batch.behavior_logp).abs().sum(),
    }
    return {name: value.detach() for name, value in sums.items()}
