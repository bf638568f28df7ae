"""GRPO with a method's own divergence beside it in one loss."""

from dataclasses import replace

from selfdistill.advantages import BlendedCredit, GroupRelative, OutcomeCredit
from selfdistill.method import Method


def grpo_plus(method: Method, *, distill_coef: float = 0.1) -> Method:
    """GRPO + distill_coef x the method's own divergence, under its reduction and policy loss (sources use 0.5, 0.1, 0.01)."""
    return replace(method, advantage=GroupRelative(), credit=OutcomeCredit(), policy_coef=1.0, distill_coef=distill_coef)


def grpo_blend(method: Method, *, outcome_share: float = 0.5) -> Method:
    """Policy gradient with A_t = outcome_share A + (1 - outcome_share) Delta_t, Delta of the method's own teacher (SDPO's blend with GRPO)."""
    return replace(method, advantage=GroupRelative(), credit=BlendedCredit(outcome_share), policy_coef=1.0, distill_coef=0.0)
