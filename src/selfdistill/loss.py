"""The objective: one expression over per-token signals, and the sums a step's metrics are made of."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from selfdistill.method import Method
from selfdistill.token_weights import Reporting
from selfdistill.types import TokenSignals


def objective(method: Method, signals: TokenSignals) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """loss = sum_t s_distill w D - s_policy PG(rho, A) + s_label KL(label || S) + s_reference KL(pi || pi_0), and detached sums over tokens.

    Sums of micro-batches add up to those of the step; `metrics` in metrics.py turns them into means. They run over the step's own
    rollouts: texts that the label term alone reads beside them do not count.
    """
    batch, sums = signals.batch, {}
    counted = _shares(batch.student_token, signals.logp)
    counted = counted if method.labels is None else counted * (batch.label_scale == 0)[batch.sample]
    terms = []
    if method.distill_coef:
        terms.append(("distill", batch.distill_scale, method.token_weight(signals).detach() * signals.divergence))
        sums |= _reported(method.token_weight, signals)
    if method.policy_coef:
        surrogate, clipped = method.policy_loss(signals, method.credit(signals).detach())
        terms.append(("policy", batch.policy_scale, -surrogate))
        sums["clipped"] = (clipped * counted).sum()
    if method.label_coef:
        terms.append(("label", batch.label_scale, signals.label_kl))
    if method.reference_coef:
        terms.append(("reference", batch.reference_scale, signals.reference_kl))
    parts = {name: (scale[batch.sample] * value).sum() for name, scale, value in terms}
    loss = torch.stack(list(parts.values())).sum()
    return loss, {f"loss_{name}": part.detach() for name, part in parts.items()} | _sums(signals, counted) | sums


def _shares(student_token: Int[Tensor, " tokens"], like: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    """1 / K where K teachers read the same token, so that it counts once."""
    ones = torch.ones_like(like)
    return 1 / torch.zeros_like(like).index_add(0, student_token, ones)[student_token]


def _reported(part: object, signals: TokenSignals) -> dict[str, Float[Tensor, ""]]:
    """What a part has to say of itself, as totals and what they are to be divided by."""
    means = part.means(signals) if isinstance(part, Reporting) else {}
    return {f"{what}_{name}": value.detach() for name, pair in means.items() for what, value in zip(("total", "count"), pair, strict=True)}


def _sums(signals: TokenSignals, counted: Float[Tensor, " tokens"]) -> dict[str, Float[Tensor, ""]]:
    """Totals over the tokens that count, each once however many teachers read it, from which the step's means are taken."""
    values = {
        "tokens": torch.ones_like(signals.logp),
        "taught_tokens": signals.taught.float(),
        "entropy": signals.entropy,
        "target_entropy": signals.target_entropy,
        "divergence": signals.divergence,
        "log_ratio": signals.log_ratio,
        "reference_kl": signals.reference_kl,
        "engine_gap": (signals.policy_logp - signals.batch.behavior_logp).abs(),
    }
    return {name: (value.detach() * counted).sum() for name, value in values.items()}
