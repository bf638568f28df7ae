"""The surrogate's values and its gradient: when the clip binds, what GSPO's sequence ratio does, and the engine's correction."""

import math
from dataclasses import replace

import pytest
import torch
from stepping import batch_of, signals_of

from selfdistill.policy_losses import ClippedRatio, SequenceRatio


def moved(ratios: list[float], *, lengths: tuple[int, ...] | None = None, engine: float = 1.0):
    """Signals whose ratios to the proximal policy are given, that policy being `engine` times as sure as the sampler."""
    batch = batch_of(lengths or (len(ratios),))
    proximal = batch.behavior_logp + math.log(engine)
    batch = replace(batch, proximal_logp=proximal)
    policy = (proximal + torch.tensor(ratios).log()).requires_grad_()
    return signals_of(batch, policy_logp=policy), policy


@pytest.mark.parametrize(
    "ratio, credit, surrogate, flows",
    [
        (1.5, 1.0, 1.2, False),  # already raised enough
        (1.5, -1.0, -1.5, True),  # raised against a negative credit: pushed back without bound
        (0.5, 1.0, 0.5, True),
        (0.5, -1.0, -0.8, False),  # already lowered enough
        (1.1, 1.0, 1.1, True),
    ],
)
def test_clip_binds_only_where_the_policy_already_moved_the_right_way(ratio, credit, surrogate, flows):
    signals, policy = moved([ratio])
    value, clipped = ClippedRatio()(signals, torch.tensor([credit]))
    assert float(value.detach()) == pytest.approx(surrogate, rel=1e-5)
    (gradient,) = torch.autograd.grad(value.sum(), policy)
    assert float(gradient) == pytest.approx(ratio * credit if flows else 0.0, rel=1e-5)
    assert bool(clipped) is not flows


def test_dapo_clips_higher_above_than_below():
    signals, _ = moved([1.25, 0.75])
    value, clipped = ClippedRatio(clip_high=0.28)(signals, torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(value.detach(), torch.tensor([1.25, -0.8]), rtol=1e-5, atol=0)
    assert clipped.tolist() == [False, True]


def test_first_update_has_ratio_one_and_the_policy_gradient():
    batch = batch_of((5,))
    policy = (batch.behavior_logp.clone()).requires_grad_()
    credit = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0])
    value, clipped = ClippedRatio()(signals_of(batch, policy_logp=policy), credit)
    torch.testing.assert_close(value.detach(), credit)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), policy)[0], credit)
    assert not clipped.any()


@pytest.mark.parametrize("engine, correction", [(1.0, 1.0), (1.5, 1.5), (5.0, 2.0), (0.2, 0.2)])
@pytest.mark.parametrize("loss", [ClippedRatio(), SequenceRatio()], ids=str)
def test_engine_correction_is_truncated_from_above_and_multiplies_once(loss, engine, correction):
    plain, _ = moved([1.0001, 0.9999])
    corrected, policy = moved([1.0001, 0.9999], engine=engine)
    credit = torch.tensor([1.0, 1.0])
    value = loss(corrected, credit)[0]
    torch.testing.assert_close(value, correction * loss(plain, credit)[0], rtol=1e-5, atol=0)
    assert torch.autograd.grad(value.sum(), policy)[0].abs().min() > 0


def test_engine_correction_on_the_first_update_comes_from_the_trainers_own_probabilities():
    batch = batch_of((3,))
    policy = (batch.behavior_logp + math.log(1.5)).requires_grad_()
    value, _ = ClippedRatio()(signals_of(batch, policy_logp=policy), torch.ones(3))
    torch.testing.assert_close(value.detach(), torch.full((3,), 1.5), rtol=1e-5, atol=0)


def test_sequence_ratio_is_the_geometric_mean_and_shares_the_samples_fate():
    ratios = [1.0002, 1.0004, 0.9999, 1.01, 1.0]
    signals, policy = moved(ratios, lengths=(3, 2))
    value, clipped = SequenceRatio()(signals, torch.ones(5))
    first, second = (math.prod(ratios[:3])) ** (1 / 3), math.sqrt(ratios[3] * ratios[4])
    order = signals.batch.length.tolist()
    expected = {3: first, 2: 1 + 4e-4}
    assert second > 1 + 4e-4 > first
    for sample, length in enumerate(order):
        mine = signals.batch.sample == sample
        torch.testing.assert_close(value[mine].detach(), torch.full((length,), expected[length]), rtol=1e-6, atol=0)
        assert clipped[mine].tolist() == [length == 2] * length
    mine = signals.batch.sample == order.index(3)
    (gradient,) = torch.autograd.grad(value[mine].mean(), policy)
    torch.testing.assert_close(gradient[mine], torch.full((3,), first / 3), rtol=1e-5, atol=0)
    assert torch.equal(gradient[~mine], torch.zeros(2)), "no rollout moves another's ratio"
