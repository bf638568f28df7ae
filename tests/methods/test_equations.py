"""Every method against its paper's equation, written as a plain loop over rollouts, tokens and vocabulary entries."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_models import full_logp, tiny_groups, tiny_policy

from selfdistill.contexts import Answer, Privileged
from selfdistill.loss import objective
from selfdistill.methods import dapo, dr_grpo, grpo, gspo, hsd, opd, opsd, purified_opsd, pw_opsd, sdft, sdpo, sdpo_trust_region, sft
from selfdistill.packing import pack
from selfdistill.reading import read, start_readers
from selfdistill.reductions import SequenceMean
from selfdistill.samples import training_samples
from selfdistill.sampling.transformers import TransformersSampler
from selfdistill.teachers import Frozen


class Scene:
    """A student, the frozen weights it left, and rollouts of both; every quantity of the equations from one sequence at a time."""

    def __init__(self, method, *, rewards=None, seed=0):
        self.policy = tiny_policy()
        self.method = method
        self.groups = tiny_groups(self.policy, rewards=rewards, seed=seed)
        self.readers = start_readers(method, self.policy)
        with torch.no_grad():
            for p in self.policy.parameters():
                p.add_(0.03 * torch.randn_like(p, memory_format=torch.contiguous_format))

    def rollouts(self):
        return [(r, g) for g in self.groups for r in g.rollouts]

    def student(self, rollout, temperature=1.0):
        return full_logp(self.policy, rollout.prompt_ids, rollout.completion_ids, temperature)

    def view(self, rollout, group, role, temperature=1.0):
        """A view's log-probs under the weights it names."""
        (teaching,) = self.method.context(rollout, group)
        view = teaching.views[role]
        prompt = list(view.prompt_ids or self.policy.chat.encode(view.messages, view.thinking))
        with self.readers[view.weights].reading() as reader:
            return full_logp(reader, prompt, rollout.completion_ids, temperature)

    def initial(self, rollout):
        with self.readers["initial"].reading() as reader:
            return full_logp(reader, rollout.prompt_ids, rollout.completion_ids)

    def check(self, expected):
        """Loss and gradient of the framework are those of the loop."""
        self.policy.zero_grad()
        expected.backward()
        wanted = gradients(self.policy)
        self.policy.zero_grad()
        total = 0.0
        for batch in pack(training_samples(self.groups, self.method, encode=self.policy.chat.encode), 10**6):
            loss, _ = objective(self.method, read(self.policy, self.readers, self.method, batch))
            loss.backward()
            total += float(loss.detach())
        assert total == pytest.approx(float(expected.detach()), abs=2e-6)
        assert wanted.abs().max() > 1e-5
        torch.testing.assert_close(gradients(self.policy), wanted, atol=3e-6, rtol=1e-3)


def gradients(policy):
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in policy.parameters()])


def kl(p, q):
    return (p.exp() * (p - q)).sum()


def jsd(student, target, beta=0.5):
    mixture = (beta * target.exp() + (1 - beta) * student.exp()).log()
    return beta * kl(target, mixture) + (1 - beta) * kl(student, mixture)


def test_opsd():
    scene = Scene(opsd(clip=0.02))
    values = []
    for rollout, group in scene.rollouts():
        student, teacher = scene.student(rollout, 1.1), scene.view(rollout, group, "teacher", 1.1)
        for s, t in zip(student, teacher, strict=True):
            values.append(sum(torch.clamp(t[v].exp() * (t[v] - s[v]), max=0.02) for v in range(len(s))))
    scene.check(torch.stack(values).mean())


def test_pw_opsd():
    scene = Scene(pw_opsd())
    per_rollout = []
    for rollout, group in scene.rollouts():
        student, teacher = scene.student(rollout, 1.1), scene.view(rollout, group, "teacher", 1.1)
        length, total = len(rollout.completion_ids), 0
        for t in range(1, length + 1):
            weight = 0.25 + 0.75 / (1 + math.exp(-((t - 0.5) / length - 0.30) / 0.10))
            entries = teacher[t - 1].exp() * (teacher[t - 1] - student[t - 1])
            total = total + weight * entries.clamp(max=0.05).sum()
        per_rollout.append(total / length)
    scene.check(torch.stack(per_rollout).mean())


def test_hsd_and_its_fallback_to_the_answer():
    scene = Scene(hsd(teacher=Frozen(), reference_coef=0.3))
    per_rollout, kinds = [], set()
    for rollout, group in scene.rollouts():
        (teaching,) = scene.method.context(rollout, group)
        text = teaching.views["teacher"].messages[-1]["content"].split()
        peers = [r for r in group.rollouts if r is not rollout and r.reward == 1]
        assert ("w3" in text[-30:]) or not peers
        kinds.add(bool(peers))
        student, teacher, start = scene.student(rollout), scene.view(rollout, group, "teacher"), scene.initial(rollout)
        length = len(rollout.completion_ids)
        distill = sum(kl(teacher[t], student[t]) for t in range(length)) / length
        per_rollout.append(distill + 0.3 * sum(kl(student[t], start[t]) for t in range(length)) / length)
    scene.check(torch.stack(per_rollout).mean())


def test_hsd_shows_a_groups_only_success_the_answer():
    scene = Scene(hsd())
    group = scene.groups[0]
    for rollout in group.rollouts:
        rollout.reward = float(rollout.index == 2)
    shown = {r.index: scene.method.context(r, group)[0].views["teacher"].messages[-1]["content"] for r in group.rollouts}
    peer = group.rollouts[2].text
    assert peer not in shown[2] and all(peer in shown[i] for i in (0, 1, 3))
    assert all(group.problem.answer in text for text in shown.values())


def test_sdft_skips_the_first_tokens():
    scene = Scene(sdft())
    for rollout, _ in scene.rollouts():
        rollout.trained = tuple(range(3, len(rollout.completion_ids)))
    values = []
    for rollout, group in scene.rollouts():
        student, teacher = scene.student(rollout), scene.view(rollout, group, "teacher")
        values += [kl(teacher[t], student[t]) for t in range(3, len(rollout.completion_ids))]
    scene.check(torch.stack(values).mean())


def test_sdpo():
    scene = Scene(sdpo(top_k=5))
    values = []
    for rollout, group in scene.rollouts():
        first = next((r for r in group.rollouts if r is not rollout and r.reward >= 0.5), None)
        if first is None:
            continue
        student, teacher = scene.student(rollout), scene.view(rollout, group, "teacher")
        for t, token in enumerate(rollout.completion_ids):
            top = student[t].detach().topk(5).indices
            s = torch.cat([student[t][top], (1 - student[t][top].exp().sum()).log()[None]])
            q = torch.cat([teacher[t][top], (1 - teacher[t][top].exp().sum()).log()[None]])
            ratio = min(math.exp(float(student[t][token].detach()) - rollout.behavior_logp[t]), 2.0)
            values.append(ratio * jsd(s, q))
    scene.check(torch.stack(values).mean())


def test_sdpo_trust_region_mixes_frozen_and_live_logits():
    scene = Scene(sdpo_trust_region(mix=0.3))
    values = []
    for rollout, group in scene.rollouts():
        if not scene.method.context(rollout, group):
            continue
        student = scene.student(rollout)
        frozen, live = scene.view(rollout, group, "teacher"), scene.view(rollout, group, "live").detach()
        target = (0.7 * frozen + 0.3 * live).log_softmax(-1)
        for t, token in enumerate(rollout.completion_ids):
            ratio = min(math.exp(float(student[t][token].detach()) - rollout.behavior_logp[t]), 2.0)
            values.append(ratio * jsd(student[t], target[t]))
    scene.check(torch.stack(values).mean())


def test_purified_opsd():
    scene = Scene(purified_opsd(clip=2.0, beta=0.5))
    per_rollout = []
    for rollout, group in scene.rollouts():
        student = scene.student(rollout, 1.1)
        t, r, b = (scene.view(rollout, group, role, 1.1) for role in ("teacher", "reference", "base"))
        gain = t - r
        gain = gain - gain.mean(-1, keepdim=True)
        target = (b + 2.0 * torch.tanh(gain / 2.0) / 0.5).log_softmax(-1)
        per_rollout.append(torch.stack([jsd(s, q) for s, q in zip(student, target, strict=True)]).mean())
    scene.check(torch.stack(per_rollout).mean())


def test_opd_is_policy_gradient_on_the_log_ratio():
    scene = Scene(replace(opd(), teacher=Frozen()))
    values = []
    for rollout, group in scene.rollouts():
        student, teacher = scene.student(rollout), scene.view(rollout, group, "teacher")
        for t, token in enumerate(rollout.completion_ids):
            logp = student[t][token]
            credit = (teacher[t][token] - logp).detach()
            engine = min(math.exp(float(logp.detach()) - rollout.behavior_logp[t]), 2.0)
            values.append(-engine * (logp - logp.detach()).exp() * credit)
    scene.check(torch.stack(values).mean())


def advantages(group, *, normalize=True):
    rewards = [r.reward for r in group.rollouts]
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))
    return [(r - mean) / (std + 1e-6 if normalize else 1) for r in rewards]


@pytest.mark.parametrize("make, per_rollout", [(grpo, True), (lambda: dr_grpo(max_completion_length=50), False)], ids=["grpo", "dr_grpo"])
def test_grpo_and_dr_grpo(make, per_rollout):
    scene = Scene(make())
    total, count = 0, 0
    for group in scene.groups:
        for rollout, advantage in zip(group.rollouts, advantages(group, normalize=per_rollout), strict=True):
            student = scene.student(rollout)
            values = [policy_term(student[t][y], rollout.behavior_logp[t], advantage) for t, y in enumerate(rollout.completion_ids)]
            total = total - sum(values) / (len(values) if per_rollout else 50)
            count += 1
    scene.check(total / count)


def policy_term(logp, behavior, advantage, *, low=0.2, high=0.2, proximal=None):
    proximal = float(logp.detach()) if proximal is None else proximal
    engine = min(math.exp(proximal - behavior), 2.0)
    ratio = (logp - proximal).exp()
    return engine * torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


@pytest.mark.parametrize("make, low, high", [(grpo, 0.2, 0.2), (lambda: dapo(max_completion_length=50), 0.2, 0.28)], ids=["grpo", "dapo"])
def test_later_updates_clip_against_the_first(make, low, high):
    scene = Scene(make())
    proximal = {id(r): [float(x) - 0.4 * (-1) ** t for t, x in enumerate(r.behavior_logp)] for r, _ in scene.rollouts()}
    token_mean = make().reduction != grpo().reduction
    terms, rollout_means = [], []
    for group in scene.groups:
        for rollout, advantage in zip(group.rollouts, advantages(group), strict=True):
            student = scene.student(rollout)
            mine = [
                policy_term(student[t][y], rollout.behavior_logp[t], advantage, low=low, high=high, proximal=proximal[id(rollout)][t])
                for t, y in enumerate(rollout.completion_ids)
            ]
            terms += mine
            rollout_means.append(torch.stack(mine).mean())
    expected = -(torch.stack(terms).mean() if token_mean else torch.stack(rollout_means).mean())
    (batch,) = pack(training_samples(scene.groups, scene.method, encode=scene.policy.chat.encode), 10**6)
    by_ids = {tuple(r.completion_ids): proximal[id(r)] for r, _ in scene.rollouts()}
    texts = [tuple(batch.token[batch.sample == s].tolist()) for s in range(len(batch.length))]
    batch = replace(batch, proximal_logp=torch.tensor([x for ids in texts for x in by_ids[ids]]))
    loss, sums = objective(scene.method, read(scene.policy, scene.readers, scene.method, batch))
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=2e-6)
    assert sums["clipped"] > 0


def test_gspo_has_one_ratio_a_rollout():
    scene = Scene(gspo())
    proximal = {tuple(r.completion_ids): [x - 0.0002 for x in r.behavior_logp] for r, _ in scene.rollouts()}
    values = []
    for group in scene.groups:
        for rollout, advantage in zip(group.rollouts, advantages(group), strict=True):
            student = scene.student(rollout)
            logps = torch.stack([student[t][y] for t, y in enumerate(rollout.completion_ids)])
            old = torch.tensor(proximal[tuple(rollout.completion_ids)])
            ratio = (logps - old).mean().exp()
            engine = (old - torch.tensor(rollout.behavior_logp)).exp()
            values.append(-(engine * torch.minimum(ratio * advantage, ratio.clamp(1 - 3e-4, 1 + 4e-4) * advantage)).mean())
    (batch,) = pack(training_samples(scene.groups, scene.method, encode=scene.policy.chat.encode), 10**6)
    texts = [tuple(batch.token[batch.sample == s].tolist()) for s in range(len(batch.length))]
    batch = replace(batch, proximal_logp=torch.tensor([x for ids in texts for x in proximal[ids]]))
    loss, _ = objective(scene.method, read(scene.policy, scene.readers, scene.method, batch))
    assert float(loss.detach()) == pytest.approx(float(torch.stack(values).mean().detach()), abs=2e-6)


def test_sft_is_cross_entropy_on_the_solution():
    method = sft()
    scene = Scene(method)
    sampler = TransformersSampler(policy=scene.policy, max_completion_length=16)
    scene.groups = method.source(sampler, [g.problem for g in scene.groups], 4, grade=lambda groups: None, draw=lambda n: [])
    values = []
    for rollout, group in scene.rollouts():
        rollout.reward = 1.0
        assert rollout.text == group.problem.solution and rollout.completion_ids[-1] == scene.policy.tokenizer.eos_token_id
        student = scene.student(rollout)
        values += [-student[t][y] for t, y in enumerate(rollout.completion_ids)]
    scene.check(torch.stack(values).mean())


def test_hsd_without_successes_is_opsd_on_the_answer():
    one = Scene(hsd(teacher=Frozen(), reference_coef=0), rewards=0.0)
    other = Scene(replace(opsd(clip=math.inf), context=Privileged((Answer(),), thinking=False), reduction=SequenceMean(), loss_temperature=1.0), rewards=0.0)
    losses = []
    for scene in (one, other):
        (batch,) = pack(training_samples(scene.groups, scene.method, encode=scene.policy.chat.encode), 10**6)
        loss, _ = objective(scene.method, read(scene.policy, scene.readers, scene.method, batch))
        loss.backward()
        losses.append((float(loss.detach()), gradients(scene.policy)))
    assert losses[0][0] == losses[1][0] > 0
    assert torch.equal(losses[0][1], losses[1][1])


def test_pw_opsd_with_floor_one_is_opsd_by_sequence():
    assert replace(pw_opsd(floor=1), token_weight=opsd().token_weight) == replace(opsd(), reduction=SequenceMean())
    scene = Scene(pw_opsd(floor=1))
    (batch,) = pack(training_samples(scene.groups, scene.method, encode=scene.policy.chat.encode), 10**6)
    signals = read(scene.policy, scene.readers, scene.method, batch)
    assert torch.equal(scene.method.token_weight(signals), torch.ones_like(signals.divergence))


def test_purified_opsd_with_equal_views_targets_the_base():
    views = {role: (3 * torch.randn(7, 11)).log_softmax(-1) for role in ("teacher", "base")}
    torch.testing.assert_close(purified_opsd().target(views | {"reference": views["teacher"]}), views["base"], atol=1e-6, rtol=0)


def test_sampled_credit_gives_the_exact_gradient_of_reverse_kl():
    """E over y of -Delta grad log S(y) = grad KL(S || T), enumerated over a vocabulary of five."""
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, dtype=torch.float64).log_softmax(-1)
    student = logits.log_softmax(-1)
    (exact,) = torch.autograd.grad(kl(student, teacher), logits, retain_graph=True)
    sampled = torch.zeros(5, dtype=torch.float64)
    for y in range(5):
        (score,) = torch.autograd.grad(student[y], logits, retain_graph=True)
        sampled += float(student[y].exp()) * -float(teacher[y] - student[y]) * score
    torch.testing.assert_close(sampled, exact, atol=1e-12, rtol=0)
