"""Medians, threshold and false alarms of probes whose distances are known."""

import numpy as np
import pytest
import torch
from planted import rollout

from selfdistill.diagnostics.transport import stage_of, transport
from selfdistill.methods import opsd, topd_self
from selfdistill.windows import Probed

HIGH, RANDOM, LOW = [0.1, 0.4, 0.9, 0.5], [0.3, 0.2], [0.0, 0.1, 0.2, 0.4]


def probed():
    made = rollout([1], 0.0)
    rows = [("high", 3.0 + i, d) for i, d in enumerate(HIGH)] + [("random", 1.0, d) for d in RANDOM] + [("low", 0.0, d) for d in LOW]
    return [Probed(made, 0, loss, kind, made, made, torch.ones(1, 1), d) for kind, loss, d in rows]


def test_figures_of_known_probes():
    result = transport(probed(), quantile=0.75)
    assert [(k.kind, k.probes, k.distance) for k in result.kinds] == [("high", 4, 0.45), ("random", 2, 0.25), ("low", 4, pytest.approx(0.15))]
    assert result.threshold == pytest.approx(0.25)
    assert result.false_alarms == 1 / 4, "only the 0.1 among the high ones is within what low loss shows too"
    losses = [3, 4, 5, 6, 1, 1, 0, 0, 0, 0]
    assert result.pearson == pytest.approx(np.corrcoef(losses, HIGH + RANDOM + LOW)[0, 1])


def test_nothing_to_probe_is_a_sentence():
    with pytest.raises(ValueError, match="no rollout is taught"):
        transport([], quantile=0.75)
    with pytest.raises(ValueError, match="writes no windows"):
        stage_of(opsd())
    assert stage_of(topd_self()).length == 50
