"""GRPO, Dr. GRPO, DAPO and GSPO, on the first update and on later ones that clip against it."""

import math

import pytest
import torch
from scene import Scene, advantages, kl, policy_term, with_proximal

from selfdistill.methods import dapo, dr_grpo, grpo, grpo_plus, gspo, opsd


@pytest.mark.parametrize("make, per_rollout", [(grpo, True), (lambda: dr_grpo(max_completion_length=50), False)], ids=["grpo", "dr_grpo"])
def test_first_update(make, per_rollout):
    scene = Scene(make())
    total, count = 0, 0
    for group in scene.groups:
        for rollout, advantage in zip(group.rollouts, advantages(group, normalize=per_rollout), strict=True):
            student = scene.student(rollout)
            values = [policy_term(student[t][y], rollout.behavior_logp[t], advantage) for t, y in enumerate(rollout.completion_ids)]
            total = total - sum(values) / (len(values) if per_rollout else 50)
            count += 1
    scene.check(total / count)


def test_kl_to_the_start_is_added_for_every_rollout_even_of_uniform_groups():
    scene = Scene(grpo(reference_coef=0.2), rewards=1.0)
    per_rollout = [torch.stack([kl(s, i) for s, i in zip(scene.student(r), scene.initial(r), strict=True)]).mean() for r, _ in scene.rollouts()]
    scene.check(0.2 * torch.stack(per_rollout).mean())


@pytest.mark.parametrize("make, high", [(grpo, 0.2), (lambda: dapo(max_completion_length=50), 0.28)], ids=["grpo", "dapo"])
def test_later_updates_clip_against_the_first(make, high):
    scene = Scene(make())
    proximal = {tuple(r.completion_ids): [float(x) - 0.4 * (-1) ** t for t, x in enumerate(r.behavior_logp)] for r, _ in scene.rollouts()}
    terms, rollout_means = [], []
    for group in scene.groups:
        for rollout, advantage in zip(group.rollouts, advantages(group), strict=True):
            student, old = scene.student(rollout), proximal[tuple(rollout.completion_ids)]
            mine = [policy_term(student[t][y], rollout.behavior_logp[t], advantage, high=high, proximal=old[t]) for t, y in enumerate(rollout.completion_ids)]
            terms += mine
            rollout_means.append(torch.stack(mine).mean())
    token_mean = make().reduction != grpo().reduction
    (batch,) = scene.batches()
    sums = scene.check(-(torch.stack(terms) if token_mean else torch.stack(rollout_means)).mean(), [with_proximal(batch, proximal)])
    assert sums["clipped"] > 0


def test_gspo_has_one_ratio_a_rollout():
    """(pi / pi_old)^(1/|y|), clipped at 3e-4 below and 4e-4 above; the mean over a rollout's tokens is GSPO's term."""
    scene = Scene(gspo())
    proximal = {}
    for i, (rollout, _) in enumerate(scene.rollouts()):
        student = scene.student(rollout)
        shift = (2e-4, -2e-4, 1e-3, -1e-3)[i % 4]
        proximal[tuple(rollout.completion_ids)] = [float(student[t][y].detach()) + shift for t, y in enumerate(rollout.completion_ids)]
    values = []
    for group in scene.groups:
        for rollout, advantage in zip(group.rollouts, advantages(group), strict=True):
            student, old = scene.student(rollout), torch.tensor(proximal[tuple(rollout.completion_ids)])
            logps = torch.stack([student[t][y] for t, y in enumerate(rollout.completion_ids)])
            ratio = (logps - old).mean().exp()
            engine = (old - torch.tensor(rollout.behavior_logp)).exp().clamp(max=2.0)
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - 3e-4, 1 + 4e-4) * advantage)
            values.append((rollout, engine, ratio, surrogate))
    (batch,) = scene.batches()
    loss, _, sums = scene.found([with_proximal(batch, proximal)])
    expected = -sum(float((engine * surrogate.detach()).mean()) for _, engine, _, surrogate in values) / len(values)
    assert loss == pytest.approx(expected, abs=2e-6)
    assert 0 < sums["clipped"] < sums["tokens"]


def test_gspo_on_the_engines_own_policy_has_the_papers_gradient():
    """Where engine and trainer agree the correction is 1 and the gradient is that of the mean over rollouts of s(theta) A."""
    scene = Scene(gspo())
    for rollout, _ in scene.rollouts():
        student = scene.student(rollout)
        rollout.behavior_logp = [float(student[t][y].detach()) for t, y in enumerate(rollout.completion_ids)]
    terms = []
    for group in scene.groups:
        for rollout, advantage in zip(group.rollouts, advantages(group), strict=True):
            student = scene.student(rollout)
            logps = torch.stack([student[t][y] for t, y in enumerate(rollout.completion_ids)])
            terms.append((logps - logps.detach()).mean().exp() * advantage)
    scene.check(-torch.stack(terms).mean())


def test_hybrid_is_the_sum_of_both_losses():
    scene = Scene(grpo_plus(opsd(), distill_coef=0.3))
    values = []
    for group in scene.groups:
        for rollout, advantage in zip(group.rollouts, advantages(group), strict=True):
            student, plain, teacher = scene.student(rollout, 1.1), scene.student(rollout), scene.view(rollout, group, "teacher", 1.1)
            for t, y in enumerate(rollout.completion_ids):
                entries = (teacher[t].exp() * (teacher[t] - student[t])).clamp(max=0.05).sum()
                values.append(0.3 * entries - policy_term(plain[t][y], rollout.behavior_logp[t], advantage))
    assert math.isfinite(float(sum(values).detach()))
    scene.check(torch.stack(values).mean())
