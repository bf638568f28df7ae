"""Token weights against their formulas, one rollout at a time."""

import math
from dataclasses import replace

import pytest
import torch
from stepping import batch_of, signals_of

from selfdistill.token_weights import ImportanceCap, PositionSigmoid, Product, Uniform

LENGTHS = (7, 1, 12, 3)


def test_position_sigmoid_by_each_rollouts_own_length():
    batch = batch_of(LENGTHS)
    weights = PositionSigmoid(0.25, 0.30, 0.10)(signals_of(batch))
    for token, (sample, position) in enumerate(zip(batch.sample.tolist(), batch.position.tolist(), strict=True)):
        fraction = (position + 1 - 0.5) / int(batch.length[sample])
        expected = 0.25 + 0.75 / (1 + math.exp(-(fraction - 0.30) / 0.10))
        assert float(weights[token]) == pytest.approx(expected, abs=1e-6)


def test_moderate_schedule_has_the_mean_of_its_constant_control():
    assert float(PositionSigmoid()(signals_of(batch_of((1000,)))).mean()) == pytest.approx(0.771, abs=5e-4)


def test_skipped_tokens_still_count_in_the_length():
    """Positions are places in the completion, trained or not."""
    whole, batch = batch_of((10,)), batch_of((10,))
    kept = torch.arange(3, 10)
    columns = ("token", "student_token", "sample", "position", "behavior_logp", "label_token", "label_share")
    part = replace(batch, trained=torch.tensor([7]), **{name: getattr(batch, name)[kept] for name in columns})
    schedule = PositionSigmoid()
    torch.testing.assert_close(schedule(signals_of(part)), schedule(signals_of(whole))[kept])


def test_importance_cap_is_the_ratio_to_the_writer_capped_from_above_only():
    batch = batch_of((4,))
    logp = batch.behavior_logp + torch.tensor([math.log(3.0), math.log(1.5), 0.0, math.log(0.1)])
    policy = logp.requires_grad_()
    weights = ImportanceCap(2.0)(signals_of(batch, policy_logp=policy))
    torch.testing.assert_close(weights, torch.tensor([2.0, 1.5, 1.0, 0.1]))
    assert not weights.requires_grad, "the ratio weighs the divergence; it is not differentiated"


def test_uniform_and_product():
    signals = signals_of(batch_of(LENGTHS))
    assert torch.equal(Uniform(0.771)(signals), torch.full((sum(LENGTHS),), 0.771))
    both = Product((PositionSigmoid(), ImportanceCap(), Uniform(0.5)))(signals)
    torch.testing.assert_close(both, PositionSigmoid()(signals) * ImportanceCap()(signals) * 0.5)
