"""Gaps are paired over the problems that a context has, and rank correlation is over the runs whose gain is known."""

import numpy as np
import pytest

from selfdistill.diagnostics.gap import gap

PLAIN = {"a": [0.0, 1.0], "b": [0.0, 0.0], "c": [1.0, 1.0]}


def test_differences_over_shared_problems():
    under = {"some": {"a": [1.0, 1.0], "b": [1.0, 0.0]}, "all": {"a": [0.0], "b": [0.0], "c": [1.0]}}
    result = gap(PLAIN, under, samples=2, gains={"some": 0.4})
    some, every = result.contexts
    assert (some.problems, some.without, some.under, some.difference, some.gain) == (2, 0.25, 0.75, 0.5, 0.4)
    assert some.difference_ci95 == (0.5, 0.5)
    assert (every.problems, every.difference, every.gain) == (3, pytest.approx(-0.5 / 3), None) and result.spearman is None


def test_rank_correlation_of_gap_and_gain():
    under = {str(k): {p: [float(v)] for p, v in zip("abc", row, strict=True)} for k, row in enumerate([(0, 0, 1), (1, 0, 1), (1, 1, 1)])}
    gains = {"0": 0.1, "1": 0.5, "2": 0.3}
    result = gap(PLAIN, under, samples=1, gains=gains)
    differences = [c.difference for c in result.contexts]
    assert np.argsort(differences).tolist() == [0, 1, 2] and result.spearman == pytest.approx(0.5)


def test_a_context_that_nobody_has_is_a_sentence():
    with pytest.raises(ValueError, match="no rollout has a context of 'feedback alone'"):
        gap(PLAIN, {"feedback alone": {}}, samples=2, gains={})
