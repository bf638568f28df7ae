"""A method is a value: where rollouts come from, what a teacher reads and with whose weights, and how the student follows.

Parts are frozen dataclasses with `__call__`, so a method prints, pickles, compares and diffs.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from selfdistill.advantages import Advantage, Credit, GroupRelative, OutcomeCredit
from selfdistill.contexts import Context, NoTeacher
from selfdistill.divergences import Divergence, ForwardKL
from selfdistill.feedback import Feedback
from selfdistill.labels import Labels
from selfdistill.policy_losses import ClippedRatio, PolicyLoss
from selfdistill.reductions import Reduction, TokenMean
from selfdistill.sources import OnPolicy, RolloutSource
from selfdistill.targets import Target, TeacherDistribution
from selfdistill.teachers import Frozen, TeacherWeights
from selfdistill.token_weights import TokenWeight, Uniform


@dataclass(frozen=True, kw_only=True)
class Method:
    """loss = sum_tokens s_distill w D - s_policy PG(rho, A) + s_label KL(label || S) + s_reference KL(pi || pi_0).

    Each s is the term's coefficient times its sample's share of the step, from global counts. A coefficient of zero
    computes nothing. Raises ValueError where the parts cannot produce a loss.
    """

    source: RolloutSource = OnPolicy()
    feedback: tuple[Feedback, ...] = ()
    """Written about rollouts before packing, in this order."""
    context: Context = NoTeacher()
    teacher: TeacherWeights = Frozen()
    """Who "teacher" is in a view."""
    target: Target = TeacherDistribution()
    divergence: Divergence = ForwardKL()
    token_weight: TokenWeight = Uniform()
    advantage: Advantage = GroupRelative()
    credit: Credit = OutcomeCredit()
    policy_loss: PolicyLoss = ClippedRatio()
    labels: Labels | None = None
    """What the label term reads beside the step's rollouts; None: the rollouts, each token its own label."""
    distill_coef: float = 1.0
    policy_coef: float = 0.0
    label_coef: float = 0.0
    reference_coef: float = 0.0
    loss_temperature: float | None = 1.0
    """Divides both sides' logits inside the divergence; None: the temperature of the rollouts."""
    reduction: Reduction = TokenMean()

    def __post_init__(self) -> None:
        coefficients = (self.distill_coef, self.policy_coef, self.label_coef, self.reference_coef)
        if any(c < 0 for c in coefficients) or not any(coefficients):
            raise ValueError(f"coefficients must be >= 0 and one of them above 0, not {coefficients}; set distill_coef or policy_coef")
        if self.loss_temperature is not None and self.loss_temperature <= 0:
            raise ValueError(f"loss_temperature must be above 0, not {self.loss_temperature}; None takes the rollouts' own")

    @property
    def reads_teacher(self) -> bool:
        """Whether any term looks at what the teacher's views say."""
        return bool(self.distill_coef or (self.policy_coef and self.credit.reads_teacher))

    @property
    def pointwise(self) -> bool:
        """Whether every part of the loss declares that its value at a token depends on no other token, so that a rollout may be cut anywhere."""
        parts = (self.token_weight,) * bool(self.distill_coef) + (self.credit, self.policy_loss) * bool(self.policy_coef)
        return all(getattr(part, "pointwise", False) for part in parts)

    @property
    def reads_peer(self) -> bool:
        """Whether any part asks the model that learns beside this one."""
        return any(getattr(part, "reads_peer", False) for f in fields(self) for part in _inside(getattr(self, f.name)))


UNUSED = "-"


def describe(method: Method) -> dict[str, str]:
    """Every part of a method, by field; "-" for one that no term of its loss reads."""
    unused = _unused(method)
    return {name: UNUSED if name in unused else text for name, text in _written(method).items()}


def diff(one: Method, other: Method) -> dict[str, tuple[str, str]]:
    """The fields in which two methods differ, as (one, other), as far as they optimise something else; `besides` has the rest.

    Parts that neither's loss reads are no difference, nor is a coefficient of 1 beside 0 where a part of that term says the same. A credit that estimates
    the gradient of the other's divergence counts as that divergence, unless nothing else differs.
    """
    return _different(*_in_full(one, other)) or _different(one, other)


def besides(one: Method, other: Method) -> dict[str, tuple[str, str]]:
    """What differs and is no other objective: stages that only measure, and one gradient in full or estimated from the sampled tokens."""
    measured = tuple(", ".join(text_of(stage) for stage in method.feedback if _measures(stage)) or UNUSED for method in (one, other))
    found = {"measures, trains nothing": (measured[0], measured[1])} if measured[0] != measured[1] else {}
    whole = _in_full(one, other)
    if whole != (one, other) and _different(*whole):
        terms = [text_of(method.divergence if method.distill_coef else method.credit) for method in (one, other)]
        found["the same gradient in expectation"] = (terms[0], terms[1])
    return found


COEFFICIENTS = {"divergence": "distill_coef", "credit": "policy_coef", "labels": "label_coef"}
"""By a part that one term alone reads: the coefficient of that term."""


def _different(one: Method, other: Method) -> dict[str, tuple[str, str]]:
    """The fields whose text differs, without those that only measure and coefficients that say what a part already does."""
    one, other = (replace(method, feedback=tuple(stage for stage in method.feedback if not _measures(stage))) for method in (one, other))
    left, right, written = describe(one), describe(other), _written(other)
    different = (name for name, text in _written(one).items() if text != written[name])
    found = {name: (left[name], right[name]) for name in different if (left[name], right[name]) != (UNUSED, UNUSED)}
    for part, coefficient in COEFFICIENTS.items():
        if UNUSED in found.get(part, ()) and {getattr(one, coefficient), getattr(other, coefficient)} == {0, 1}:
            del found[coefficient]
    return found


def _in_full(one: Method, other: Method) -> tuple[Method, Method]:
    """Both methods; where just one of them estimates the gradient of the other's divergence, with that divergence in its credit's place."""
    whole = tuple(_with_divergence(method) for method in (one, other))
    alone = (whole[0] == one) != (whole[1] == other)
    return (whole[0], whole[1]) if alone and whole[0].divergence == whole[1].divergence else (one, other)


def _with_divergence(method: Method) -> Method:
    estimated: Divergence | None = getattr(method.credit, "estimates", None)
    if estimated is None or not method.policy_coef or method.distill_coef:
        return method
    return replace(method, divergence=estimated, token_weight=Uniform(), distill_coef=method.policy_coef, policy_coef=0.0)


def _measures(stage: Feedback) -> bool:
    return getattr(stage, "measures", False)


def _inside(value: Any) -> Iterator[Any]:
    """A part and those it is made of."""
    yield value
    inner = [getattr(value, f.name) for f in fields(value)] if dataclasses.is_dataclass(value) else value if isinstance(value, tuple) else ()
    for part in inner:
        yield from _inside(part)


def _unused(method: Method) -> set[str]:
    """Fields that only terms with a coefficient of zero would read; a stage that writes labels scores by the divergence too."""
    readers = {
        ("context", "teacher", "target"): method.reads_teacher,
        ("divergence",): method.distill_coef or method.labels,
        ("token_weight",): method.distill_coef,
        ("advantage",): method.policy_coef and method.credit.reads_advantage,
        ("credit", "policy_loss"): method.policy_coef,
        ("labels",): method.label_coef,
        ("loss_temperature",): method.reads_teacher or method.label_coef,
    }
    return {name for names, read in readers.items() if not read for name in names}


def _written(method: Method) -> dict[str, str]:
    return {f.name: text_of(getattr(method, f.name)) for f in fields(method)}


def text_of(value: Any) -> str:
    """A part as the call that makes it, without the fields left at their defaults."""
    if isinstance(value, tuple):
        return "(" + ", ".join(map(text_of, value)) + ("," if len(value) == 1 else "") + ")"
    if not dataclasses.is_dataclass(value):
        return getattr(value, "__qualname__", None) or repr(value)
    given = [f for f in fields(value) if f.repr and getattr(value, f.name) != f.default]
    return f"{type(value).__name__}({', '.join(f'{f.name}={text_of(getattr(value, f.name))}' for f in given)})"
