"""Ablations: the same method without one of its parts. Each raises ValueError for a method that has no such part."""

from dataclasses import replace

from selfdistill.divergences import Divergence, reversed_direction, unclipped
from selfdistill.method import Method
from selfdistill.teachers import External, Frozen, Live, TeacherWeights
from selfdistill.token_weights import Uniform


def constant_weight(method: Method, *, value: float = 1.0) -> Method:
    """All tokens weigh `value`: what the weight's shape does (PW-OPSD's mean is 0.771)."""
    if not method.distill_coef or method.token_weight == Uniform(value):
        raise ValueError(f"this method already weighs every token by {value}; set method.value")
    return replace(method, token_weight=Uniform(value))


def no_clip(method: Method) -> Method:
    """Entries of the divergence are not clipped."""
    return replace(method, divergence=unclipped(_read(method)))


def other_direction(method: Method) -> Method:
    """KL(S || T) for KL(T || S), and the other way round, under the same clip and over the same entries."""
    return replace(method, divergence=reversed_direction(_read(method)))


def other_weights(method: Method, *, weights: TeacherWeights | None = None) -> Method:
    """Other weights read the teacher's prompts: those given, else live ones for frozen ones, frozen ones for any that move."""
    if not method.reads_teacher or isinstance(method.teacher, External):
        raise ValueError("this method's teacher is another model or none, which no other weights of the student can stand in for")
    if weights == method.teacher:
        raise ValueError(f"this method's prompts are already read by {weights}; set method.weights")
    return replace(method, teacher=weights or (Live() if method.teacher == Frozen() else Frozen()))


def _read(method: Method) -> Divergence:
    if not method.distill_coef:
        raise ValueError("this method's loss has no divergence: distill_coef is 0")
    return method.divergence
