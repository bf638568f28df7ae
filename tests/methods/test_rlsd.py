"""RLSD: the outcome's credit, made larger or smaller at each token by what the privileged reading thinks of it."""

import math

import pytest
import torch
from scene import Scene, advantages, policy_term

from selfdistill.advantages import ReweightedCredit
from selfdistill.methods import grpo, rlsd


def test_equation():
    """(1/G) sum_i (1/|o_i|) sum_t of the clipped surrogate of A clip(exp(sign(A) Delta_t), 0.8, 1.2)."""
    scene = Scene(rlsd())
    per_rollout, factors = [], []
    for group in scene.groups:
        for rollout, advantage in zip(group.rollouts, advantages(group), strict=True):
            student, teacher = scene.student(rollout), scene.view(rollout, group, "teacher").detach()
            terms = []
            for t, token in enumerate(rollout.completion_ids):
                delta = float(teacher[t][token] - student[t][token].detach())
                factors.append(min(max(math.exp(math.copysign(delta, delta * advantage)), 0.8), 1.2))
                terms.append(-policy_term(student[t][token], rollout.behavior_logp[t], advantage * factors[-1]))
            per_rollout.append(torch.stack(terms).mean())
    assert {0.8, 1.2} < set(factors), "some factors are clipped, some are not"
    scene.check(torch.stack(per_rollout).mean())


def test_a_teacher_without_opinion_leaves_grpo():
    one, other = Scene(rlsd(clip=0.0)), Scene(grpo())
    torch.testing.assert_close(one.found()[1], other.found()[1])


def test_a_clip_of_one_would_turn_credit_round():
    with pytest.raises(ValueError, match=r"clip=1.*\[0, 1\)"):
        ReweightedCredit(1.0)
