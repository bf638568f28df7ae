"""Purified OPSD: the target is the base view moved by what question and reference say together."""

import pytest
import torch
from scene import Scene, jsd

from selfdistill.methods import purified_opsd
from selfdistill.reductions import SequenceMean, TokenMean


@pytest.mark.parametrize("reduction", [TokenMean(), SequenceMean()])
def test_equation(reduction):
    scene = Scene(purified_opsd(clip=2.0, beta=0.5, reduction=reduction))
    per_rollout = []
    for rollout, group in scene.rollouts():
        student = scene.student(rollout, 1.1)
        t, r, b = (scene.view(rollout, group, role, 1.1) for role in ("teacher", "reference", "base"))
        gain = t - r
        gain = gain - gain.mean(-1, keepdim=True)
        target = (b + 2.0 * torch.tanh(gain / 2.0) / 0.5).log_softmax(-1)
        per_rollout.append(torch.stack([jsd(s, q) for s, q in zip(student, target, strict=True)]))
    by_token, by_rollout = torch.cat(per_rollout).mean(), torch.stack([own.mean() for own in per_rollout]).mean()
    assert by_token != by_rollout
    scene.check(by_token if reduction == TokenMean() else by_rollout)


def test_base_view_is_the_student_at_the_start():
    """The base view's prompt is the student's byte for byte, so before any update it is the student."""
    scene = Scene(purified_opsd())
    rollout, group = scene.rollouts()[0]
    with scene.readers["teacher"].reading() as start:
        scene.policy.load_state_dict(start.state_dict())
    torch.testing.assert_close(scene.view(rollout, group, "base", 1.1), scene.student(rollout, 1.1).detach(), atol=1e-6, rtol=0)
