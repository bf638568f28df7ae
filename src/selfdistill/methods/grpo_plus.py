"""Outcome credit and a dense teacher in one loss."""

from dataclasses import replace

from selfdistill.advantages import GroupRelative, OutcomeCredit
from selfdistill.method import Method


def grpo_plus(method: Method, *, distill_coef: float = 0.1) -> Method:
    """GRPO + distill_coef x the method's own divergence, under its reduction and policy loss (sources use 0.5, 0.1, 0.01)."""
    return replace(method, advantage=GroupRelative(), credit=OutcomeCredit(), policy_coef=1.0, distill_coef=distill_coef)
