"""PW-OPSD: OPSD under a position sigmoid, averaged by rollout."""

import math

import torch
from scene import Scene

from selfdistill.methods import pw_opsd


def test_equation():
    """(1/L) sum_t w_t KL_t with t from 1, divided by L and not by the sum of w."""
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
