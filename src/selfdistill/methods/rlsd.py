"""RLSD (2604.03128): outcome credit whose size at each token is the privileged reading's opinion of it."""

from dataclasses import replace

from selfdistill.advantages import ReweightedCredit
from selfdistill.contexts import Privileged, Solution
from selfdistill.method import Method
from selfdistill.methods.grpo import grpo
from selfdistill.teachers import Live, TeacherWeights


def rlsd(*, clip: float = 0.2, teacher: TeacherWeights = Live()) -> Method:
    """GRPO with A_t = A clip(exp(sign(A) Delta_t), 1 - clip, 1 + clip); needs groups of at least 2.

    clip 0.2 is the code's. [open] The reading is the live student's, shown the reference solution; rollouts without one keep A.
    """
    return replace(grpo(), context=Privileged((Solution(),)), teacher=teacher, credit=ReweightedCredit(clip))
