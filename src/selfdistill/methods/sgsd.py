"""SGSD (2605.28791): teachers that each read one skill and one mistake, believed as far as they side with the outcome."""

from selfdistill.contexts import Context
from selfdistill.divergences import Welsch
from selfdistill.feedback import KeepSkills, MarkContent, RetrieveSkills
from selfdistill.method import Method
from selfdistill.notes import Skills
from selfdistill.reductions import SequenceMean
from selfdistill.retrieval import Nearest, Retrieval
from selfdistill.skills import Extractor, WrittenLessons
from selfdistill.teachers import Live
from selfdistill.token_weights import PolarityGate, TokenWeight


def sgsd(
    *,
    extractor: Extractor = WrittenLessons(),
    bank: str | None = None,
    cold_start: int = 256,
    every: int = 25,
    retrieval: Retrieval = Nearest(),
    pairs: int = 8,
    context: Context = Skills(thinking=True),
    gate: TokenWeight = PolarityGate(),
) -> Method:
    """L = mean over rollouts of sum_k alpha_k rho_k mean_t (log 2 - softplus(-Delta_t^2 / 2)), Delta = log T^k(y_t) - log S(y_t).

    [open] The model itself writes and merges its skills, greedy; it also embeds them. Ablations: gate=ContentMean() (no polarity),
    pairs=1 (one teacher), context=SkillsAndAnswer(thinking=True) (answer in context), retrieval=RandomPairs() (random skills).
    """
    return Method(
        feedback=(KeepSkills(extractor=extractor, path=bank, cold_start=cold_start, every=every), RetrieveSkills(retrieval, pairs), MarkContent()),
        context=context,
        teacher=Live(),
        divergence=Welsch(),
        token_weight=gate,
        reduction=SequenceMean(),
    )
