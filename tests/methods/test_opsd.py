"""OPSD, equation 4 with the official code's entry clip."""

import torch
from scene import Scene

from selfdistill.methods import opsd


def test_equation():
    """mean_t sum_v min(T(v) (log T(v) - log S(v)), clip), both sides at temperature 1.1, over all tokens of the batch."""
    scene = Scene(opsd(clip=0.02))
    values = []
    for rollout, group in scene.rollouts():
        student, teacher = scene.student(rollout, 1.1), scene.view(rollout, group, "teacher", 1.1)
        for s, t in zip(student, teacher, strict=True):
            values.append(sum(torch.clamp(t[v].exp() * (t[v] - s[v]), max=0.02) for v in range(len(s))))
    scene.check(torch.stack(values).mean())
