"""Shares of KL add up to one and lie where it was put; what the student says of references is counted beside the problems' own words."""

import numpy as np
import pytest
from planted import reading, rollout

from selfdistill.diagnostics.leakage import leakage, token_class
from selfdistill.types import Group, Problem

WORDS = {1: "7", 2: "so", 3: ";", 4: "banana", 5: "b"}


@pytest.mark.parametrize(
    "text, kind",
    [
        ("12", "maths"),
        (" =", "maths"),
        ("b", "maths"),
        ("x^2", "maths"),
        ("a", "other"),
        (" Therefore", "style"),
        (";\n", "style"),
        ("cat", "other"),
        ("", "other"),
    ],
)
def test_classes_of_tokens(text, kind):
    assert token_class(text) == kind


def test_kl_by_class_and_by_tenth():
    ids = [1, 2, 3, 4, 5] * 4
    own = rollout(ids, 0.0)
    own.text = "the reference says so, as in the reference solution"
    group = Group(problem=Problem(prompt="what does the reference solution say?", id="p"), rollouts=[own])
    found = reading(own, group, [0.0] * 20)
    found.divergence[:] = np.arange(20.0)
    result = leakage([found], {1: [group]}, {}, decode=lambda ids: WORDS[ids[0]])
    by_class = {"maths": (0, 4), "style": (1, 2), "other": (3,)}
    for share in result.classes:
        own_sum = sum(float(t) for t in range(20) if t % 5 in by_class[share.name])
        assert share.share == pytest.approx(own_sum / 190) and share.mean == pytest.approx(own_sum / share.tokens)
    assert [s.share for s in result.positions] == pytest.approx([(4 * k + 1) / 190 for k in range(10)])
    assert (result.spoken.rollouts[0].total, result.of_prompt) == (2, 1)
    assert result.spoken.rollouts[0].counts["the reference"] == 2, "what begins first is counted"
