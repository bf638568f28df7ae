"""Step-aligned critique (2606.11173): the teacher reads this very rollout, mended from its first error on."""

from dataclasses import replace

from selfdistill.contexts import Critique, Privileged
from selfdistill.critics import Critic, ModelCritic
from selfdistill.feedback import WriteCritiques
from selfdistill.method import Method
from selfdistill.methods.opsd import opsd
from selfdistill.teachers import Frozen, TeacherWeights


def step_critique(*, critic: Critic = ModelCritic(), clip: float = 0.05, loss_temperature: float = 1.1, teacher: TeacherWeights = Frozen()) -> Method:
    """OPSD whose teacher reads a critique: L = mean_t KL(T_0(. | q, critique, y_<t) || S(. | q, y_<t)), the critique y itself up to its first error.

    [open] Entry clip, loss temperature and token mean are OPSD's; `clip=inf` is the formula alone. The teacher thinks, the student's flag is the
    recipe's. The critic is the model itself, greedy, shown the answer; `TaskChecker()` is the task's own.
    """
    read = opsd(clip=clip, teacher=teacher, context=Privileged((Critique(),), thinking=True))
    return replace(read, feedback=(WriteCritiques(critic),), loss_temperature=loss_temperature)
