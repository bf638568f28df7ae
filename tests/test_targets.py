"""Targets against their definitions entry by entry, in double precision."""

import math

import pytest
import torch

from selfdistill.targets import PMI, TeacherDistribution, TrustRegion

ROLES = ("teacher", "reference", "base", "live", "student")


def views(*, seed: int = 0, spread: float = 2.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {role: (spread * torch.randn(5, 7, dtype=torch.float64, generator=generator)).log_softmax(-1) for role in ROLES}


def test_teacher_distribution_is_the_teacher():
    given = views()
    assert TeacherDistribution()(given) is given["teacher"]


@pytest.mark.parametrize("clip, beta", [(10.0, 1.0), (1.5, 0.7)])
def test_pmi_entry_by_entry(clip, beta):
    given = views()
    target = PMI(clip, beta)(given)
    for row in range(5):
        gain = [float(given["teacher"][row, v] - given["reference"][row, v]) for v in range(7)]
        mean = sum(gain) / 7
        weights = [math.exp(float(given["base"][row, v]) + clip * math.tanh((gain[v] - mean) / clip) / beta) for v in range(7)]
        expected = [math.log(w / sum(weights)) for w in weights]
        torch.testing.assert_close(target[row], torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


def test_pmi_of_views_that_agree_is_the_base():
    given = views()
    given["reference"] = given["teacher"]
    torch.testing.assert_close(PMI()(given), given["base"], atol=1e-12, rtol=0)


def test_pmi_with_an_empty_reference_sharpens_the_base():
    """beta 1, c -> inf, teacher = base: pi_0(. | q)^2 / pi_0(. | nothing), normalised."""
    given = views()
    given["teacher"] = given["base"]
    expected = (2 * given["base"] - given["reference"]).log_softmax(-1)
    torch.testing.assert_close(PMI(clip=1e8)(given), expected, atol=1e-7, rtol=0)
    torch.testing.assert_close(PMI(clip=math.inf)(given), expected, atol=1e-12, rtol=0)


def test_pmi_ignores_what_reference_alone_adds_to_both():
    """A shift of a role's logits by a constant a row is no change of its distribution, nor of the target."""
    given = views()
    shifted = given | {"teacher": given["teacher"] + 3.0, "reference": given["reference"] - 1.0}
    torch.testing.assert_close(PMI(clip=2.0)(shifted), PMI(clip=2.0)(given), atol=1e-12, rtol=0)


def test_pmi_gain_is_bounded_by_its_clip():
    """However sure the teacher, odds against the base move by at most exp(2 c / beta)."""
    given = views(spread=40.0)
    moved = PMI(clip=2.0, beta=0.5)(given) - given["base"]
    assert float((moved.amax(-1) - moved.amin(-1)).max()) <= 2 * 2.0 / 0.5 + 1e-9


def test_trust_region_is_a_geometric_mixture_with_the_ends_where_they_belong():
    given = views()
    torch.testing.assert_close(TrustRegion(0.0)(given), given["teacher"], atol=1e-12, rtol=0)
    torch.testing.assert_close(TrustRegion(1.0)(given), given["live"], atol=1e-12, rtol=0)
    weights = given["teacher"].exp() ** 0.95 * given["live"].exp() ** 0.05
    torch.testing.assert_close(TrustRegion(0.05)(given).exp(), weights / weights.sum(-1, keepdim=True), atol=1e-12, rtol=0)


def test_trust_region_outside_its_segment_is_refused():
    with pytest.raises(ValueError, match=r"TrustRegion\(mix=1.5\)"):
        TrustRegion(1.5)
