"""Advantages and credits: their arithmetic, and no signal where a group has none."""

import math

import pytest
import torch
from stepping import batch_of, signals_of

from selfdistill.advantages import BlendedCredit, GroupRelative, OutcomeCredit, TeacherCredit


def test_group_relative_divides_by_the_population_deviation():
    rewards = [1.0, 0.0, 0.0, 0.5, 1.0]
    mean = sum(rewards) / 5
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 5)
    expected = torch.tensor([(r - mean) / (std + 1e-6) for r in rewards])
    torch.testing.assert_close(GroupRelative()(torch.tensor(rewards)), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(GroupRelative(normalize=False)(torch.tensor(rewards)), torch.tensor([r - mean for r in rewards]))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("reward", [0.0, 0.1, 0.3, 1 / 3, 0.7, 1.0, 1e-3, 123.456])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_equal_rewards_give_exactly_no_advantage(normalize, reward, size):
    """Rounding must not make a signal out of nothing: an optimizer that normalises would take a full step along it."""
    assert torch.equal(GroupRelative(normalize=normalize)(torch.full((size,), reward)), torch.zeros(size))


def test_advantages_are_centred_and_blind_to_the_rewards_scale():
    rewards = torch.tensor([0.2, 0.9, 0.4, 0.4])
    one, scaled = GroupRelative()(rewards), GroupRelative()(100 * rewards + 7)
    assert abs(float(one.sum())) < 1e-5
    torch.testing.assert_close(one, scaled, atol=1e-4, rtol=0)


def test_credits():
    batch = batch_of((3, 2), rewards=[1.0, -0.5])
    signals = signals_of(batch)
    outcome, teacher = OutcomeCredit()(signals), TeacherCredit()(signals)
    assert outcome.tolist() == [batch.advantage[s].item() for s in batch.sample.tolist()]
    torch.testing.assert_close(teacher, signals.target_logp - signals.logp)
    torch.testing.assert_close(BlendedCredit(0.3)(signals), 0.3 * outcome + 0.7 * teacher)


def test_teacher_credit_is_never_differentiated_and_zero_without_teacher():
    batch = batch_of((4,), teachers=0, policy_scale=1.0)
    logp = torch.rand(4).requires_grad_()
    credit = TeacherCredit()(signals_of(batch, logp=logp))
    assert torch.equal(credit, torch.zeros(4))
    taught = TeacherCredit()(signals_of(batch_of((4,)), logp=logp))
    assert not taught.requires_grad and taught.abs().min() > 0
