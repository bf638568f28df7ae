"""SDPO: JSD over the student's top tokens and a tail, times the capped ratio, over rollouts that have a successful peer."""

import math

import torch
from scene import Scene, jsd

from selfdistill.methods import sdpo, sdpo_trust_region


def capped(scene, rollout, student, t):
    return min(math.exp(float(student[t][rollout.completion_ids[t]].detach()) - rollout.behavior_logp[t]), 2.0)


def test_equation():
    scene = Scene(sdpo(top_k=5))
    scene.groups[1].rollouts = [r for r in scene.groups[1].rollouts if r.reward == 0 or r.index == 3]  # one success alone: it is untaught
    values, untaught = [], 0
    for rollout, group in scene.rollouts():
        if not any(r.reward >= 0.5 for r in group.rollouts if r is not rollout):
            untaught += 1
            continue
        student, teacher = scene.student(rollout), scene.view(rollout, group, "teacher")
        for t in range(len(rollout.completion_ids)):
            top = student[t].detach().topk(5).indices
            s = torch.cat([student[t][top], (1 - student[t][top].exp().sum()).log()[None]])
            q = torch.cat([teacher[t][top], (1 - teacher[t][top].exp().sum()).log()[None]])
            values.append(capped(scene, rollout, student, t) * jsd(s, q))
    assert untaught == 1
    scene.check(torch.stack(values).mean())


def test_trust_region_mixes_frozen_and_live_logits():
    scene = Scene(sdpo_trust_region(mix=0.3))
    values = []
    for rollout, group in scene.rollouts():
        student = scene.student(rollout)
        frozen, live = scene.view(rollout, group, "teacher"), scene.view(rollout, group, "live").detach()
        target = (0.7 * frozen + 0.3 * live).log_softmax(-1)
        values += [capped(scene, rollout, student, t) * jsd(student[t], target[t]) for t in range(len(rollout.completion_ids))]
    scene.check(torch.stack(values).mean())
