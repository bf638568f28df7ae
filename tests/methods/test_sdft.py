"""SDFT: forward KL to an average that reads a demonstration, from the fourth token on."""

import torch
from scene import Scene, kl
from stepping import ScriptedSampler, request_for

from selfdistill.methods import sdft
from selfdistill.types import Group


class Replay(ScriptedSampler):
    """A sampler that hands out the scene's rollouts."""

    def __init__(self, groups: list[Group]) -> None:
        self.groups = groups

    def sample(self, problems, n):
        return self.groups


def test_equation_with_the_methods_own_source():
    scene = Scene(sdft())
    scene.groups = scene.method.source(request_for(Replay(scene.groups), [g.problem for g in scene.groups], 4))
    means = []
    for rollout, group in scene.rollouts():
        student, teacher = scene.student(rollout), scene.view(rollout, group, "teacher")
        values = [kl(teacher[t], student[t]) for t in range(3, len(rollout.completion_ids))]
        means += [torch.stack(values).mean()] if values else []
    assert 1 < len(means) < len(scene.rollouts()), "a rollout of skipped tokens alone is in no mean"
    scene.check(torch.stack(means).mean())
