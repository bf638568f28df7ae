"""The step against itself and against a plain loop: packing, chunks and micro-batches change nothing; untaught rollouts cost nothing."""

from dataclasses import replace

import pytest
import torch
from tiny_models import FAMILIES, full_logp, tiny_groups, tiny_policy

from selfdistill.contexts import FromAnotherProblem
from selfdistill.loss import objective
from selfdistill.methods import METHODS, WRAPPERS, grpo, grpo_plus, hsd, opsd, sdpo
from selfdistill.methods.build import build_method
from selfdistill.models import check_head, check_layout
from selfdistill.packing import pack
from selfdistill.reading import read, start_readers
from selfdistill.samples import training_samples
from selfdistill.sampling.transformers import TransformersSampler
from selfdistill.teachers import Frozen, Live

NAMES = [f.__name__ for f in METHODS] + [f"{w.__name__}(hsd)" for w in WRAPPERS]


def method_named(name):
    """A method whose teacher needs no second checkpoint."""
    method = build_method(name, {}, max_completion_length=16)
    return replace(method, teacher=Frozen()) if name == "opd" else method


def prepared(method, groups, policy):
    for write in method.feedback:
        write(groups, TransformersSampler(policy=policy, max_completion_length=16))
    return groups


def step(method, policy, groups, *, budget=10**6, chunk=None, readers=None):
    """(loss, gradient, signals) of a whole step."""
    policy.zero_grad()
    total, signals = 0.0, []
    readers = readers or start_readers(method, policy)
    for batch in pack(training_samples(prepared(method, groups, policy), method, encode=policy.chat.encode), budget):
        found = read(policy, readers, method, batch, chunk=chunk)
        loss, _ = objective(method, found)
        loss.backward()
        total += float(loss.detach())
        signals.append(found)
    gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in policy.parameters()])
    return total, gradient, signals




@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_micro_batches_change_nothing(name):
    policy, method = tiny_policy(), method_named(name)
    groups = tiny_groups(policy, problems=3)
    whole, gradient, _ = step(method, policy, groups)
    assert gradient.abs().max() > 0 or name in ("opd",), "the step must learn something for this comparison to say anything"
    for budget, chunk in ((10**6, 3), (130, None), (130, 2)):
        loss, other, signals = step(method, policy, groups, budget=budget, chunk=chunk)
        assert loss == pytest.approx(whole, abs=2e-6)
        torch.testing.assert_close(other, gradient, atol=2e-6, rtol=1e-4)
        assert budget > 1000 or len(signals) > 1


def test_gradient_checkpointing_of_the_backbone_changes_nothing():
    policy, method = tiny_policy(), opsd()
    groups = tiny_groups(policy)
    loss, gradient, _ = step(method, policy, groups)
    policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy.train()
    again, gradient_again, _ = step(method, policy, groups, chunk=3)
    assert again == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(gradient_again, gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_head_and_layout_are_the_models_own(family):
    policy = tiny_policy(family)
    assert check_head(policy) < 1e-4
    assert check_layout(policy) < 1e-4


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gemma2"])
def test_packed_layout_equals_rows(family):
    policy = tiny_policy(family)
    groups = tiny_groups(policy)
    rows, gradient, _ = step(opsd(), policy, groups)
    policy.layout = "packed"
    assert check_layout(policy) < 1e-4
    packed, gradient_packed, _ = step(opsd(), policy, groups)
    assert packed == pytest.approx(rows, abs=1e-6)
    torch.testing.assert_close(gradient_packed, gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_opsd_equals_a_per_example_loop(family):
    policy, method = tiny_policy(family), opsd()
    groups = tiny_groups(policy)
    loss, gradient, _ = step(method, policy, groups)
    policy.zero_grad()
    total, count = torch.zeros(()), 0
    for group in groups:
        for rollout in group.rollouts:
            (teaching,) = method.context(rollout, group)
            prompt = policy.chat.encode(teaching.views["teacher"].messages, True)
            student = full_logp(policy, rollout.prompt_ids, rollout.completion_ids, 1.1)
            with torch.no_grad():
                teacher = full_logp(policy, prompt, rollout.completion_ids, 1.1)
            for t in range(len(rollout.completion_ids)):
                entries = teacher[t].exp() * (teacher[t] - student[t])
                total = total + entries.clamp(max=0.05).sum()
                count += 1
    (total / count).backward()
    expected = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in policy.parameters()])
    assert loss == pytest.approx(float((total / count).detach()), abs=1e-6)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


def test_padded_vocabulary_is_cut_before_any_softmax():
    plain, padded = tiny_policy("llama"), tiny_policy("llama", vocab=64)
    groups = tiny_groups(padded)
    with torch.no_grad():
        padded.model.get_output_embeddings().weight[len(padded.tokenizer) :] = 50.0
    _, _, (signals,) = step(opsd(), padded, groups)
    assert signals.logp.max() <= 0 and signals.entropy.max() <= torch.tensor(len(plain.tokenizer)).log()
    expected = torch.cat([full_logp(padded, r.prompt_ids, r.completion_ids, 1.1).gather(-1, torch.tensor(r.completion_ids)[:, None])[:, 0] for g in groups for r in g.rollouts])
    torch.testing.assert_close(signals.logp.sort().values, expected.sort().values, atol=1e-5, rtol=0)


def test_untaught_rollouts_cost_no_pass_and_change_no_other_row(monkeypatch):
    policy, method = tiny_policy(), sdpo()
    groups = tiny_groups(policy, problems=2)
    for rollout in groups[1].rollouts:
        rollout.reward = 0.0
    samples = training_samples(groups, method, encode=policy.chat.encode)
    (batch,) = pack(samples, 10**6)
    taught = [r for r in groups[0].rollouts]
    assert sorted(batch.student.lengths) == sorted(len(r.prompt_ids) + len(r.completion_ids) for r in taught)
    loss, gradient, _ = step(method, policy, groups)
    loss_without, gradient_without, _ = step(method, policy, groups[:1])
    assert loss == pytest.approx(loss_without, abs=1e-7)
    torch.testing.assert_close(gradient, gradient_without)


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_uniform_groups_teach_by_context_only(reward):
    policy = tiny_policy()
    groups = tiny_groups(policy, rewards=reward)
    assert pack(training_samples(groups, grpo(), encode=policy.chat.encode), 10**6) == []
    taught = {bool(s.views) for s in training_samples(groups, sdpo(), encode=policy.chat.encode)}
    assert taught == {reward == 1.0}
    kinds = {s.views["teacher"].messages[-1]["content"].split()[-2] for s in training_samples(groups, hsd(), encode=policy.chat.encode)}
    assert all(s.views for s in training_samples(groups, hsd(), encode=policy.chat.encode)) and kinds


def test_budget_too_small_for_one_rollout_names_the_knob():
    policy = tiny_policy()
    samples = training_samples(tiny_groups(policy), opsd(), encode=policy.chat.encode)
    with pytest.raises(ValueError, match="tokens_per_batch = 10"):
        pack(samples, 10)


def test_longest_rollouts_come_first_and_batches_keep_the_budget():
    policy = tiny_policy()
    samples = training_samples(tiny_groups(policy, problems=6, n=6), opsd(), encode=policy.chat.encode)
    batches = pack(samples, 200)
    longest = [max(max(p.lengths) for p in (b.student, *b.views.values())) for b in batches]
    assert longest == sorted(longest, reverse=True) and len(batches) > 2
    for batch, width in zip(batches, longest, strict=True):
        assert width * (len(batch.student.lengths) + sum(len(v.lengths) for v in batch.views.values())) <= 200


def test_bf16_is_near_fp32():
    exact, rounded = tiny_policy(), tiny_policy()
    rounded.autocast_dtype = torch.bfloat16
    groups = tiny_groups(exact)
    loss, gradient, _ = step(hsd(reference_coef=0), exact, groups)
    loss16, gradient16, _ = step(hsd(reference_coef=0), rounded, groups)
    assert loss16 == pytest.approx(loss, rel=0.05)
    assert torch.nn.functional.cosine_similarity(gradient, gradient16, dim=0) > 0.98


def test_reference_term_pulls_every_rollout_towards_the_start():
    policy, method = tiny_policy(), hsd(reference_coef=0.5)
    groups = tiny_groups(policy)
    readers = start_readers(method, policy)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.05 * torch.randn_like(p))
    _, _, (signals,) = step(method, policy, groups, readers=readers)
    assert signals.reference_kl.min() > -1e-6 and signals.reference_kl.max() > 1e-3
    (batch,) = pack(training_samples(groups, method, encode=policy.chat.encode), 10**6)
    with readers["initial"].reading() as start:
        for sample in range(len(batch.length)):
            rollout = next(r for g in groups for r in g.rollouts if r.completion_ids == batch.token[batch.sample == sample].tolist())
            student, initial = (full_logp(p, rollout.prompt_ids, rollout.completion_ids).detach() for p in (policy, start))
            expected = (student.exp() * (student - initial)).sum(-1)
            torch.testing.assert_close(signals.reference_kl[signals.batch.sample == sample].detach(), expected, atol=1e-5, rtol=1e-4)


def test_hybrid_without_distillation_is_grpo():
    policy = tiny_policy()
    groups = tiny_groups(policy)
    hybrid = grpo_plus(replace(hsd(), reference_coef=0.0), distill_coef=0.0)
    plain = replace(grpo(), reduction=hybrid.reduction)
    one, other = step(hybrid, policy, groups), step(plain, policy, groups)
    assert one[0] == pytest.approx(other[0], abs=1e-7)
    torch.testing.assert_close(one[1], other[1])
    assert not one[2][0].batch.views, "a coefficient of zero reads no teacher"


def test_live_teacher_sees_the_student_as_it_is():
    policy = tiny_policy()
    reader = Live().start(policy)
    with reader.reading() as read_by:
        assert read_by is policy and not torch.is_grad_enabled()


def test_shuffled_context_shows_another_problems_text():
    policy = tiny_policy()
    groups = prepared(build_method("shuffled_context(opsd)", {}, max_completion_length=16), tiny_groups(policy, problems=2), policy)
    (teaching,) = FromAnotherProblem(opsd().context)(groups[0].rollouts[0], groups[0])
    shown = teaching.views["teacher"].messages[-1]["content"]
    assert groups[1].problem.solution in shown and groups[0].problem.solution not in shown and groups[0].problem.prompt in shown
