"""HSD (2606.15576): after the fact, the model shown the answer and a successful peer teaches the attempts of the group."""

from selfdistill.contexts import Answer, Privileged, SuccessfulPeer
from selfdistill.divergences import Divergence, ForwardKL
from selfdistill.method import Method
from selfdistill.peers import PeerChoice, Uniformly
from selfdistill.reductions import SequenceMean
from selfdistill.teachers import Live, TeacherWeights


def hsd(
    *,
    teacher: TeacherWeights = Live(),
    reference_coef: float = 0.001,
    direction: Divergence = ForwardKL(),
    peer: PeerChoice = Uniformly(),
    failed_only: bool = False,
) -> Method:
    """L = (1/G) sum_i (1/|o_i|) sum_t KL(sg pi(.|q, c_i) || pi(.|q)) + 0.001 KL(pi || pi_0), c_i = (answer, peer) or the answer alone.

    Where the paper is silent: all rollouts are taught; a group's only success reads the answer; temperature 1; thinking off;
    the formula's direction KL(T || S), not the text's; KL(pi || pi_0) over the full vocabulary.
    """
    return Method(
        context=Privileged((SuccessfulPeer(peer), Answer()), thinking=False, failed_only=failed_only),
        teacher=teacher,
        divergence=direction,
        reference_coef=reference_coef,
        reduction=SequenceMean(),
    )
