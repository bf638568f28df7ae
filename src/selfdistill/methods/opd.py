"""OPD: an external teacher scores the student's own tokens."""

from selfdistill.advantages import TeacherCredit
from selfdistill.contexts import SamePrompt
from selfdistill.method import Method
from selfdistill.teachers import External, TeacherWeights


def opd(*, teacher: TeacherWeights = External()) -> Method:
    """Policy gradient with A_t = log T(y_t) - log S(y_t): the sampled-token estimate of the gradient of KL(S || T)."""
    return Method(context=SamePrompt(), teacher=teacher, credit=TeacherCredit(), distill_coef=0.0, policy_coef=1.0)
