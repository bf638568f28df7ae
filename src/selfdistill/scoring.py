"""Hidden states to TokenSignals, a few positions at a time: with kernels/, which trains, the only code that ever holds [tokens vocab].

The student's head product is computed once per student token however many teachers read it. Logits of a chunk live only while
it is scored; backward of `score` computes them again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from selfdistill.devices import allowed, send
from selfdistill.heads import Head, Product
from selfdistill.method import Method
from selfdistill.types import Batch, TokenSignals

CHUNK_ENTRIES = {"cpu": 2**24, "cuda": 2**27}
"""Logits held at once. 2**24 are 64 MiB in fp32: glibc gives blocks above 32 MiB back at once, smaller ones fragment its heap."""


def rows_held(entries: Mapping[str, int], batch: Batch, hidden: Float[Tensor, "student_tokens hidden"], vocab_size: int, *, least: int = 1) -> int:
    """How many student tokens' logits a device's number of entries allows beside those of all their teachers; `least`, where a token without any would."""
    alone, teachers = max(allowed(entries, hidden.device) // vocab_size, 1), ceil(len(batch.token) / max(len(hidden), 1))
    return max(alone // max(teachers, 1), min(alone, least))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one view's weights made of its text: final hidden states without gradient, and the head that reads them."""

    hidden: Float[Tensor, "taught_tokens hidden"]
    head: Head


def score(
    method: Method,
    batch: Batch,
    *,
    hidden: Float[Tensor, "student_tokens hidden"],
    head: Head,
    readings: Mapping[str, Reading],
    initial: Reading | None = None,
    chunk: int | None = None,
) -> TokenSignals:
    """The student's hidden states, the views' readings (taught tokens, in the order of the batch) and pi_0's reading, to signals.

    chunk: student tokens scored at once; None takes what CHUNK_ENTRIES allows.
    """
    size = chunk or rows_held(CHUNK_ENTRIES, batch, hidden, head.vocab_size)
    order = Order.of(batch, students=len(hidden), readings=bool(readings))
    edges = [*range(0, len(hidden), size), len(hidden)]
    at_student, at_taught = [], []
    for place in order.places(edges):
        views = {role: replace(r, hidden=r.hidden[order.rows[place.pairs]]) for role, r in readings.items()}
        start = initial and replace(initial, hidden=initial.hidden[place.students])
        run = partial(_score_states, method, order.piece(place), batch.temperature, head, views, start)
        states = hidden[place.students]
        whole = len(edges) == 2
        unique, pairs = run(states) if whole or not torch.is_grad_enabled() else checkpoint(run, states, use_reentrant=False, preserve_rng_state=False)
        at_student.append(unique)
        at_taught.append(pairs)
    return assemble(batch, torch.cat(at_student, dim=1), torch.cat(at_taught, dim=1), order.taught)


def _score_states(
    method: Method,
    piece: "Piece",
    temperature: float,
    head: Head,
    readings: Mapping[str, Reading],
    initial: Reading | None,
    hidden: Float[Tensor, "chunk hidden"],
) -> tuple[Float[Tensor, "5 chunk"], Float[Tensor, "3 pairs"]]:
    views = {role: partial(r.head, r.hidden) for role, r in readings.items()}
    return score_piece(method, piece, temperature, head(hidden), views, initial and partial(initial.head, initial.hidden))


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a range of student tokens is: among student tokens, tokens in their order, taught tokens in theirs, and samples."""

    students: slice
    tokens: slice
    pairs: slice
    samples: slice


@dataclass(frozen=True, kw_only=True)
class Order:
    """A batch's tokens in the order of the student tokens they share."""

    batch: Batch
    tokens: Int[Tensor, " tokens"]
    taught: Int[Tensor, " taught_tokens"]
    """The taught ones among them."""
    taught_at: Int[Tensor, " taught_tokens"]
    """Their places in that order."""
    rows: Int[Tensor, " taught_tokens"]
    """The row of each in the views' readings."""
    token: Int[Tensor, " student_tokens"]
    label_token: Int[Tensor, "student_tokens labels"]
    label_share: Float[Tensor, "student_tokens labels"]
    students: tuple[Int[np.ndarray, " tokens"], Int[np.ndarray, " taught_tokens"]]
    """On the host: the student token of each of `tokens`, and of each of `taught`."""
    samples: Int[np.ndarray, " tokens"]
    """On the host: the sample of each of `tokens`."""

    @classmethod
    def of(cls, batch: Batch, *, students: int, readings: bool) -> "Order":
        """readings: whether there are any views. Sorted on the host, so that no device is waited for."""
        host, device = batch.host, batch.token.device
        tokens = host.student_token.argsort(kind="stable")
        is_taught = host.taught[host.sample] & readings
        taught_at = np.flatnonzero(is_taught[tokens])
        taught = tokens[taught_at]
        token, label_token, label_share = (_at_students(batch, x, students) for x in (batch.token, batch.label_token, batch.label_share))
        return cls(
            batch=batch,
            tokens=send(tokens, device),
            taught=send(taught, device),
            taught_at=send(taught_at, device),
            rows=send((is_taught.cumsum() - 1)[taught], device),
            token=token,
            label_token=label_token,
            label_share=label_share,
            students=(host.student_token[tokens], host.student_token[taught]),
            samples=host.sample[tokens],
        )

    def places(self, edges: Sequence[int]) -> list[Place]:
        """The ranges of student tokens between edges."""
        tokens, pairs = (np.searchsorted(students, edges).tolist() for students in self.students)
        # samples of one rollout stand together, so those of a range begin with its first token's and end with its last one's
        first, last = self.samples[tokens[:-1]].tolist(), self.samples[[t - 1 for t in tokens[1:]]].tolist()
        return [
            Place(students=slice(*edges[i : i + 2]), tokens=slice(*tokens[i : i + 2]), pairs=slice(*pairs[i : i + 2]), samples=slice(first[i], last[i] + 1))
            for i in range(len(first))
        ]

    def piece(self, place: Place) -> "Piece":
        alone = len(self.taught) == len(self.tokens) == len(self.token)
        student = None if alone else self.batch.student_token[self.taught[place.pairs]] - place.students.start
        at = place.students
        return Piece(token=self.token[at], label_token=self.label_token[at], label_share=self.label_share[at], student=student)


def _at_students(batch: Batch, x: Tensor, count: int) -> Tensor:
    """A value a token as one a student token; the samples that share it agree."""
    return x.new_empty(count, *x.shape[1:]).index_copy(0, batch.student_token, x)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some student tokens, and the taught tokens that share them."""

    token: Int[Tensor, " chunk"]
    label_token: Int[Tensor, "chunk labels"]
    label_share: Float[Tensor, "chunk labels"]
    student: Int[Tensor, " pairs"] | None
    """Index of each taught token's student token; None where every student token has one teacher, in the same order."""


Logits = Callable[[], Float[Tensor, "rows vocab"]]
"""A view's logits, made when they are wanted."""


def score_piece(
    method: Method, piece: Piece, temperature: float, logits: Float[Tensor, "chunk vocab"], views: Mapping[str, Logits], initial: Logits | None
) -> tuple[Float[Tensor, "5 chunk"], Float[Tensor, "3 pairs"]]:
    """(logp, policy_logp, label_kl, entropy, reference_kl) of student tokens; (target_logp, target_entropy, divergence) of taught ones.

    What needs no gradient comes last: backward's second computation ends with the last tensor it needs.
    """
    loss_temperature = method.loss_temperature or temperature
    student = _log_softmax(logits, loss_temperature)
    policy = student if loss_temperature == temperature else _log_softmax(logits, temperature)
    zeros = torch.zeros_like(policy[:, 0])
    reference_kl = zeros
    if initial is not None:
        with torch.no_grad():
            start = _log_softmax(initial(), temperature)
        reference_kl = (policy.exp() * (policy - start)).sum(-1)
    logp, policy_logp = _pick(student, piece.token), _pick(policy, piece.token)
    label_kl = label_divergence(student.gather(-1, piece.label_token), piece.label_share) if method.label_coef else zeros
    if not views or (piece.student is not None and not len(piece.student)):
        return torch.stack([logp, policy_logp, label_kl, _entropy(student), reference_kl]), zeros.new_zeros(3, 0)

    shared, token = (student, piece.token) if piece.student is None else (student[piece.student], piece.token[piece.student])
    with torch.no_grad():
        target = method.target({role: _log_softmax(view(), loss_temperature) for role, view in views.items()} | {"student": shared.detach()})
    divergence = method.divergence(shared, target, token) if method.distill_coef else torch.zeros_like(target[:, 0])
    unique = torch.stack([logp, policy_logp, label_kl, _entropy(student), reference_kl])
    return unique, torch.stack([_pick(target, token), _entropy(target), divergence])


Scorer = Callable[[Method, Piece, float, Product, Mapping[str, Product], Product | None], tuple[Tensor, Tensor]]
"""`score_piece` of head products: method, piece, temperature, the student's, the views', pi_0's."""


def score_logits(
    method: Method, piece: Piece, temperature: float, student: Product, views: Mapping[str, Product], initial: Product | None
) -> tuple[Float[Tensor, "5 chunk"], Float[Tensor, "3 pairs"]]:
    """A Scorer that writes log-probs out."""
    of_views = {role: view.logits for role, view in views.items()}
    return score_piece(method, piece, temperature, student.logits(), of_views, initial and initial.logits)


def assemble(
    batch: Batch, unique: Float[Tensor, "5 student_tokens"], pairs: Float[Tensor, "3 taught_tokens"], taught: Int[Tensor, " taught_tokens"]
) -> TokenSignals:
    logp, policy_logp, label_kl, entropy, reference_kl = unique[:, batch.student_token]
    target_logp, target_entropy, divergence = unique.new_zeros(3, len(batch.token)).index_copy(1, taught, pairs)
    return TokenSignals(
        batch=batch,
        logp=logp,
        policy_logp=policy_logp,
        label_kl=label_kl,
        entropy=entropy.detach(),
        target_logp=target_logp.detach(),
        target_entropy=target_entropy.detach(),
        divergence=divergence,
        reference_kl=reference_kl,
    )


def _pick(logp: Float[Tensor, "rows vocab"], token: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    return logp.gather(-1, token[:, None])[:, 0]


def label_divergence(logp: Float[Tensor, "rows labels"], share: Float[Tensor, "rows labels"]) -> Float[Tensor, " rows"]:
    """sum_v q(v) (log q(v) - log S(v)) over the label's own tokens, 0 log 0 = 0."""
    return (torch.special.xlogy(share, share) - share * logp).sum(-1)


def _log_softmax(logits: Float[Tensor, "rows vocab"], temperature: float) -> Float[Tensor, "rows vocab"]:
    return (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)


@torch.no_grad()
def _entropy(logp: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
    """-sum p log p in nats, 0 log 0 = 0."""
    return -logp.exp().mul_(logp.clamp(min=-1e4)).sum(-1)
