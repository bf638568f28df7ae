"""The objective over hand-made signals: four terms, each with its own scale, and sums that add up over micro-batches."""

from dataclasses import dataclass, replace

import pytest
import torch
from stepping import batch_of, signals_of

from selfdistill.loss import objective
from selfdistill.method import Method
from selfdistill.methods import grpo, opsd

LENGTHS = (4, 1, 6)


@dataclass(frozen=True)
class Ramp:
    """A user's own token weight, with a gradient it must not pass on."""

    def __call__(self, signals):
        return signals.batch.position + 1 + signals.logp


def test_four_terms_and_nothing_else():
    batch = batch_of(LENGTHS, rewards=[1.0, -2.0, 0.5], distill_scale=0.3, policy_scale=0.2, label_scale=0.7, reference_scale=0.11)
    signals = signals_of(batch, policy_logp=batch.behavior_logp)
    method = Method(distill_coef=1.0, policy_coef=1.0, label_coef=1.0, reference_coef=1.0, token_weight=Ramp())
    loss, sums = objective(method, signals)
    expected = 0.0
    for t, (sample, position) in enumerate(zip(batch.sample.tolist(), batch.position.tolist(), strict=True)):
        expected += 0.3 * (position + 1 + float(signals.logp[t])) * float(signals.divergence[t])
        expected -= 0.2 * float(batch.advantage[sample])
        expected += 0.7 * float(signals.label_kl[t]) + 0.11 * float(signals.reference_kl[t])
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    parts = sum(float(sums[f"loss_{name}"]) for name in ("distill", "policy", "label", "reference"))
    assert parts == pytest.approx(float(loss), rel=1e-6)


def test_weights_and_credits_are_not_differentiated():
    batch = batch_of(LENGTHS, distill_scale=1.0)
    logp, divergence = torch.rand(11).requires_grad_(), torch.rand(11).requires_grad_()
    loss, _ = objective(replace(opsd(), token_weight=Ramp()), signals_of(batch, logp=logp, divergence=divergence))
    loss.backward()
    assert logp.grad is None and divergence.grad is not None
    torch.testing.assert_close(divergence.grad, (batch.position + 1 + logp).detach())


def test_a_term_with_coefficient_zero_is_not_computed():
    class Never:
        reads_teacher = reads_advantage = True
        reads_annotation = None

        def __call__(self, *args):
            raise AssertionError("a coefficient of zero must compute nothing")

    batch = batch_of(LENGTHS, policy_scale=1.0)
    loss, _ = objective(replace(grpo(), token_weight=Never()), signals_of(batch))
    torch.testing.assert_close(loss, objective(grpo(), signals_of(batch))[0])
    objective(replace(opsd(), policy_loss=Never(), credit=Never()), signals_of(batch))


def test_sums_are_totals_over_tokens_without_graph():
    batch = batch_of(LENGTHS)
    signals = signals_of(batch, divergence=torch.rand(11).requires_grad_(), entropy=torch.rand(11).requires_grad_())
    _, sums = objective(opsd(), signals)
    assert not any(value.requires_grad for value in sums.values())
    assert float(sums["tokens"]) == 11 and float(sums["taught_tokens"]) == 11
    assert float(sums["divergence"]) == pytest.approx(float(signals.divergence.detach().sum()))
    assert float(sums["engine_gap"]) == pytest.approx(float((signals.policy_logp - batch.behavior_logp).abs().sum()), rel=1e-6)


@pytest.mark.parametrize("coefficients", [{"distill_coef": -1.0}, {"distill_coef": 0.0}], ids=str)
def test_a_method_without_a_loss_is_refused(coefficients):
    with pytest.raises(ValueError, match="coef"):
        Method(**coefficients)


def test_a_loss_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="loss_temperature"):
        Method(loss_temperature=0.0)


def test_a_token_counts_once_however_many_teachers_read_it():
    one, three = (batch_of(LENGTHS, teachers=k) for k in (1, 3))
    entropy = torch.rand(11)
    _, alone = objective(opsd(), signals_of(one, entropy=entropy))
    _, shared = objective(opsd(), signals_of(three, entropy=entropy[three.student_token]))
    assert {name: float(shared[name]) for name in ("tokens", "taught_tokens", "entropy")} == pytest.approx(
        {name: float(alone[name]) for name in ("tokens", "taught_tokens", "entropy")}
    )
