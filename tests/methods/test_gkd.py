"""GKD: JSD to another model on the student's own rollouts, and on references for the share that is not on-policy."""

from dataclasses import replace

import pytest
import torch
from scene import Scene, jsd
from stepping import request_for
from tiny_models import tiny_policy, tiny_problems

from selfdistill.methods import gkd
from selfdistill.sampling.transformers import TransformersSampler
from selfdistill.sources import Mixed
from selfdistill.teachers import Frozen


def test_equation():
    scene = Scene(replace(gkd(), teacher=Frozen()))
    values = []
    for rollout, group in scene.rollouts():
        student, teacher = scene.student(rollout), scene.view(rollout, group, "teacher").detach()
        values += [jsd(student[t], teacher[t]) for t in range(len(rollout.completion_ids))]
    scene.check(torch.stack(values).mean())


def drawn(share: float, seed: int = 0) -> list[bool]:
    """Which of 40 problems the student wrote itself; the others are their solutions, one each."""
    sampler = TransformersSampler(policy=tiny_policy(), max_completion_length=3)
    torch.manual_seed(seed)
    problems = tiny_problems(40)
    groups = Mixed(share)(request_for(sampler, problems, 2))
    assert [g.problem for g in groups] == problems
    own = [len(g.rollouts) == 2 for g in groups]
    assert all(mine or [r.text for r in g.rollouts] == [g.problem.solution] for mine, g in zip(own, groups, strict=True))
    return own


def test_share_of_problems_that_the_student_writes():
    assert drawn(1.0) == [True] * 40 and drawn(0.0) == [False] * 40
    assert 20 < sum(drawn(0.7)) < 36 and drawn(0.7) == drawn(0.7) and drawn(0.7) != drawn(0.7, seed=1)


def test_a_share_that_is_none_says_so():
    with pytest.raises(ValueError, match=r"on_policy_share=1.5.*\[0, 1\]"):
        Mixed(1.5)
