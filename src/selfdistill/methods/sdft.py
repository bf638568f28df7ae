"""SDFT (2601.19897): the model shown a demonstration teaches itself without it."""

from selfdistill.contexts import Demonstration, Privileged
from selfdistill.method import Method
from selfdistill.reductions import SequenceMean
from selfdistill.sources import OnPolicy
from selfdistill.teachers import EMA


def sdft(*, rate: float = 0.01, skip_first: int = 3) -> Method:
    """L = mean_i 1/(|o_i| - 3) sum_{t > 3} KL(T_t || S_t), EMA teacher: forward KL and a mean over rollouts (official code; the paper writes reverse).

    [open] A rollout of skipped tokens alone is left out; the code counts it as zero.
    """
    return Method(source=OnPolicy(skip_first), context=Privileged((Demonstration(),)), teacher=EMA(rate), reduction=SequenceMean())
