"""GRPO (2402.03300): a rollout's reward beside those of its group, under a clipped ratio; Dr. GRPO, DAPO and GSPO differ in a part each."""

from dataclasses import replace

from selfdistill.advantages import GroupRelative
from selfdistill.feedback import SoftOverlong
from selfdistill.method import Method
from selfdistill.policy_losses import ClippedRatio, SequenceRatio
from selfdistill.reductions import Constant, SequenceMean, TokenMean
from selfdistill.sources import UntilMixed


def grpo(*, reference_coef: float = 0.0) -> Method:
    """A = (r - mean) / (std + 1e-6), ratio clipped at 0.2, mean over each rollout; `reference_coef` adds KL(pi || pi_0)."""
    return Method(distill_coef=0.0, policy_coef=1.0, reduction=SequenceMean(), reference_coef=reference_coef)


def dr_grpo(*, max_completion_length: int) -> Method:
    """GRPO without the two biases: no division by the standard deviation, token sums over the length limit."""
    return replace(grpo(), advantage=GroupRelative(normalize=False), reduction=Constant(max_completion_length))


def dapo(*, max_completion_length: int, tries: int = 3) -> Method:
    """Clip 0.2 / 0.28, token mean, uniform groups resampled, and a soft penalty over the last fifth of the length limit."""
    return replace(
        grpo(),
        source=UntilMixed(tries),
        feedback=(SoftOverlong(limit=max_completion_length, buffer=max(max_completion_length // 5, 1)),),
        policy_loss=ClippedRatio(clip_high=0.28),
        reduction=TokenMean(),
    )


def gspo() -> Method:
    """One ratio a rollout, (pi / pi_old)^(1/|y|), clipped at 3e-4 and 4e-4."""
    return replace(grpo(), policy_loss=SequenceRatio())
