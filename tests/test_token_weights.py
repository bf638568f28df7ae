"""Token weights against their formulas, one rollout at a time."""

import math
from dataclasses import replace

import pytest
import torch
from stepping import batch_of, signals_of

from selfdistill.token_weights import ContentMean, ImportanceCap, PolarityGate, PositionSigmoid, Product, Uniform

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


def gated(rewards, deltas, content=None, **gate):
    """(weights, signals) of rollouts whose log-ratios are written down."""
    batch = batch_of(tuple(map(len, deltas)), rewards=rewards)
    batch = replace(batch, annotations={} if content is None else {"content": torch.tensor([m for row in content for m in row])})
    signals = signals_of(batch, logp=torch.full((len(batch.token),), -5.0), target_logp=torch.tensor([d for row in deltas for d in row]) - 5.0)
    return PolarityGate(**gate)(signals), signals


def test_polarity_gate_takes_sides_by_the_rollouts_outcome():
    """Right and supported, right and opposed, wrong and supported, wrong and opposed, undecided."""
    weights, _ = gated([1.0, 1.0, 0.0, 0.0, 1.0], [[0.2, 0.2], [-0.2, -0.2], [0.2, 0.2], [-0.2, -0.2], [0.04, 0.04]])
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 0.0, 0.0]))


def test_polarity_gate_clips_each_token_before_the_mean():
    """One token of 9 nats does not outvote four of -1: clipped at 3 it is 3 - 4 < 0."""
    (first, *_), _ = gated([1.0], [[9.0, -1.0, -1.0, -1.0, -1.0]])
    assert first == -1
    (first, *_), _ = gated([1.0], [[9.0, -1.0, -1.0, -1.0, -1.0]], clip=10.0)
    assert first == 1


def test_masked_tokens_are_in_neither_mean():
    weights, signals = gated([1.0, 1.0], [[-3.0, 0.3, 0.3, 0.3], [1.0, 1.0]], content=[[0.0, 1.0, 1.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(weights, torch.tensor([0.0, 2.0, 2.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(ContentMean()(signals), torch.tensor([0.0, 2.0, 2.0, 0.0, 0.0, 0.0]))
    by_length = (weights * signals.divergence)[:4].sum() / 4
    torch.testing.assert_close(by_length, signals.divergence[1:3].mean())


def test_a_gate_reports_through_a_product():
    _, signals = gated([1.0, 0.0], [[4.0, 1.0], [0.01, 0.01]])
    means = {name: float(total / count) for name, (total, count) in Product((PolarityGate(), Uniform(2.0))).means(signals).items()}
    expected = {"helpful_share": 0.5, "harmful_share": 0.0, "neutral_share": 0.5, "support": (2.0 + 0.01) / 2, "support_clip_share": 0.25}
    assert means == pytest.approx(expected, abs=1e-6)


def test_a_gate_that_could_not_open_is_refused():
    for given in ({"clip": 0.0}, {"threshold": -0.1}):
        with pytest.raises(ValueError, match="PolarityGate"):
            PolarityGate(**given)
