"""The three laws, over every registered part and method, and over parts of a user's own."""

import math
import pickle
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from scene import Scene
from stepping import NAMES, batch_of, method_named, prepared, signals_of
from tiny_models import tiny_groups, tiny_policy

from selfdistill import advantages, divergences, targets, token_weights
from selfdistill.advantages import Annotated, BlendedCredit, Credit, GroupRelative, OutcomeCredit, ReweightedCredit, TeacherCredit
from selfdistill.divergences import JSD, ForwardKL, ReverseKL, TeacherTopK, TopK, TopKTail, Welsch
from selfdistill.heads import Head
from selfdistill.method_names import PARTS, build_method
from selfdistill.methods import METHODS, grpo, opsd
from selfdistill.packing import pack
from selfdistill.policy_losses import ClippedRatio, SequenceRatio
from selfdistill.samples import training_samples
from selfdistill.targets import PMI, TeacherDistribution, TrustRegion
from selfdistill.token_weights import ContentMean, ImportanceCap, PolarityGate, PositionSigmoid, Product, Reporting, TeacherConfidence, TeacherUnsure, Uniform
from selfdistill.types import Teaching, TokenSignals, View

TOKENS, VOCAB = 40, 23


@dataclass(frozen=True)
class SquaredHellinger:
    """A divergence as a user would write one."""

    def __call__(self, student, target, token):
        return (target.exp().sqrt() - student.exp().sqrt()).square().sum(-1) / 2


@dataclass(frozen=True)
class Sharpened:
    """A target as a user would write one."""

    power: float = 2.0

    def __call__(self, views):
        return (self.power * views["teacher"]).log_softmax(-1)


@dataclass(frozen=True)
class LaterHalf:
    """A token weight as a user would write one."""

    def __call__(self, signals):
        return (2 * signals.batch.position >= signals.batch.length[signals.batch.sample]).to(signals.logp.dtype)


@dataclass(frozen=True)
class WhereUnsure:
    """A credit as a user would write one."""

    reads_teacher: ClassVar[bool] = False
    reads_advantage: ClassVar[bool] = True

    def __call__(self, signals):
        return signals.advantage * (signals.entropy > signals.sample_mean(signals.entropy)[signals.batch.sample])


DIVERGENCES = [
    ForwardKL(), ForwardKL(0.05), ReverseKL(), ReverseKL(0.05), JSD(0.5), JSD(0.2, clip=0.05), Welsch(), TopK(ForwardKL(), 5), TopK(JSD(), 5, of_student=True),
    TeacherTopK(5), TopKTail(JSD(0.5), 5), TopKTail(ReverseKL(), 5), SquaredHellinger(),
]  # fmt: skip
TARGETS = [TeacherDistribution(), PMI(), PMI(clip=2.0, beta=2.0), PMI(clip=math.inf), TrustRegion(0.3), Sharpened()]
WEIGHTS = [
    Uniform(),
    Uniform(0.771),
    PositionSigmoid(),
    ImportanceCap(2.0),
    Product((PositionSigmoid(), Uniform(0.5))),
    TeacherConfidence(),
    ContentMean(),
    PolarityGate(),
    PolarityGate(clip=0.2, threshold=0.0),
    TeacherUnsure(0.5),
    LaterHalf(),
]
ADVANTAGES = [GroupRelative(), GroupRelative(normalize=False)]
CREDITS = [OutcomeCredit(), TeacherCredit(), BlendedCredit(0.3), ReweightedCredit(0.9), Annotated("delta"), WhereUnsure()]
POLICY_LOSSES = [ClippedRatio(), ClippedRatio(clip_high=0.28), SequenceRatio(), SequenceRatio(0.2, 0.2)]


def logps(*, seed: int = 0) -> torch.Tensor:
    return (3 * torch.randn(TOKENS, VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)


def test_every_registered_part_of_these_kinds_is_tested_here():
    tested = {type(part) for part in (*DIVERGENCES, *TARGETS, *WEIGHTS, *ADVANTAGES, *CREDITS, *POLICY_LOSSES)}
    kinds = ("divergences", "targets", "token_weights", "advantages", "policy_losses")
    registered = {part for part in PARTS.values() if part.__module__.split(".")[-1] in kinds}
    assert registered == tested - {SquaredHellinger, Sharpened, LaterHalf, WhereUnsure}
    for module in (divergences, targets, token_weights, advantages):
        own = {v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__}
        assert own - {Credit, Reporting} <= set(PARTS.values())


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_divergence_is_pointwise_in_time(divergence):
    """Law 2: permuting tokens permutes it, and a token's value and gradient are those it has alone."""
    student, target, token = logps(seed=1).requires_grad_(), logps(seed=2), torch.randint(0, VOCAB, (TOKENS,))
    order = torch.randperm(TOKENS)
    whole = divergence(student, target, token)
    torch.testing.assert_close(whole[order], divergence(student[order], target[order], token[order]), atol=1e-12, rtol=0)
    (gradient,) = torch.autograd.grad(whole[7], student)
    assert torch.equal(gradient[:7], torch.zeros_like(gradient[:7])) and torch.equal(gradient[8:], torch.zeros_like(gradient[8:]))
    torch.testing.assert_close(divergence(student[7:8], target[7:8], token[7:8]), whole[7:8], atol=1e-12, rtol=0)


@pytest.mark.parametrize("divergence", [d for d in DIVERGENCES if not isinstance(d, TeacherTopK)], ids=str)
def test_divergence_is_zero_at_equality_with_no_gradient(divergence):
    logits = logps(seed=1).requires_grad_()
    value = divergence(logits.log_softmax(-1), logits.detach().log_softmax(-1), torch.zeros(TOKENS, dtype=torch.long))
    assert value.abs().max() < 1e-10
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert gradient.abs().max() < 1e-7


@pytest.mark.parametrize("divergence", [d for d in DIVERGENCES if getattr(d, "clip", math.inf) == math.inf], ids=str)
def test_unclipped_divergence_is_never_negative(divergence):
    assert divergence(logps(seed=1), logps(seed=2), torch.randint(0, VOCAB, (TOKENS,))).min() > -1e-12


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_target_is_a_distribution_and_pointwise_in_time(target):
    views = {role: logps(seed=i) for i, role in enumerate(("teacher", "reference", "base", "live", "student"))}
    order = torch.randperm(TOKENS)
    value = target(views)
    torch.testing.assert_close(value.exp().sum(-1), torch.ones(TOKENS, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(value[order], target({role: v[order] for role, v in views.items()}), atol=1e-12, rtol=0)


def perturbed_elsewhere(signals: TokenSignals, sample: int) -> TokenSignals:
    """The same signals, with every scalar of all other samples replaced."""
    other = signals.batch.sample != sample
    noise = {name: torch.where(other, value + 1.7, value) for name, value in vars(signals).items() if isinstance(value, torch.Tensor)}
    behavior = torch.where(other, signals.batch.behavior_logp - 0.9, signals.batch.behavior_logp)
    advantage = torch.where(torch.arange(len(signals.batch.advantage)) != sample, signals.batch.advantage + 0.6, signals.batch.advantage)
    notes = {name: torch.where(other, value + 5, value) for name, value in signals.batch.annotations.items()}
    reward = torch.where(torch.arange(len(advantage)) != sample, 1 - signals.batch.reward, signals.batch.reward)
    return TokenSignals(batch=replace(signals.batch, behavior_logp=behavior, advantage=advantage, reward=reward, annotations=notes), **noise)


@pytest.mark.parametrize("weight", WEIGHTS, ids=str)
def test_token_weight_never_crosses_samples(weight):
    """Law 2: whatever happens in the other rollouts, and whether they are there at all."""
    batch = batch_of((5, 1, 8), rewards=(1.0, 0.0, 1.0))
    signals = signals_of(replace(batch, annotations={"content": (batch.position != 2).float()}))
    weights = weight(signals)
    assert weights.unique().numel() > 1 or isinstance(weight, Uniform)
    for sample in range(3):
        mine = signals.batch.sample == sample
        assert torch.equal(weight(perturbed_elsewhere(signals, sample))[mine], weights[mine])


@pytest.mark.parametrize("credit", CREDITS, ids=str)
def test_credit_never_crosses_samples_and_sends_no_gradient(credit):
    """Law 2, and what multiplies the policy gradient is a constant to it."""
    batch = replace(batch_of((5, 1, 8), rewards=(1.0, -0.5, 0.25)), annotations={"delta": torch.linspace(-1, 1, 14)})
    signals = signals_of(batch, logp=-torch.rand(14).requires_grad_(), policy_logp=-torch.rand(14).requires_grad_())
    value = credit(signals)
    assert value.shape == signals.logp.shape and value.unique().numel() > 1 and not value.requires_grad
    for sample in range(3):
        mine = batch.sample == sample
        assert torch.equal(credit(perturbed_elsewhere(signals, sample))[mine], value[mine])


@pytest.mark.parametrize("credit", CREDITS, ids=str)
def test_credit_reads_what_it_says_it_reads(credit):
    """Rows without a teacher or an advantage are left out by its word."""
    signals = signals_of(batch_of((5, 1, 8), rewards=(1.0, -0.5, 0.25)))
    batch = signals.batch
    teacher = replace(signals, target_logp=signals.target_logp - 1, target_entropy=signals.target_entropy + 1, divergence=signals.divergence + 1)
    outcome = replace(signals, batch=replace(batch, advantage=batch.advantage + 1, reward=batch.reward + 1))
    assert credit.reads_teacher is not torch.equal(credit(teacher), credit(signals))
    assert credit.reads_advantage is not torch.equal(credit(outcome), credit(signals))


@pytest.mark.parametrize("credit", [c for c in CREDITS if getattr(c, "scales_advantage", False)], ids=str)
def test_credit_that_scales_the_advantage_is_zero_without_it(credit):
    """Rollouts whose advantage is 0 are left out by its word."""
    signals = signals_of(batch_of((5, 1, 8), rewards=(0.0, 0.0, 0.0)))
    assert not credit(signals).any()


@pytest.mark.parametrize("advantage", ADVANTAGES, ids=str)
def test_advantage_goes_with_its_rollout(advantage):
    rewards, order = torch.tensor([0.2, 0.9, 0.0, 1.0, 0.9]), torch.randperm(5)
    value = advantage(rewards)
    assert value.unique().numel() == 4 and torch.equal(value.argsort(stable=True), rewards.argsort(stable=True))
    torch.testing.assert_close(advantage(rewards[order]), value[order])


@pytest.mark.parametrize("loss", POLICY_LOSSES, ids=str)
def test_policy_loss_never_crosses_samples(loss):
    signals, credit = signals_of(batch_of((5, 1, 8))), torch.linspace(-1, 1, 14)
    value, clipped = loss(signals, credit)
    for sample in range(3):
        mine = signals.batch.sample == sample
        again, clipped_again = loss(perturbed_elsewhere(signals, sample), torch.where(mine, credit, -credit))
        assert torch.equal(again[mine], value[mine]) and torch.equal(clipped_again[mine], clipped[mine])


@dataclass(frozen=True)
class Repeated:
    """K teachers that say the same, of unequal weight."""

    context: object
    weights: tuple[float, ...] = (1.0, 2.0, 5.0)

    def __call__(self, rollout, group):
        return [replace(t, weight=t.weight * w) for t in self.context(rollout, group) for w in self.weights]


def found(method, monkeypatch, *, budget: int = 10**6, chunk: int | None = None):
    """(loss, gradient, student rows through the head) of a step, null controls' groups lent."""
    rows = []
    original = Head.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Head, "__call__", lambda self, hidden: (rows.append(len(hidden)) if hidden.requires_grad else None, original(self, hidden))[1])
        scene = Scene(method)
        torch.manual_seed(0)
        prepared(method, scene.groups, scene.policy, readers=scene.readers)
        loss, gradient, _ = scene.found(scene.batches(budget), chunk=chunk)
    return loss, gradient, sum(rows)


TAUGHT = {n: method_named(n) for n in NAMES} | {f"opd, {c}": replace(method_named("opd"), credit=c) for c in CREDITS}


@pytest.mark.parametrize("one", [pytest.param(method, id=name) for name, method in TAUGHT.items() if method.reads_teacher])
def test_k_identical_teachers_are_one_and_share_the_student(one, monkeypatch):
    """Law 3, for every method with a teacher and every credit that reads one: same loss, same gradient, one student head product a token."""
    three = replace(one, context=Repeated(one.context))
    loss, gradient, rows = found(one, monkeypatch)
    loss_three, gradient_three, rows_three = found(three, monkeypatch)
    assert rows_three == rows > 0
    assert gradient.abs().max() > 1e-5
    assert loss_three == pytest.approx(loss, abs=2e-6)
    torch.testing.assert_close(gradient_three, gradient, atol=2e-6, rtol=1e-4)
    loss_chunked, gradient_chunked, _ = found(three, monkeypatch, budget=500, chunk=3)
    assert loss_chunked == pytest.approx(loss, abs=2e-6)
    torch.testing.assert_close(gradient_chunked, gradient, atol=2e-6, rtol=1e-4)


@dataclass(frozen=True)
class TwoTeachers:
    """Different prompts with different shares."""

    shares: tuple[float, float]

    def __call__(self, rollout, group):
        prompts = ((2, 7, 8), (2, 9))
        return [Teaching(views={"teacher": View(messages=(), prompt_ids=p, weights="teacher")}, weight=w) for p, w in zip(prompts, self.shares, strict=True)]


def test_different_teachers_are_averaged_by_their_shares(monkeypatch):
    losses = {shares: found(replace(opsd(), context=TwoTeachers(shares)), monkeypatch)[:2] for shares in ((1.0, 0.0), (0.0, 1.0), (1.0, 3.0))}
    (first, by_first), (second, by_second), (both, by_both) = losses.values()
    assert first != pytest.approx(second, abs=1e-4)
    assert both == pytest.approx(0.25 * first + 0.75 * second, abs=1e-6)
    torch.testing.assert_close(by_both, 0.25 * by_first + 0.75 * by_second, atol=1e-6, rtol=1e-4)


def test_users_own_parts_go_through_the_same_step(monkeypatch):
    mine = replace(opsd(), divergence=SquaredHellinger(), target=Sharpened(), token_weight=LaterHalf())
    loss, gradient, _ = found(mine, monkeypatch)
    chunked, gradient_chunked, _ = found(mine, monkeypatch, budget=150, chunk=2)
    assert loss > 0 and chunked == pytest.approx(loss, abs=2e-6)
    torch.testing.assert_close(gradient_chunked, gradient, atol=2e-6, rtol=1e-4)


def test_no_teacher_and_no_advantage_is_no_step():
    policy = tiny_policy()
    groups = tiny_groups(policy, rewards=0.0)
    for group in groups:
        group.problem = replace(group.problem, solution="")
    for method in (opsd(), grpo()):
        assert pack(training_samples(groups, method, encode=policy.chat.encode), 10**6) == []


@pytest.mark.parametrize("function", METHODS, ids=lambda f: f.__name__)
def test_every_method_prints_pickles_and_compares(function):
    method = build_method(function.__name__, {}, max_completion_length=64)
    again = pickle.loads(pickle.dumps(method))
    assert again == method and repr(again) == repr(method)
    assert method != replace(method, reference_coef=method.reference_coef + 1)


def test_jsd_at_its_ends_names_the_divergences_that_are_meant():
    for beta in (0.0, 1.0):
        with pytest.raises(ValueError, match="ForwardKL"):
            JSD(beta)
