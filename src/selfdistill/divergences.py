"""How far the student is from its target at one position: log-probabilities over the vocabulary in, nats out.

Pointwise in time: permuting tokens permutes the result. `student` and `target` are log-probs [tokens vocab], `token` the
sampled ids [tokens]; gradients flow through `student` alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Divergence = Callable[[Float[Tensor, "tokens vocab"], Float[Tensor, "tokens vocab"], Int[Tensor, " tokens"]], Float[Tensor, " tokens"]]


@dataclass(frozen=True)
class ForwardKL:
    """KL(T || S) = sum_v min(T(v) (log T(v) - log S(v)), clip), clipped per entry from above before the sum (OPSD, code)."""

    clip: float = math.inf

    def __call__(
        self, student: Float[Tensor, "tokens vocab"], target: Float[Tensor, "tokens vocab"], token: Int[Tensor, " tokens"]
    ) -> Float[Tensor, " tokens"]:
        return _sum_entries(_weighted(target.exp(), target, student), clip=self.clip)


@dataclass(frozen=True)
class ReverseKL:
    """KL(S || T) = sum_v min(S(v) (log S(v) - log T(v)), clip)."""

    clip: float = math.inf

    def __call__(
        self, student: Float[Tensor, "tokens vocab"], target: Float[Tensor, "tokens vocab"], token: Int[Tensor, " tokens"]
    ) -> Float[Tensor, " tokens"]:
        return _sum_entries(_weighted(student.exp(), student, target), clip=self.clip)


@dataclass(frozen=True)
class JSD:
    """beta KL(T || m) + (1 - beta) KL(S || m) with m = beta T + (1 - beta) S; beta strictly between 0 and 1, else ValueError."""

    beta: float = 0.5
    clip: float = math.inf

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise ValueError(f"JSD(beta={self.beta}) is identically zero; beta must lie between 0 and 1: use ForwardKL() or ReverseKL() instead")

    def __call__(
        self, student: Float[Tensor, "tokens vocab"], target: Float[Tensor, "tokens vocab"], token: Int[Tensor, " tokens"]
    ) -> Float[Tensor, " tokens"]:
        mixture = torch.logaddexp(target + math.log(self.beta), student + math.log1p(-self.beta))
        to_target, to_student = _weighted(target.exp(), target, mixture), _weighted(student.exp(), student, mixture)
        return _sum_entries(self.beta * to_target + (1 - self.beta) * to_student, clip=self.clip)


@dataclass(frozen=True)
class TopK:
    """`inner` over the k likeliest tokens of the target (RCSD) or of the student, both sides renormalised over them."""

    inner: Divergence
    k: int
    of_student: bool = False

    def __post_init__(self) -> None:
        _check_top(self.inner, self.k)

    def __call__(
        self, student: Float[Tensor, "tokens vocab"], target: Float[Tensor, "tokens vocab"], token: Int[Tensor, " tokens"]
    ) -> Float[Tensor, " tokens"]:
        keep = _likeliest(student if self.of_student else target, self.k)
        return self.among(student.gather(-1, keep), target.gather(-1, keep), token)

    def among(self, student: Float[Tensor, "tokens k"], target: Float[Tensor, "tokens k"], token: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
        """The same from the log-probs of those tokens alone."""
        return self.inner(student.log_softmax(-1), target.log_softmax(-1), token)


@dataclass(frozen=True)
class TeacherTopK:
    """KL(T' || S) over the target's k likeliest tokens, T' renormalised over them, S over the whole vocabulary (EOPD, 2603.07079).

    At S = T it is -log T(top k), not 0: the student is also asked for the mass that the teacher leaves to all other tokens.
    """

    k: int

    def __post_init__(self) -> None:
        _check_top(None, self.k)

    def __call__(
        self, student: Float[Tensor, "tokens vocab"], target: Float[Tensor, "tokens vocab"], token: Int[Tensor, " tokens"]
    ) -> Float[Tensor, " tokens"]:
        keep = _likeliest(target, self.k)
        return self.among(student.gather(-1, keep), target.gather(-1, keep), token)

    def among(self, student: Float[Tensor, "tokens k"], target: Float[Tensor, "tokens k"], token: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
        """The same from the log-probs of those tokens alone."""
        kept = target.log_softmax(-1)
        return _weighted(kept.exp(), kept, student).sum(-1)


@dataclass(frozen=True)
class TopKTail:
    """`inner` over the student's k likeliest tokens plus one bucket a side with all remaining mass, not renormalised (SDPO, code)."""

    inner: Divergence
    k: int

    def __post_init__(self) -> None:
        _check_top(self.inner, self.k)

    def __call__(
        self, student: Float[Tensor, "tokens vocab"], target: Float[Tensor, "tokens vocab"], token: Int[Tensor, " tokens"]
    ) -> Float[Tensor, " tokens"]:
        if self.k >= student.shape[-1]:
            return self.inner(student, target, token)
        keep = _likeliest(student, self.k)
        return self.among(student.gather(-1, keep), target.gather(-1, keep), token)

    def among(self, student: Float[Tensor, "tokens k"], target: Float[Tensor, "tokens k"], token: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
        """The same from the log-probs of those tokens alone."""
        return self.inner(_with_tail(student), _with_tail(target), token)


@dataclass(frozen=True)
class Welsch:
    """log 2 - softplus(-Delta^2 / (2 tau)), Delta = log T(y) - log S(y): quadratic near 0, at most log 2 (SGSD)."""

    tau: float = 1.0

    def __call__(
        self, student: Float[Tensor, "tokens vocab"], target: Float[Tensor, "tokens vocab"], token: Int[Tensor, " tokens"]
    ) -> Float[Tensor, " tokens"]:
        delta = (target - student).gather(-1, token[:, None])[:, 0]
        return math.log(2) - F.softplus(-delta.square() / (2 * self.tau))


def _weighted(p: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"], log_q: Float[Tensor, "tokens vocab"]) -> Float[Tensor, "tokens vocab"]:
    """p (log p - log q), 0 where p is 0 even if both logs are -inf."""
    return torch.where(p > 0, p * (log_p - log_q), 0.0)


def _sum_entries(entries: Float[Tensor, "tokens vocab"], *, clip: float) -> Float[Tensor, " tokens"]:
    return (entries if clip == math.inf else entries.clamp(max=clip)).sum(-1)


def _likeliest(logp: Float[Tensor, "tokens vocab"], k: int) -> Int[Tensor, "tokens k"]:
    return logp.detach().topk(min(k, logp.shape[-1]), dim=-1).indices


def _with_tail(logp: Float[Tensor, "tokens k"]) -> Float[Tensor, "tokens k_and_tail"]:
    """Appends log(1 - sum exp), computed as log1p so that a tail of 1e-7 survives fp32."""
    mass = logp.logsumexp(-1, keepdim=True).exp().clamp(max=1 - 1e-7)
    return torch.cat([logp, torch.log1p(-mass)], dim=-1)


def _check_top(inner: Divergence | None, k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if isinstance(inner, Welsch):
        raise ValueError("Welsch() reads the sampled token, which need not be among the k likeliest; use it without TopK or TopKTail")


def unclipped(divergence: Divergence) -> Divergence:
    """The same divergence without entry clip. Raises ValueError where it has none."""
    if inner := getattr(divergence, "inner", None):
        return replace(divergence, inner=unclipped(inner))  # pyright: ignore[reportArgumentType]
    if getattr(divergence, "clip", math.inf) == math.inf:
        raise ValueError(f"{divergence} has no entry clip to take away")
    return replace(divergence, clip=math.inf)  # pyright: ignore[reportArgumentType]


def reversed_direction(divergence: Divergence) -> Divergence:
    """ForwardKL for ReverseKL and the other way round, inside TopK and TopKTail too. Raises ValueError where there is no direction."""
    if inner := getattr(divergence, "inner", None):
        return replace(divergence, inner=reversed_direction(inner))  # pyright: ignore[reportArgumentType]
    if not isinstance(divergence, ForwardKL | ReverseKL):
        raise ValueError(f"{divergence} has no direction to turn round; ForwardKL and ReverseKL have")
    return (ReverseKL if isinstance(divergence, ForwardKL) else ForwardKL)(divergence.clip)
