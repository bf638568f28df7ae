"""EOPD (2603.07079): OPD that also follows the teacher's distribution where the teacher is unsure."""

from dataclasses import replace

from selfdistill.contexts import SamePrompt
from selfdistill.divergences import ReverseKL, TeacherTopK
from selfdistill.method import Method
from selfdistill.methods.opd import opd
from selfdistill.teachers import External, TeacherWeights
from selfdistill.token_weights import TeacherConfidence, TeacherUnsure


def eopd(*, threshold: float = 0.8, top_k: int = 16, distill_coef: float = 1.0, teacher: TeacherWeights = External()) -> Method:
    """OPD + distill_coef x mean_t 1[H(T_t) > threshold] KL(T'_t || S_t), T' the teacher's top_k renormalised; ratio clipped at 0.2."""
    return replace(opd(teacher=teacher), divergence=TeacherTopK(top_k), token_weight=TeacherUnsure(threshold), distill_coef=distill_coef)


def entropy_opd(*, scale: float = 1.0, teacher: TeacherWeights = External()) -> Method:
    """Reverse KL weighted by the teacher's confidence: L = mean_t exp(-H(T_t) / scale) KL(S_t || T_t), full vocabulary; weight and scale are [open]."""
    return Method(context=SamePrompt(), teacher=teacher, divergence=ReverseKL(), token_weight=TeacherConfidence(scale))
