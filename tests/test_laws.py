"""The three laws, over every registered part: targets and divergences are pointwise in time, weights stay inside their rollout, K teachers are rows."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_groups, tiny_policy

from selfdistill import divergences, token_weights
from selfdistill.contexts import Privileged, Solution
from selfdistill.divergences import JSD, ForwardKL, ReverseKL, TopK, TopKTail, Welsch
from selfdistill.heads import Head
from selfdistill.loss import objective
from selfdistill.methods import METHODS, hsd, opsd, purified_opsd, sdpo
from selfdistill.methods.build import PARTS, build_method
from selfdistill.packing import pack
from selfdistill.reading import read, start_readers
from selfdistill.samples import training_samples
from selfdistill.targets import PMI, TeacherDistribution, TrustRegion
from selfdistill.token_weights import ImportanceCap, PositionSigmoid, Product, Uniform

TOKENS, VOCAB = 40, 23
DIVERGENCES = [
    ForwardKL(), ForwardKL(0.05), ReverseKL(), ReverseKL(0.05), JSD(0.5), JSD(0.2, clip=0.05), Welsch(), TopK(ForwardKL(), 5), TopK(JSD(), 5, of_student=True),
    TopKTail(JSD(0.5), 5), TopKTail(ReverseKL(), 5),
]  # fmt: skip
TARGETS = [TeacherDistribution(), PMI(), PMI(clip=2.0, beta=2.0), TrustRegion(0.3)]
WEIGHTS = [Uniform(), Uniform(0.771), PositionSigmoid(), ImportanceCap(2.0), Product((PositionSigmoid(), Uniform(0.5)))]


def logps(*, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (3 * torch.randn(TOKENS, VOCAB, dtype=dtype, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)


def test_every_divergence_target_and_weight_is_tested_here():
    tested = {type(part) for part in (*DIVERGENCES, *TARGETS, *WEIGHTS)}
    registered = {part for part in PARTS.values() if part.__module__.split(".")[-1] in ("divergences", "targets", "token_weights")}
    assert registered == tested


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_divergence_is_pointwise_in_time(divergence):
    student, target, token = logps(seed=1), logps(seed=2), torch.randint(0, VOCAB, (TOKENS,))
    order = torch.randperm(TOKENS)
    torch.testing.assert_close(divergence(student, target, token)[order], divergence(student[order], target[order], token[order]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_divergence_is_zero_at_equality_with_no_gradient(divergence):
    logits = logps(seed=1).requires_grad_()
    value = divergence(logits.log_softmax(-1), logits.detach().log_softmax(-1), torch.zeros(TOKENS, dtype=torch.long))
    assert value.abs().max() < 1e-6
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("divergence", [d for d in DIVERGENCES if getattr(d, "clip", math.inf) == math.inf], ids=str)
def test_unclipped_divergence_is_never_negative(divergence):
    assert divergence(logps(seed=1), logps(seed=2), torch.randint(0, VOCAB, (TOKENS,))).min() > -1e-12


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_target_is_a_distribution_and_pointwise_in_time(target):
    views = {role: logps(seed=i) for i, role in enumerate(("teacher", "reference", "base", "live", "student"))}
    order = torch.randperm(TOKENS)
    value = target(views)
    torch.testing.assert_close(value.exp().sum(-1), torch.ones(TOKENS, dtype=torch.float64))
    torch.testing.assert_close(value[order], target({role: v[order] for role, v in views.items()}), atol=1e-12, rtol=0)


def signals_of(method, groups, policy):
    (batch,) = pack(training_samples(groups, method, encode=policy.chat.encode), 10**6)
    return read(policy, start_readers(method, policy), method, batch)


@pytest.mark.parametrize("weight", WEIGHTS, ids=str)
def test_token_weight_sees_one_rollout_at_a_time_and_carries_no_gradient(weight):
    policy, method = tiny_policy(), opsd()
    groups = tiny_groups(policy)
    together = signals_of(method, groups, policy)
    weights = weight(together)
    assert not weights.detach().requires_grad
    for sample in range(len(together.batch.length)):
        mine = together.batch.sample == sample
        ids = together.batch.token[mine].tolist()
        alone = [replace_rollouts(g, [r for r in g.rollouts if r.completion_ids == ids]) for g in groups]
        torch.testing.assert_close(weights[mine], weight(signals_of(method, [g for g in alone if g.rollouts][:1], policy)), atol=1e-5, rtol=0)


def replace_rollouts(group, rollouts):
    return replace(group, rollouts=rollouts)


def loss_and_gradient(method, groups, policy):
    policy.zero_grad()
    loss = sum(backward(method, batch, policy) for batch in pack(training_samples(groups, method, encode=policy.chat.encode), 10**6))
    return loss, torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def backward(method, batch, policy):
    loss, _ = objective(method, read(policy, start_readers(method, policy), method, batch))
    loss.backward()
    return float(loss.detach())


class Thrice:
    def __init__(self, context):
        self.context = context

    def __call__(self, rollout, group):
        return [replace(t, weight=w) for t in self.context(rollout, group) for w in (1.0, 2.0, 5.0)]


@pytest.mark.parametrize("make", [opsd, hsd, purified_opsd, sdpo], ids=lambda f: f.__name__)
def test_k_identical_teachers_are_one_and_share_the_student(make, monkeypatch):
    policy = tiny_policy()
    groups = tiny_groups(policy)
    one, three = make(), replace(make(), context=Thrice(make().context))
    rows = []
    original = Head.__call__
    monkeypatch.setattr(Head, "__call__", lambda self, hidden: (rows.append(len(hidden)) if hidden.requires_grad else None, original(self, hidden))[1])
    loss, gradient = loss_and_gradient(one, groups, policy)
    once, rows[:] = list(rows), []
    loss_three, gradient_three = loss_and_gradient(three, groups, policy)
    assert loss_three == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(gradient_three, gradient, atol=1e-6, rtol=1e-4)
    assert rows == once, "the student's head product is computed once per token, however many teachers there are"


@pytest.mark.parametrize("function", METHODS, ids=lambda f: f.__name__)
def test_every_method_prints_pickles_and_compares(function):
    import pickle

    method = build_method(function.__name__, {}, max_completion_length=64)
    assert pickle.loads(pickle.dumps(method)) == method
    assert "Method(" in repr(method)


def test_unknown_beta_names_the_divergences_that_are_meant():
    for beta in (0.0, 1.0):
        with pytest.raises(ValueError, match="ForwardKL"):
            JSD(beta)


def test_modules_of_parts_hold_nothing_unregistered():
    for module in (divergences, token_weights):
        own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
        assert all(v in PARTS.values() for v in own)


def test_context_without_teacher_teaches_nothing():
    policy = tiny_policy()
    groups = tiny_groups(policy)
    for group in groups:
        group.problem = replace(group.problem, solution="")
    samples = training_samples(groups, replace(opsd(), context=Privileged((Solution(),))), encode=policy.chat.encode)
    assert pack(samples, 10**6) == []
