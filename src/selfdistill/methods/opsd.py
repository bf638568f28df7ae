"""OPSD (2601.18734): the same model, shown the reference solution, teaches itself on its own rollouts."""

from selfdistill.contexts import Context, Privileged, Solution
from selfdistill.divergences import ForwardKL
from selfdistill.method import Method
from selfdistill.teachers import Frozen, TeacherWeights


def opsd(*, clip: float = 0.05, teacher: TeacherWeights = Frozen(), context: Context = Privileged((Solution(),), thinking=True)) -> Method:
    """L = mean_t sum_v min(T(v) (log T(v) - log S(v)), clip) at temperature 1.1, token mean (official code).

    Ablation: context=Privileged((Answer(),), thinking=True), HSD's "OPSD (answer)".
    """
    return Method(
        context=context,
        teacher=teacher,
        divergence=ForwardKL(clip),
        loss_temperature=1.1,
    )
