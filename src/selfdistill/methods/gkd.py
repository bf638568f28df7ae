"""GKD (2306.13649): another model teaches the student on what it writes itself, and on references if asked."""

from selfdistill.contexts import SamePrompt
from selfdistill.divergences import JSD, Divergence
from selfdistill.method import Method
from selfdistill.sources import Mixed, OnPolicy
from selfdistill.teachers import External, TeacherWeights


def gkd(*, divergence: Divergence = JSD(0.5), on_policy_share: float = 1.0, teacher: TeacherWeights = External()) -> Method:
    """L = mean_t JSD_0.5(S_t, T_t) under the student's own prompt; lambda, the share of on-policy problems, is [open] 1."""
    source = OnPolicy() if on_policy_share == 1 else Mixed(on_policy_share)
    return Method(source=source, context=SamePrompt(), teacher=teacher, divergence=divergence)
