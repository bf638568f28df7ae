"""Scoring alone holds the vocabulary: its scalars are those of a plain softmax, its memory that of a chunk, its gradients the same."""

from dataclasses import dataclass, replace

import pytest
import torch
from stepping import score_tensors

from selfdistill.divergences import ForwardKL
from selfdistill.heads import Head
from selfdistill.methods import hsd, opsd, purified_opsd
from selfdistill.packing import pack
from selfdistill.scoring import Reading, score
from selfdistill.types import Rollout, TrainingSample, View

TOKENS, HIDDEN, VOCAB = 9, 5, 17


def states(seed: int, rows: int = TOKENS) -> torch.Tensor:
    return torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(seed))


def head(seed: int = 9) -> Head:
    return Head(weight=torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(seed)), bias=None)


TOKEN = torch.randint(0, VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(3))


def logp_of(hidden: torch.Tensor, read_by: Head, temperature: float) -> torch.Tensor:
    return ((hidden @ read_by.weight.T) / temperature).log_softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 1.1])
def test_scalars_are_those_of_a_plain_softmax(temperature):
    method = replace(opsd(), divergence=ForwardKL(), loss_temperature=temperature)
    student, teacher = logp_of(states(1), head(), temperature), logp_of(states(2), head(8), temperature)
    signals = score_tensors(method, hidden=states(1), head=head(), views={"teacher": (states(2), head(8))}, token=TOKEN)
    rows = torch.arange(TOKENS)
    torch.testing.assert_close(signals.logp, student[rows, TOKEN], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(signals.target_logp, teacher[rows, TOKEN], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(signals.policy_logp, logp_of(states(1), head(), 1.0)[rows, TOKEN], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(signals.entropy, -(student.exp() * student).sum(-1), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(signals.target_entropy, -(teacher.exp() * teacher).sum(-1), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(signals.divergence, (teacher.exp() * (teacher - student)).sum(-1), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 2, 4, 9, 100])
@pytest.mark.parametrize("make", [opsd, purified_opsd], ids=lambda f: f.__name__)
def test_chunks_leave_values_and_gradients_alone(make, chunk):
    found = []
    for size in (None, chunk):
        hidden, read_by = states(1).requires_grad_(), head()
        read_by.weight.requires_grad_()
        views = {role: (states(2 + i), head(8)) for i, role in enumerate(("teacher", "reference", "base"))}
        signals = score_tensors(make(), hidden=hidden, head=read_by, views=views, token=TOKEN, chunk=size)
        loss = (signals.divergence * torch.arange(TOKENS) + signals.logp + 0.3 * signals.policy_logp).sum()
        found.append((signals.divergence.detach(), *torch.autograd.grad(loss, (hidden, read_by.weight))))
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=1e-5)


def rows_seen(monkeypatch) -> list[int]:
    seen: list[int] = []
    original = Head.__call__
    monkeypatch.setattr(Head, "__call__", lambda self, hidden: (seen.append(len(hidden)), original(self, hidden))[1])
    return seen


def test_no_more_logits_than_a_chunk_are_ever_made(monkeypatch):
    seen = rows_seen(monkeypatch)
    hidden = states(1, 1000).requires_grad_()
    token = torch.zeros(1000, dtype=torch.long)
    signals = score_tensors(opsd(), hidden=hidden, head=head(), views={"teacher": (states(2, 1000), head(8))}, token=token, chunk=16)
    signals.divergence.sum().backward()
    assert max(seen) == 16 and hidden.grad.abs().max() > 0


def test_nothing_of_vocabulary_size_is_kept_for_backward():
    """All that autograd holds between forward and backward is less than one logit a token and word."""
    kept: list[int] = []
    hidden, read_by = states(1, 400).requires_grad_(), head()
    read_by.weight.requires_grad_()
    token = torch.zeros(400, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        signals = score_tensors(opsd(), hidden=hidden, head=read_by, views={"teacher": (states(2, 400), head(8))}, token=token, chunk=10)
    assert signals.divergence.requires_grad and sum(kept) < 400 * VOCAB


@dataclass(frozen=True)
class CallCounter:
    """A divergence that notes how many tokens it was given."""

    calls: list

    def __call__(self, student, target, token):
        self.calls.append(len(token))
        return ForwardKL()(student, target, token)


def mixed_batch():
    """Three rollouts: untaught, taught twice, taught once."""
    rollouts = [Rollout(prompt_ids=[0], completion_ids=TOKEN[: 2 + i].tolist(), behavior_logp=[0.0] * (2 + i), text="", reward=1.0, index=i) for i in range(3)]
    view = {"teacher": View(messages=(), prompt_ids=(1,))}
    plan = [(rollouts[0], {}), (rollouts[1], view), (rollouts[1], view), (rollouts[2], view)]
    samples = [TrainingSample(rollout=r, views=v, advantage=1.0, distill_scale=float(bool(v)), policy_scale=1.0) for r, v in plan]
    (batch,) = pack(samples, 10**6)
    return batch


@pytest.mark.parametrize("chunk", [None, 1, 2, 4])
def test_untaught_tokens_have_no_target_and_cost_no_divergence(chunk):
    batch, calls = mixed_batch(), []
    method = replace(opsd(), divergence=CallCounter(calls))
    hidden, taught = states(1, 9), states(2, 10)
    signals = score(method, batch, hidden=hidden, head=head(), readings={"teacher": Reading(hidden=taught, head=head(8))}, chunk=chunk)
    untaught = ~signals.taught
    assert untaught.sum() == 2 and sum(calls) == 10
    for name in ("divergence", "target_logp", "target_entropy", "log_ratio"):
        assert torch.equal(getattr(signals, name)[untaught], torch.zeros(2)), name
    assert (signals.logp[untaught] < 0).all() and (signals.entropy[untaught] > 0).all()


@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_each_teacher_row_meets_its_own_student_row(chunk):
    batch = mixed_batch()
    hidden, taught = states(1, 9), states(2, 10)
    method = replace(opsd(), divergence=ForwardKL(), loss_temperature=1.0)
    signals = score(method, batch, hidden=hidden, head=head(), readings={"teacher": Reading(hidden=taught, head=head(8))}, chunk=chunk)
    row = 0
    for token in range(len(batch.token)):
        if not signals.taught[token]:
            continue
        student = logp_of(hidden[batch.student_token[token]], head(), 1.0)
        teacher = logp_of(taught[row], head(8), 1.0)
        row += 1
        torch.testing.assert_close(signals.divergence[token], (teacher.exp() * (teacher - student)).sum(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(signals.target_logp[token], teacher[batch.token[token]], atol=1e-6, rtol=1e-6)


def test_rollouts_temperature_serves_ratios_and_where_the_method_asks_the_loss():
    rollout = Rollout(prompt_ids=[0], completion_ids=TOKEN.tolist(), behavior_logp=[0.0] * TOKENS, text="", temperature=0.7)
    sample = TrainingSample(rollout=rollout, views={"teacher": View(messages=(), prompt_ids=(0,))}, advantage=0.0, distill_scale=1.0)
    (batch,) = pack([sample], 10**6)
    readings = {"teacher": Reading(hidden=states(2), head=head(8))}
    rows = torch.arange(TOKENS)
    for loss_temperature, used in ((None, 0.7), (1.3, 1.3)):
        method = replace(opsd(), divergence=ForwardKL(), loss_temperature=loss_temperature)
        signals = score(method, batch, hidden=states(1), head=head(), readings=readings)
        torch.testing.assert_close(signals.policy_logp, logp_of(states(1), head(), 0.7)[rows, TOKEN], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(signals.logp, logp_of(states(1), head(), used)[rows, TOKEN], atol=1e-6, rtol=1e-6)
        teacher = logp_of(states(2), head(8), used)
        torch.testing.assert_close(signals.target_logp, teacher[rows, TOKEN], atol=1e-6, rtol=1e-6)


def test_target_and_entropies_carry_no_gradient():
    hidden, read_by = states(1).requires_grad_(), head()
    read_by.weight.requires_grad_()
    tied = replace(read_by)
    signals = score_tensors(hsd(), hidden=hidden, head=read_by, views={"teacher": (states(2), tied)}, token=TOKEN)
    assert not any(x.requires_grad for x in (signals.entropy, signals.target_logp, signals.target_entropy, signals.log_ratio))
    assert signals.divergence.requires_grad
