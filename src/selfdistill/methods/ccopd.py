"""CCOPD (2605.30251): told a problem over several turns, the model follows what it would say itself had it been told at once."""

from selfdistill.contexts import FullPrompt
from selfdistill.conversations import Conversation, RawSharded
from selfdistill.divergences import ReverseKL
from selfdistill.method import Method
from selfdistill.sources import Sharded
from selfdistill.teachers import Frozen, TeacherWeights


def ccopd(*, conversation: Conversation = RawSharded(), teacher: TeacherWeights = Frozen(), thinking: bool | None = False) -> Method:
    """L = mean_t KL(S_t(. | sharded chat) || T_t(. | full prompt)) over the tokens y_t of the last reply, T frozen; no clip.

    [open]: mean over the step's tokens; temperature 1; the teacher's thinking off; replies of earlier turns are context, not trained.
    """
    return Method(source=Sharded(conversation), context=FullPrompt(thinking), teacher=teacher, divergence=ReverseKL())
