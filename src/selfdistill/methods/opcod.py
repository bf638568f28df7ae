"""OPCoD (2606.14368): two models in lockstep, each a self-teacher that reads its own success and what the other one, where it is able, says of its attempt."""

from dataclasses import replace

from selfdistill.contexts import Context, PeerSolution, Privileged, SolutionAndFeedback, Written
from selfdistill.method import Method
from selfdistill.methods.sdpo import sdpo
from selfdistill.peers import First
from selfdistill.tutoring import PEER, Anchor, Anchored, BreakRates, Cognizance, Gate, PeerFeedback
from selfdistill.writers import Peer, Writer

OWN, SAID = PeerSolution(First(), threshold=0.5), Written(PEER)


def opcod(
    *,
    gate: Gate = Cognizance(0.5),
    anchor: Anchor = Anchored(),
    writer: Writer = Peer(),
    context: Context = Privileged((SolutionAndFeedback(OWN, SAID), OWN, SAID)),
    breaks_every: int = 10,
    rate: float = 0.05,
    top_k: int = 100,
    cap: float = 2.0,
) -> Method:
    """SDPO's loss for each of two models i; T_i reads (q, own success, feedback of peer j), feedback only where acc_j(q) >= 0.5.

    [open] Threshold 0.5; own success or feedback alone where there is not the other; the peer writes greedily. Controls: gate=Cognizance(0) (none),
    anchor=AsWritten() (no anchoring), `sdpo` for both models (no feedback).
    """
    stage = PeerFeedback(gate=gate, anchor=anchor, writer=writer)
    return replace(sdpo(rate=rate, top_k=top_k, cap=cap), feedback=(stage, BreakRates(feedback=stage, every=breaks_every)), context=context)
