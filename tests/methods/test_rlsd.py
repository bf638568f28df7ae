"""RLSD: the outcome's credit, made larger or smaller at each token by what the privileged reading thinks of it."""

import math
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from scene import Scene, advantages, policy_term
from stepping import packed_tokens

from selfdistill.advantages import ReweightedCredit
from selfdistill.methods import grpo, rlsd
from selfdistill.types import Packed


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


class Unsaid(ReweightedCredit):
    """The same credit, which keeps to itself that it is a product with the advantage."""

    scales_advantage: ClassVar[bool] = False


def test_groups_of_equal_rewards_are_read_by_nobody():
    """A = 0 makes every token's credit 0: loss and gradient are those of reading them all, and the mean still counts them."""
    ways = [Scene(replace(rlsd(), credit=credit)) for credit in (ReweightedCredit(0.2), Unsaid(0.2))]
    for scene in ways:
        for rollout in scene.groups[0].rollouts:
            rollout.reward = 1.0
    (lean,), (full,) = (scene.batches() for scene in ways)
    mixed = {(*r.prompt_ids, *r.completion_ids) for r in ways[0].groups[1].rollouts}
    assert set(rows(lean.student)) == mixed and len(lean.views["teacher"].lengths) == len(mixed) < len(full.views["teacher"].lengths)
    assert packed_tokens(lean) < packed_tokens(full)
    (loss, gradient, _), (wanted, same, _) = (scene.found() for scene in ways)
    assert loss == pytest.approx(wanted, abs=1e-6) and gradient.abs().max() > 1e-5
    torch.testing.assert_close(gradient, same, atol=1e-6, rtol=1e-4)


def test_a_step_of_equal_rewards_packs_nothing():
    assert Scene(rlsd(), rewards=1.0).batches() == []


def rows(packed: Packed) -> list[tuple[int, ...]]:
    return [tuple(ids.tolist()) for ids in packed.input_ids.split(packed.lengths)]


def test_a_clip_of_one_would_turn_credit_round():
    with pytest.raises(ValueError, match=r"clip=1.*\[0, 1\)"):
        ReweightedCredit(1.0)
