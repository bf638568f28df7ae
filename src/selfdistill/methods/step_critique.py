"""Step-aligned critique (2606.11173): the teacher reads this very rollout, mended from its first error on."""

from selfdistill.contexts import Critique, Privileged
from selfdistill.critics import Critic, ModelCritic
from selfdistill.feedback import WriteCritiques
from selfdistill.method import Method
from selfdistill.teachers import Frozen, TeacherWeights


def step_critique(*, critic: Critic = ModelCritic(), teacher: TeacherWeights = Frozen()) -> Method:
    """L = mean_t KL(T_0(. | q, critique, y_<t) || S(. | q, y_<t)), the critique equal to y word for word up to its first error.

    [open] No entry clip; temperature 1. The teacher thinks, the student's flag is the recipe's. The critic is the model itself, greedy,
    shown the answer; `TaskChecker()` is the task's own.
    """
    return Method(feedback=(WriteCritiques(critic),), context=Privileged((Critique(),), thinking=True), teacher=teacher)
