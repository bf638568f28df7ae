"""Hidden states to TokenSignals, a few positions at a time: the only module that ever holds [tokens vocab].

The student's head product is computed once per student token however many teachers read it. Logits of a chunk live only while
it is scored; backward computes them again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from selfdistill.heads import Head
from selfdistill.method import Method
from selfdistill.types import Batch, TokenSignals

CHUNK_ENTRIES = {"cpu": 2**24, "cuda": 2**27}
"""Logits held at once. 2**24 are 64 MiB in fp32: glibc gives blocks above 32 MiB back at once, smaller ones fragment its heap."""


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
    size = chunk or max(CHUNK_ENTRIES.get(hidden.device.type, CHUNK_ENTRIES["cpu"]) // head.vocab_size, 1)
    taught = batch.taught[batch.sample].nonzero()[:, 0] if readings else batch.token.new_empty(0)
    row_of = torch.empty_like(batch.token)
    row_of[taught] = torch.arange(len(taught), device=taught.device)
    taught = taught[batch.student_token[taught].argsort(stable=True)]
    edges = range(0, len(hidden), size)
    cuts = torch.searchsorted(batch.student_token[taught], torch.tensor([*edges, len(hidden)], device=taught.device)).tolist()
    token, label_token, label_share = (_at_students(batch, x, len(hidden)) for x in (batch.token, batch.label_token, batch.label_share))
    at_student, at_taught = [], []
    for start, first, last in zip(edges, cuts[:-1], cuts[1:], strict=True):
        mine = taught[first:last]
        piece = _Piece(
            token=token[start : start + size],
            label_token=label_token[start : start + size],
            label_share=label_share[start : start + size],
            student=batch.student_token[mine] - start,
            readings={role: replace(r, hidden=r.hidden[row_of[mine]]) for role, r in readings.items()},
            initial=initial and replace(initial, hidden=initial.hidden[start : start + size]),
        )
        run = partial(_score_piece, method, piece, head, batch.temperature)
        states = hidden[start : start + size]
        whole = len(edges) == 1 and chunk is None
        unique, pairs = run(states) if whole or not torch.is_grad_enabled() else checkpoint(run, states, use_reentrant=False, preserve_rng_state=False)
        at_student.append(unique)
        at_taught.append(pairs)
    return _assemble(batch, torch.cat(at_student, dim=1), torch.cat(at_taught, dim=1), taught)


def _at_students(batch: Batch, x: Tensor, count: int) -> Tensor:
    """A value a token as one a student token; the samples that share it agree."""
    return x.new_empty(count, *x.shape[1:]).index_copy(0, batch.student_token, x)


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A chunk of student tokens and the taught tokens that share them."""

    token: Int[Tensor, " chunk"]
    label_token: Int[Tensor, "chunk labels"]
    label_share: Float[Tensor, "chunk labels"]
    student: Int[Tensor, " pairs"]
    """Index of each taught token's student token inside the chunk."""
    readings: Mapping[str, Reading]
    initial: Reading | None


def _score_piece(
    method: Method, piece: _Piece, head: Head, temperature: float, hidden: Float[Tensor, "chunk hidden"]
) -> tuple[Float[Tensor, "5 chunk"], Float[Tensor, "3 pairs"]]:
    """(logp, policy_logp, label_kl, entropy, reference_kl) of student tokens; (target_logp, target_entropy, divergence) of taught ones.

    What needs no gradient comes last: backward's second computation ends with the last tensor it needs.
    """
    loss_temperature = method.loss_temperature or temperature
    logits = head(hidden)
    student = _log_softmax(logits, loss_temperature)
    policy = student if loss_temperature == temperature else _log_softmax(logits, temperature)
    zeros = torch.zeros_like(policy[:, 0])
    reference_kl = zeros
    if piece.initial is not None:
        with torch.no_grad():
            initial = _log_softmax(piece.initial.head(piece.initial.hidden), temperature)
        reference_kl = (policy.exp() * (policy - initial)).sum(-1)
    logp, policy_logp = _pick(student, piece.token), _pick(policy, piece.token)
    label_kl = _label_kl(student, piece) if method.label_coef else zeros
    if not len(piece.student):
        return torch.stack([logp, policy_logp, label_kl, _entropy(student), reference_kl]), zeros.new_zeros(3, 0)

    shared = _shared(student, piece.student)
    with torch.no_grad():
        views = {role: _log_softmax(r.head(r.hidden), loss_temperature) for role, r in piece.readings.items()}
        target = method.target(views | {"student": shared.detach()})
    token = piece.token[piece.student]
    divergence = method.divergence(shared, target, token) if method.distill_coef else torch.zeros_like(target[:, 0])
    unique = torch.stack([logp, policy_logp, label_kl, _entropy(student), reference_kl])
    return unique, torch.stack([_pick(target, token), _entropy(target), divergence])


def _shared(student: Float[Tensor, "chunk vocab"], index: Int[Tensor, " pairs"]) -> Float[Tensor, "pairs vocab"]:
    """The student's rows in the order of the taught tokens; the same tensor where there is one teacher each."""
    if len(index) == len(student) and bool((index == torch.arange(len(index), device=index.device)).all()):
        return student
    return student[index]


def _assemble(
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


def _label_kl(logp: Float[Tensor, "rows vocab"], piece: _Piece) -> Float[Tensor, " rows"]:
    """sum_v q(v) (log q(v) - log S(v)) over the label's own tokens, 0 log 0 = 0."""
    share = piece.label_share
    return (torch.special.xlogy(share, share) - share * logp.gather(-1, piece.label_token)).sum(-1)


def _log_softmax(logits: Float[Tensor, "rows vocab"], temperature: float) -> Float[Tensor, "rows vocab"]:
    return (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)


@torch.no_grad()
def _entropy(logp: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
    """-sum p log p in nats, 0 log 0 = 0."""
    return -logp.exp().mul_(logp.clamp(min=-1e4)).sum(-1)
