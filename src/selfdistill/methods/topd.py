"""TOPD (2606.00305): on-policy distillation that also repairs where student and teacher would write different things next."""

from dataclasses import replace

from selfdistill.contexts import Privileged, Solution
from selfdistill.divergences import ReverseKL
from selfdistill.labels import WindowMean
from selfdistill.method import Method
from selfdistill.methods.gkd import gkd
from selfdistill.teachers import External, Frozen, TeacherWeights
from selfdistill.transport import ExactTransport, Transport
from selfdistill.windows import Lesson, Transported, TransportWindows


def topd(
    *,
    teacher: TeacherWeights = External(),
    window: int = 50,
    share: float = 0.0225,
    control_share: float = 0.0225,
    controls: int = 64,
    trajectory_coef: float = 1.0,
    transport: Transport = ExactTransport(),
    lesson: Lesson = Transported(),
) -> Method:
    """L = mean_t KL(S_t || T_t) + trajectory_coef mean over kept windows of (1/K) sum_i KL(y~_i || S(. | q, y_<t, s_<i)).

    [open] token mean; coefficient 1; windows at temperature 1, K dividing those that ended early; at most 64 low-loss probes a step.
    Control: lesson=TeacherWindow().
    """
    stage = TransportWindows(length=window, share=share, control_share=control_share, controls=controls, transport=transport, lesson=lesson)
    return replace(gkd(divergence=ReverseKL(), teacher=teacher), feedback=(stage,), labels=WindowMean(window), label_coef=trajectory_coef)


def topd_self(*, teacher: TeacherWeights = Frozen(), lesson: Lesson = Transported()) -> Method:
    """TOPD whose teacher is the model itself, shown the reference solution under OPSD's words."""
    return replace(topd(teacher=teacher, lesson=lesson), context=Privileged((Solution(),), thinking=True))
