"""Credit. An advantage turns a group's rewards into one number a rollout; a credit spreads it, or the teacher's opinion, over tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from selfdistill.divergences import Divergence, ReverseKL
from selfdistill.types import TokenSignals

Advantage = Callable[[Float[Tensor, " group"]], Float[Tensor, " group"]]


@dataclass(frozen=True)
class GroupRelative:
    """(r - mean) / (population std + 1e-6) over a group's rewards; without the division when `normalize` is False (Dr. GRPO)."""

    normalize: bool = True

    def __call__(self, rewards: Float[Tensor, " group"]) -> Float[Tensor, " group"]:
        # the mean of equal rewards rounds, and dividing that by 1e-6 would make an advantage of it
        centered = torch.where((rewards == rewards[0]).all(), torch.zeros_like(rewards), rewards - rewards.mean())
        return centered / (rewards.std(correction=0) + 1e-6) if self.normalize else centered


@runtime_checkable
class Credit(Protocol):
    """TokenSignals -> [tokens], what the policy gradient multiplies. It says what it reads, so that rows without signal are skipped.

    One that reads numbers a feedback stage wrote names them as `reads_annotation`. One that is a product with the advantage, hence 0
    wherever that is, whatever else it reads, says `scales_advantage = True`. One whose policy gradient, in expectation over the student's
    own tokens, descends a divergence names it as `estimates`.
    """

    reads_teacher: ClassVar[bool]
    reads_advantage: ClassVar[bool]

    def __call__(self, signals: TokenSignals) -> Float[Tensor, " tokens"]: ...


@dataclass(frozen=True)
class OutcomeCredit:
    """A_t = A: every token shares its rollout's advantage."""

    reads_teacher: ClassVar[bool] = False
    reads_advantage: ClassVar[bool] = True
    scales_advantage: ClassVar[bool] = True
    pointwise: ClassVar[bool] = True

    def __call__(self, signals: TokenSignals) -> Float[Tensor, " tokens"]:
        return signals.advantage


@dataclass(frozen=True)
class TeacherCredit:
    """A_t = Delta_t = log T_t(y_t) - log S_t(y_t): the sampled-token estimate of -grad KL(S || T) (OPD)."""

    reads_teacher: ClassVar[bool] = True
    reads_advantage: ClassVar[bool] = False
    estimates: ClassVar[Divergence] = ReverseKL()
    pointwise: ClassVar[bool] = True

    def __call__(self, signals: TokenSignals) -> Float[Tensor, " tokens"]:
        return signals.log_ratio


@dataclass(frozen=True)
class BlendedCredit:
    """A_t = lambda A + (1 - lambda) Delta_t (SDPO's blend with GRPO)."""

    outcome_share: float
    reads_teacher: ClassVar[bool] = True
    reads_advantage: ClassVar[bool] = True
    pointwise: ClassVar[bool] = True

    def __call__(self, signals: TokenSignals) -> Float[Tensor, " tokens"]:
        return self.outcome_share * signals.advantage + (1 - self.outcome_share) * signals.log_ratio


@dataclass(frozen=True)
class ReweightedCredit:
    """A_t = A clip(exp(sign(A) Delta_t), 1 - clip, 1 + clip): the outcome says which way, the teacher how much (RLSD, 2604.03128)."""

    clip: float = 0.2
    reads_teacher: ClassVar[bool] = True
    reads_advantage: ClassVar[bool] = True
    scales_advantage: ClassVar[bool] = True
    pointwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.clip < 1:
            raise ValueError(f"ReweightedCredit(clip={self.clip}): clip must lie in [0, 1), or a token's credit changes its sign")

    def __call__(self, signals: TokenSignals) -> Float[Tensor, " tokens"]:
        advantage = signals.advantage
        return advantage * (advantage.sign() * signals.log_ratio).exp().clamp(1 - self.clip, 1 + self.clip)


@dataclass(frozen=True)
class Annotated:
    """A_t = the number that a feedback stage wrote for the token under this name; 0 on a rollout it wrote nothing for (ExpRL, 2606.17024)."""

    name: str
    reads_teacher: ClassVar[bool] = False
    reads_advantage: ClassVar[bool] = False
    pointwise: ClassVar[bool] = True

    @property
    def reads_annotation(self) -> str:
        return self.name

    def __call__(self, signals: TokenSignals) -> Float[Tensor, " tokens"]:
        found = signals.batch.annotations.get(self.name)
        return torch.zeros_like(signals.logp) if found is None else found
