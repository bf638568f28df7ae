"""AUROCs and ratios are those of plain loops, and their intervals are over problems."""

import numpy as np
import pytest
from planted import by_pairs

from selfdistill.diagnostics.statistics import auroc, auroc_interval, ratio, ratio_interval


def test_auroc_counts_pairs_and_half_of_ties():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 5, 30).astype(float)
    positive = rng.random(30) < 0.4
    assert auroc(scores, positive) == pytest.approx(by_pairs(scores, positive))
    assert np.isnan(auroc(scores, np.ones(30, dtype=bool)))


def test_intervals_draw_problems_and_not_items():
    """Items that repeat within a problem say nothing new: the interval of 10 problems is that of 10 items, not of 1000."""
    rng = np.random.default_rng(0)
    parts = rng.random(10)
    once = ratio_interval(parts.tolist(), [1.0] * 10, list(range(10)))
    often = ratio_interval(np.repeat(parts, 100).tolist(), [1.0] * 1000, np.repeat(np.arange(10), 100).tolist())
    assert often == pytest.approx(once) and once[1] - once[0] > 0.1
    scores, positive = rng.random(12), np.arange(12) % 2 == 0
    alone = auroc_interval(scores, positive, list(range(12)))
    repeated = auroc_interval(np.repeat(scores, 20), np.repeat(positive, 20), np.repeat(np.arange(12), 20).tolist())
    assert repeated == pytest.approx(alone) and alone[0] < auroc(scores, positive) < alone[1]


def test_ratio_is_of_sums_and_too_little_has_no_interval():
    assert ratio([1, 2], [2, 10]) == 3 / 12
    assert np.isnan(ratio([], [])) and np.isnan(ratio_interval([1.0, 2.0], [2.0, 3.0], ["a", "a"])[0])
    assert np.isnan(auroc_interval(np.arange(4.0), np.ones(4, dtype=bool), list("abcd"))[0])
