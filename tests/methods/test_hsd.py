"""HSD: the model shown the answer and a success of the group teaches every attempt, held near where it began."""

import pytest
import torch
from scene import Scene, kl

from selfdistill.divergences import ReverseKL
from selfdistill.methods import hsd
from selfdistill.teachers import Frozen, Live


@pytest.mark.parametrize("teacher", [Live(), Frozen()], ids=str)
def test_equation(teacher):
    """(1/G) sum_i (1/|o_i|) sum_t KL(sg pi(. | q, c_i) || pi) + coef KL(pi || pi_0)."""
    scene = Scene(hsd(teacher=teacher, reference_coef=0.3))
    per_rollout = []
    for rollout, group in scene.rollouts():
        student, taught, start = scene.student(rollout), scene.view(rollout, group, "teacher").detach(), scene.initial(rollout)
        length = len(rollout.completion_ids)
        distill = sum(kl(taught[t], student[t]) for t in range(length)) / length
        per_rollout.append(distill + 0.3 * sum(kl(student[t], start[t]) for t in range(length)) / length)
    scene.check(torch.stack(per_rollout).mean())


def test_direction_is_an_ablation():
    scene = Scene(hsd(direction=ReverseKL(), reference_coef=0.0))
    per_rollout = []
    for rollout, group in scene.rollouts():
        student, taught = scene.student(rollout), scene.view(rollout, group, "teacher").detach()
        per_rollout.append(torch.stack([kl(s, t) for s, t in zip(student, taught, strict=True)]).mean())
    scene.check(torch.stack(per_rollout).mean())


def test_failed_only_averages_over_the_failed():
    scene = Scene(hsd(failed_only=True, reference_coef=0.0))
    per_rollout = []
    for rollout, group in scene.rollouts():
        if rollout.reward < 1:
            student, taught = scene.student(rollout), scene.view(rollout, group, "teacher").detach()
            per_rollout.append(torch.stack([kl(t, s) for s, t in zip(student, taught, strict=True)]).mean())
    scene.check(torch.stack(per_rollout).mean())


def test_a_groups_only_success_reads_the_answer():
    scene = Scene(hsd())
    group = scene.groups[0]
    for rollout in group.rollouts:
        rollout.reward = float(rollout.index == 2)
    shown = {r.index: scene.method.context(r, group)[0].views["teacher"].messages[-1]["content"] for r in group.rollouts}
    peer = group.rollouts[2].text
    assert peer not in shown[2] and all(peer in shown[i] for i in (0, 1, 3))
    assert all(group.problem.answer in text for text in shown.values())
