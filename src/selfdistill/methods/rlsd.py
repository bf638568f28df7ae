"""RLSD (2604.03128): outcome credit whose size at each token is the privileged reading's opinion of it."""

from dataclasses import replace

from selfdistill.advantages import ReweightedCredit
from selfdistill.contexts import Privileged, Solution
from selfdistill.method import Method
from selfdistill.methods.grpo import grpo
from selfdistill.policy_losses import ClippedRatio, PolicyLoss
from selfdistill.reductions import Reduction, SequenceMean
from selfdistill.teachers import Live, TeacherWeights


def rlsd(*, clip: float = 0.2, teacher: TeacherWeights = Live(), policy_loss: PolicyLoss = ClippedRatio(), reduction: Reduction = SequenceMean()) -> Method:
    """GRPO with A_t = A clip(exp(sign(A) Delta_t), 1 - clip, 1 + clip); needs groups of at least 2.

    clip 0.2 is the code's; ratio and mean are GRPO's unless given, as the paper's run gives them.
    [open] The reading is the live student's, shown the reference solution; rollouts without one keep A.
    """
    base = replace(grpo(), policy_loss=policy_loss, reduction=reduction)
    return replace(base, context=Privileged((Solution(),)), teacher=teacher, credit=ReweightedCredit(clip))
