"""The step against itself and against a plain loop: packing, chunks and micro-batches change nothing; untaught rollouts cost nothing."""

from dataclasses import replace

import pytest
import torch
from stepping import NAMES, ScriptedSampler, Words, gradient_of, method_named, perturb, prepared, step
from tiny_models import FAMILIES, full_logp, tiny_groups, tiny_policy, tiny_problems

from selfdistill.config import make_settings
from selfdistill.loss import objective
from selfdistill.methods import grpo, grpo_plus, hsd, opsd, purified_opsd, sdpo
from selfdistill.packing import pack
from selfdistill.reading import read, start_readers
from selfdistill.samples import training_samples
from selfdistill.trainer import Trainer


@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_micro_batches_change_nothing(name):
    policy, method = tiny_policy(), method_named(name)
    groups = prepared(method, tiny_groups(policy, problems=3), policy)
    readers = start_readers(method, policy)
    perturb(policy)
    whole, gradient, _ = step(method, policy, groups, readers=readers)
    assert gradient.abs().max() > 1e-4, "the step must learn something for this comparison to say anything"
    for budget, chunk in ((10**6, 3), (150, None), (150, 2)):
        loss, other, signals = step(method, policy, groups, budget=budget, chunk=chunk, readers=readers)
        assert loss == pytest.approx(whole, abs=2e-6)
        torch.testing.assert_close(other, gradient, atol=2e-6, rtol=1e-4)
        assert budget > 1000 or len(signals) > 1


@pytest.mark.parametrize("make", [opsd, hsd, purified_opsd, sdpo, lambda: grpo_plus(hsd())], ids=["opsd", "hsd", "purified_opsd", "sdpo", "grpo_plus(hsd)"])
def test_gradient_checkpointing_of_the_backbone_changes_nothing(make):
    policy, method = tiny_policy(), make()
    groups = tiny_groups(policy)
    readers = start_readers(method, policy)
    loss, gradient, _ = step(method, policy, groups, readers=readers)
    policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy.train()
    for chunk in (None, 3):
        again, gradient_again, _ = step(method, policy, groups, chunk=chunk, readers=readers)
        assert again == pytest.approx(loss, abs=1e-6)
        torch.testing.assert_close(gradient_again, gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gemma2"])
def test_packed_layout_equals_rows(family):
    policy = tiny_policy(family)
    groups = tiny_groups(policy)
    rows, gradient, _ = step(opsd(), policy, groups)
    policy.layout = "packed"
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
    assert loss == pytest.approx(float((total / count).detach()), abs=1e-6)
    torch.testing.assert_close(gradient, gradient_of(policy), atol=1e-6, rtol=1e-4)


def test_padded_vocabulary_is_cut_before_any_softmax():
    plain, padded = tiny_policy("llama"), tiny_policy("llama", vocab=64)
    groups = tiny_groups(padded)
    with torch.no_grad():
        padded.model.get_output_embeddings().weight[len(padded.tokenizer) :] = 50.0
    _, gradient, (signals,) = step(opsd(), padded, groups)
    assert signals.logp.max() <= 0 and signals.entropy.max() <= torch.tensor(len(plain.tokenizer)).log()
    rollouts = {tuple(r.completion_ids): r for g in groups for r in g.rollouts}
    for sample in range(len(signals.batch.length)):
        mine = signals.batch.sample == sample
        rollout = rollouts[tuple(signals.batch.token[mine].tolist())]
        expected = full_logp(padded, rollout.prompt_ids, rollout.completion_ids, 1.1).gather(-1, signals.batch.token[mine][:, None])[:, 0]
        torch.testing.assert_close(signals.logp[mine], expected, atol=1e-5, rtol=0)
    assert gradient.abs().max() > 0
    rows = padded.model.get_output_embeddings().weight.grad
    assert torch.equal(rows[len(padded.tokenizer) :], torch.zeros_like(rows[len(padded.tokenizer) :])), "padding rows are not trained"


def test_untaught_rollouts_cost_no_pass_and_change_no_other_row():
    policy, method = tiny_policy(), sdpo()
    groups = tiny_groups(policy, problems=2)
    for rollout in groups[1].rollouts:
        rollout.reward = 0.0
    (batch,) = pack(training_samples(groups, method, encode=policy.chat.encode), 10**6)
    assert sorted(batch.student.lengths) == sorted(len(r.prompt_ids) + len(r.completion_ids) for r in groups[0].rollouts)
    loss, gradient, _ = step(method, policy, groups)
    loss_without, gradient_without, _ = step(method, policy, groups[:1])
    assert loss == loss_without and torch.equal(gradient, gradient_without)


def test_one_rollout_more_changes_no_other_rows_signals():
    """A neighbour in the batch, longer than all others, moves no row's scalars."""
    policy, method = tiny_policy(), hsd(reference_coef=0.0)
    groups = tiny_groups(policy, problems=2, longest=9)
    _, _, (alone,) = step(method, policy, groups[:1])
    longer = tiny_groups(policy, problems=2, longest=60, seed=3)[1]
    _, _, (together,) = step(method, policy, [groups[0], longer])
    for sample in range(len(alone.batch.length)):
        mine = alone.batch.sample == sample
        ids = alone.batch.token[mine].tolist()
        theirs = next(m for s in range(len(together.batch.length)) if together.batch.token[m := together.batch.sample == s].tolist() == ids)
        for name in ("logp", "target_logp", "divergence", "entropy"):
            torch.testing.assert_close(getattr(together, name)[theirs], getattr(alone, name)[mine], atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_uniform_groups_teach_by_context_only(reward):
    policy = tiny_policy()
    groups = tiny_groups(policy, rewards=reward)
    assert pack(training_samples(groups, grpo(), encode=policy.chat.encode), 10**6) == []
    assert {bool(s.views) for s in training_samples(groups, sdpo(), encode=policy.chat.encode)} == {reward == 1.0}
    samples = training_samples(groups, hsd(), encode=policy.chat.encode)
    shows_peer = {" w3 " in s.views["teacher"].messages[-1]["content"] for s in samples}
    assert shows_peer == {reward == 1.0}, "hsd falls back to the answer where nobody succeeded"


@pytest.mark.parametrize("name", NAMES)
def test_completions_of_one_token_and_without_end_are_ordinary(name):
    """Every rollout one token, none an end of sequence: finite loss, finite gradient, one micro-batch == many."""
    policy, method = tiny_policy(), method_named(name)
    groups = tiny_groups(policy, problems=2)
    for rollout in (r for g in groups for r in g.rollouts):
        rollout.completion_ids, rollout.behavior_logp = rollout.completion_ids[:1], rollout.behavior_logp[:1]
        rollout.truncated = True
    assert policy.tokenizer.eos_token_id not in {i for g in groups for r in g.rollouts for i in r.completion_ids}
    prepared(method, groups, policy)
    readers = start_readers(method, policy)
    perturb(policy)
    loss, gradient, _ = step(method, policy, groups, readers=readers)
    again, same, _ = step(method, policy, groups, readers=readers, budget=80)
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    assert again == pytest.approx(loss, abs=2e-6)
    torch.testing.assert_close(same, gradient, atol=2e-6, rtol=1e-4)


def test_budget_too_small_for_one_rollout_names_the_knob():
    policy = tiny_policy()
    samples = training_samples(tiny_groups(policy), opsd(), encode=policy.chat.encode)
    with pytest.raises(ValueError, match="tokens_per_batch = 10"):
        pack(samples, 10)


def test_longest_rollouts_come_first():
    policy = tiny_policy()
    batches = pack(training_samples(tiny_groups(policy, problems=6, n=6), opsd(), encode=policy.chat.encode), 200)
    longest = [max(max(p.lengths) for p in (b.student, *b.views.values())) for b in batches]
    assert longest == sorted(longest, reverse=True) and len(batches) > 2


@pytest.mark.parametrize("make", [lambda: hsd(reference_coef=0), opsd, sdpo, purified_opsd, grpo], ids=["hsd", "opsd", "sdpo", "purified_opsd", "grpo"])
def test_bf16_is_near_fp32(make):
    exact, rounded = tiny_policy(), tiny_policy()
    rounded.autocast_dtype = torch.bfloat16
    groups = tiny_groups(exact)
    (loss, gradient, _), (loss16, gradient16, (signals,)) = (step(make(), policy, groups) for policy in (exact, rounded))
    assert loss16 == pytest.approx(loss, rel=0.05, abs=5e-3)
    assert torch.nn.functional.cosine_similarity(gradient, gradient16, dim=0) > 0.97
    assert signals.logp.dtype == signals.divergence.dtype == torch.float32, "softmax and sums are in fp32"


def test_the_schedule_counts_steps_without_anything_to_learn():
    """Runs of equal length end at equal rates, whether groups had contrast or not."""
    policy = tiny_policy()
    groups = tiny_groups(policy)
    for rollout in (r for g in groups for r in g.rollouts):
        rollout.reward = 0.0
    trainer = trainer_of(policy, {"steps": 4, "optimizer": {"lr": 1e-4, "schedule": "linear"}})
    assert [trainer.learn(groups).metrics["lr"] for _ in range(4)] == pytest.approx([1e-4, 0.75e-4, 0.5e-4, 0.25e-4])


def trainer_of(policy, settings):
    return Trainer(
        policy=policy,
        method=grpo(),
        problems=tiny_problems(),
        sampler=ScriptedSampler(),
        grade=lambda groups: None,
        task=Words(),
        settings=make_settings(settings, {}),
    )


def test_training_packs_by_what_it_reads():
    """Eight rollouts of a long prompt in a micro-batch that whole rows would not fit."""
    policy, passes = tiny_policy(), []
    groups = tiny_groups(policy, problems=1, n=8)
    for rollout in groups[0].rollouts:
        rollout.prompt_ids = [5 + i % 40 for i in range(200)]
    policy.base.base_model.register_forward_pre_hook(lambda module, inputs: passes.append(inputs[0].shape))
    trainer_of(policy, {"tokens_per_batch": 1000}).learn(groups)
    assert [shape for shape in passes if shape[1] >= 200] == [(1, 200)], "the prompt is read once"


RATE = 0.5
STEEP = {"optimizer": {"name": "torch.optim:SGD", "lr": RATE, "max_grad_norm": 0}}


@pytest.mark.parametrize("passes", [1, 2])
def test_mini_batches_are_updates_that_clip_against_the_steps_beginning(passes):
    """Each part is averaged by itself, and its old log-probs are those from before any part was learned from."""
    policy, byhand = tiny_policy(), tiny_policy()
    groups = tiny_groups(policy)
    found = trainer_of(policy, STEEP | {"mini_batches": 2, "updates_per_step": passes, "steps": 1}).learn(groups).metrics

    readers, parts = start_readers(grpo(), byhand), []
    for part in (groups[0::2], groups[1::2]):
        (batch,) = pack(training_samples(part, grpo(), encode=byhand.chat.encode), 10**6)
        parts.append(replace(batch, proximal_logp=read(byhand, readers, grpo(), batch).policy_logp.detach()))
    losses, clipped, tokens = [], 0.0, 0
    for batch in parts * passes:
        byhand.zero_grad()
        loss, sums = objective(grpo(), read(byhand, readers, grpo(), batch))
        loss.backward()
        losses.append(float(loss.detach()))
        clipped, tokens = clipped + float(sums["clipped"]), tokens + len(batch.token)
        with torch.no_grad():
            for p in byhand.parameters():
                p -= RATE * (0 if p.grad is None else p.grad)
    for one, other in zip(policy.parameters(), byhand.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert found["clip_share"] == pytest.approx(clipped / tokens) and clipped > 0
    assert found["trained_tokens"] == tokens / passes


def test_the_schedule_counts_every_mini_batch():
    policy = tiny_policy()
    trainer = trainer_of(policy, {"steps": 2, "mini_batches": 2, "optimizer": {"lr": 1e-4, "schedule": "linear"}})
    assert [trainer.learn(tiny_groups(policy)).metrics["lr"] for _ in range(2)] == pytest.approx([1e-4, 0.5e-4])
    assert trainer.schedule.get_last_lr() == pytest.approx([0.0])
