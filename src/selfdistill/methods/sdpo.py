"""SDPO (2601.20802): a successful peer, else the environment's feedback, makes the model its own teacher."""

from dataclasses import replace

from selfdistill.contexts import Context, FrozenAndLive, PeerSolution, Privileged, Written
from selfdistill.divergences import JSD, Divergence, TopKTail
from selfdistill.method import Method
from selfdistill.peers import First
from selfdistill.targets import TrustRegion
from selfdistill.teachers import EMA, Frozen
from selfdistill.token_weights import ImportanceCap

PEER_OR_FEEDBACK = Privileged((PeerSolution(First(), threshold=0.5), Written("environment")))


def sdpo(*, rate: float = 0.05, top_k: int = 100, cap: float = 2.0, divergence: Divergence = JSD(0.5), context: Context = PEER_OR_FEEDBACK) -> Method:
    """JSD(0.5) over the student's top 100 tokens and a tail, times min(rho, 2), token mean over taught rollouts.

    The code's runs: divergence=ReverseKL(), top_k=20, rate=0.01.
    """
    return Method(
        context=context,
        teacher=EMA(rate),
        divergence=TopKTail(divergence, top_k),
        token_weight=ImportanceCap(cap),
        loss_temperature=None,
    )


def sdpo_trust_region(*, mix: float = 0.05) -> Method:
    """SDPO whose teacher mixes frozen and live readings of the privileged prompt, `mix` of the live one in logit space."""
    base = sdpo()
    return replace(base, context=FrozenAndLive(base.context), teacher=Frozen(), target=TrustRegion(mix))
