"""Law 1: a teacher is a prompt plus the weights that read it. Each view is read by the weights it names, and only once."""

from dataclasses import dataclass, replace

import pytest
import torch
from stepping import NAMES, method_named, packed_tokens, perturb, prepared
from tiny_models import full_logp, tiny_groups, tiny_policy

from selfdistill.methods import grpo, hsd, opsd, purified_opsd, sdpo, sdpo_trust_region
from selfdistill.models import Policy
from selfdistill.packing import pack
from selfdistill.reading import read, score_groups, start_readers
from selfdistill.samples import training_samples
from selfdistill.teachers import EMA, Frozen, Live
from selfdistill.types import Teaching, View


@dataclass(frozen=True)
class ReadBy:
    """The student's own prompt under chosen weights."""

    weights: str

    def __call__(self, rollout, group):
        return [Teaching(views={"teacher": View(messages=(), prompt_ids=tuple(rollout.prompt_ids), weights=self.weights)})]


@pytest.mark.parametrize("weights, moves", [("student", False), ("teacher", True), ("initial", True)])
def test_a_view_is_read_by_the_weights_it_names(weights, moves):
    policy = tiny_policy()
    method = replace(opsd(clip=float("inf")), context=ReadBy(weights), teacher=Frozen(), reference_coef=0.1)
    groups = tiny_groups(policy)
    readers = start_readers(method, policy)
    before = {id(r): full_logp(policy, r.prompt_ids, r.completion_ids, 1.1).detach() for g in groups for r in g.rollouts}
    perturb(policy)
    (batch,) = pack(training_samples(groups, method, encode=policy.chat.encode), 10**6)
    signals = read(policy, readers, method, batch)
    rollouts = {tuple(r.completion_ids): r for g in groups for r in g.rollouts}
    for sample in range(len(batch.length)):
        mine = batch.sample == sample
        rollout = rollouts[tuple(batch.token[mine].tolist())]
        now = full_logp(policy, rollout.prompt_ids, rollout.completion_ids, 1.1).detach()
        expected = (before[id(rollout)] if moves else now).gather(-1, batch.token[mine][:, None])[:, 0]
        torch.testing.assert_close(signals.target_logp[mine], expected, atol=2e-6, rtol=1e-5)
    assert (signals.divergence.detach().abs().max() > 1e-3) == moves


def test_weights_that_were_not_kept_are_an_error():
    policy = tiny_policy()
    method = replace(opsd(), context=ReadBy("initial"))
    (batch,) = pack(training_samples(tiny_groups(policy), method, encode=policy.chat.encode), 10**6)
    with pytest.raises(ValueError, match="'initial'"):
        read(policy, start_readers(method, policy), method, batch)


@dataclass(frozen=True)
class TwoTeachers:
    """The solution's prompt with share 1, the student's own with share 3; the last rollout of a group is untaught."""

    def __call__(self, rollout, group):
        own = View(messages=(), prompt_ids=tuple(rollout.prompt_ids))
        return [] if rollout.index == 3 else [*opsd().context(rollout, group), Teaching(views={"teacher": own}, weight=3.0)]


@pytest.mark.parametrize("budget", [10**6, 120])
def test_scores_for_feedback_are_the_divergence_of_every_taught_rollout(budget):
    """Averaged by the teachers' shares, with the views of the larger one, whatever the micro-batches."""
    policy = tiny_policy()
    method = replace(opsd(clip=float("inf")), context=TwoTeachers(), loss_temperature=1.0, label_coef=1.0, reference_coef=0.5)
    groups = tiny_groups(policy)
    groups[0].rollouts[0].trained = (0, 2)
    readers = start_readers(method, policy)
    perturb(policy)
    policy.train()
    found = score_groups(groups, policy=policy, readers=readers, method=method, budget=budget)
    assert policy.training and len(found) == 6
    by_rollout = {id(s.rollout): s for s in found}
    for rollout, group in ((r, g) for g in groups for r in g.rollouts if r.index != 3):
        student, expected = full_logp(policy, rollout.prompt_ids, rollout.completion_ids), 0
        for teaching in TwoTeachers()(rollout, group):
            view = teaching.views["teacher"]
            prompt = list(view.prompt_ids or policy.chat.encode(view.messages, view.thinking))
            teacher = full_logp(readers["teacher"].teacher, prompt, rollout.completion_ids)
            expected = expected + teaching.weight / 4 * (teacher.exp() * (teacher - student)).sum(-1)
        scored = by_rollout[id(rollout)]
        assert scored.views["teacher"].prompt_ids == tuple(rollout.prompt_ids) and not scored.divergence.requires_grad
        torch.testing.assert_close(scored.divergence, expected.detach()[list(rollout.positions)], atol=2e-6, rtol=1e-4)


def backbone_tokens(monkeypatch) -> list[int]:
    """Tokens of each packed view that any policy's backbone is asked for."""
    seen: list[int] = []
    original = Policy.hidden
    monkeypatch.setattr(Policy, "hidden", lambda self, packed: (seen.append(len(packed.input_ids)), original(self, packed))[1])
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_forward_passes_are_the_packed_rows_and_no_more(name, monkeypatch):
    policy, method = tiny_policy(), method_named(name)
    groups = prepared(method, tiny_groups(policy), policy)
    readers = start_readers(method, policy)
    for batch in pack(training_samples(groups, method, encode=policy.chat.encode), 10**6):
        seen = backbone_tokens(monkeypatch)
        read(policy, readers, method, batch)
        assert sum(seen) == packed_tokens(batch)
        assert len(seen) == 1 + len(set(batch.weights.values())) + batch.reads_initial, "all roles of one teacher are one pass"


def test_untaught_rollouts_are_not_read_by_a_teacher(monkeypatch):
    """Half of a hybrid's rollouts have no teacher: they cost a student row and nothing else."""
    policy = tiny_policy()
    groups = tiny_groups(policy)
    groups[1].problem = replace(groups[1].problem, solution="")
    method = replace(opsd(), policy_coef=1.0)
    (batch,) = pack(training_samples(groups, method, encode=policy.chat.encode), 10**6)
    assert len(batch.student.lengths) == 8 and len(batch.views["teacher"].lengths) == 4
    seen = backbone_tokens(monkeypatch)
    read(policy, start_readers(method, policy), method, batch)
    assert sorted(seen) == sorted([len(batch.student.input_ids), len(batch.views["teacher"].input_ids)])


@pytest.mark.parametrize("make", [opsd, hsd, purified_opsd, sdpo, sdpo_trust_region], ids=lambda f: f.__name__)
def test_reading_leaves_the_student_as_it_was(make):
    policy = tiny_policy().train()
    groups = tiny_groups(policy)
    method = make()
    readers = start_readers(method, policy)
    before = [p.clone() for p in policy.parameters()]
    for batch in pack(training_samples(groups, method, encode=policy.chat.encode), 10**6):
        signals = read(policy, readers, method, batch)
    assert policy.training and all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    assert all(p.grad is None and p.requires_grad for p in policy.parameters())
    assert signals.divergence.requires_grad


def test_kl_to_the_start_shares_the_frozen_teachers_copy():
    policy = tiny_policy()
    shared = start_readers(hsd(teacher=Frozen()), policy)
    assert shared["initial"] is shared["teacher"]
    apart = start_readers(replace(hsd(), teacher=EMA(0.1)), policy)
    assert apart["initial"] is not apart["teacher"]
    assert set(start_readers(grpo(), policy)) == {"student"}, "no teacher is kept for a method that reads none"
    assert set(start_readers(replace(hsd(), reference_coef=0.0, teacher=Live()), policy)) == {"student", "teacher"}
