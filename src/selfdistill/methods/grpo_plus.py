"""GRPO with a method's own divergence beside it in one loss, or its teacher's credit inside it."""

from dataclasses import replace

from selfdistill.advantages import BlendedCredit, GroupRelative, OutcomeCredit
from selfdistill.contexts import NoTeacher
from selfdistill.method import Method


def grpo_plus(method: Method, *, distill_coef: float = 0.1) -> Method:
    """GRPO + distill_coef x the method's own divergence, under its reduction and policy loss (sources use 0.5, 0.1, 0.01).

    Raises ValueError for a method that has no divergence, or a credit of its own that the outcome's would take the place of.
    """
    if not _is_taught(method) or not method.distill_coef:
        raise ValueError("grpo_plus adds a method's divergence from its teacher to GRPO, and this one has none; grpo_blend takes a teacher's credit")
    if method.policy_coef and method.credit != OutcomeCredit():
        raise ValueError(f"grpo_plus would put the outcome's credit in the place of this method's own, {type(method.credit).__name__}; train it as it is")
    return replace(method, advantage=GroupRelative(), credit=OutcomeCredit(), policy_coef=1.0, distill_coef=distill_coef)


def grpo_blend(method: Method, *, outcome_share: float = 0.5) -> Method:
    """Policy gradient with A_t = outcome_share A + (1 - outcome_share) Delta_t, Delta of the method's own teacher (SDPO's blend with GRPO).

    Raises ValueError for a method without a teacher.
    """
    if not _is_taught(method):
        raise ValueError("grpo_blend mixes the outcome's credit with a teacher's, and this method has no teacher; wrap one that has, like grpo_blend(sdpo)")
    return replace(method, advantage=GroupRelative(), credit=BlendedCredit(outcome_share), policy_coef=1.0, distill_coef=0.0)


def _is_taught(method: Method) -> bool:
    return method.reads_teacher and not isinstance(method.context, NoTeacher)
