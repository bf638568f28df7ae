"""The branch test: labels by the paper's thresholds, AUROCs by pairs, the horizon's hazard recovered, and branches of a student that is as good as greedy."""

from dataclasses import replace

import numpy as np
import pytest
from planted import by_pairs
from test_resume import settings

from selfdistill.api import assemble
from selfdistill.diagnostics.branches import branches
from selfdistill.diagnostics.viability import Branch, verdict, viability
from selfdistill.methods import opsd
from selfdistill.types import Group, Problem


@pytest.mark.parametrize("children, found", [((0.33, 0.0, 0.39), False), ((0.75, 0.0, 1.0), True), ((0.4, 0.0, 0.0), None), ((1.0, 0.5, 0.0), None)])
def test_labels(children, found):
    assert verdict(children) is found


def branch(position, forced, unforced=(0.5,) * 3, problem="p", remaining=10):
    numbers = {"teacher_entropy": 1 - position, "margin": 0.1, "student_entropy": 0.2, "kl": 0.3}
    return Branch(problem=problem, position=position, remaining=remaining, draws=6, forced=forced, unforced=unforced, **numbers)


def test_figures_of_known_branches():
    rng = np.random.default_rng(0)
    rows = [(p, bool(rng.random() < p)) for p in rng.random(40)]
    found = [branch(p, (1.0, 1.0, 0.0) if right else (0.0,) * 3, problem=str(i % 7)) for i, (p, right) in enumerate(rows)]
    result = viability([*found, branch(0.5, (0.5,) * 3)])
    forced = {p.name: p.auroc for p in result.forced.predictions}
    expected = by_pairs([p for p, _ in rows], [right for _, right in rows])
    assert forced["position"] == pytest.approx(expected) and forced["teacher_entropy"] == pytest.approx(1 - expected) and forced["kl"] == 0.5
    right = sum(r for _, r in rows)
    assert (result.branches, result.forced.diverse, result.forced.low, result.forced.dropped) == (41, right, 40 - right, 1)
    assert result.unforced.dropped == 41 and np.isnan(result.unforced.predictions[0].auroc)


def test_the_horizon_null_explains_position_where_only_distance_matters():
    """Draws that are right with probability exp(-0.05 remaining) give that hazard back, and position's AUROC is the null's."""
    rng = np.random.default_rng(1)
    made = []
    for i in range(300):
        remaining = int(rng.integers(1, 60))
        draw = [tuple((rng.binomial(6, np.exp(-0.05 * remaining), size=3) / 6).tolist()) for _ in range(2)]
        made.append(branch(1 - remaining / 60, draw[0], draw[1], problem=str(i % 30), remaining=remaining))
    result = viability(made)
    assert result.hazard == pytest.approx(0.05, rel=0.1)
    low, high = result.horizon_range
    assert low - 0.02 <= result.forced.predictions[0].auroc <= high + 0.02 and result.horizon > 0.9
    assert abs(result.difference) < 0.05


def test_a_greedy_student_does_the_same_again(base, tmp_path):
    """Six greedy continuations are one; without a forced token a right rollout is right again, and a forced one is what greedy writing makes of it."""
    wanted = settings(base, tmp_path, sampling={"num_generations": 2, "max_completion_length": 6, "temperature": 1e-4})
    parts = assemble(wanted, method=opsd())
    problems = [replace(p, id=p.id) for p in parts.problems("train")]
    groups = parts.sampler.sample(problems, 2)
    parts.trainer.grade(groups)
    right = [g for g in groups if g.rollouts[0].reward == 1]
    found = branches(parts, groups, rollouts=1, budget=500)
    assert right and {b.problem for b in found} <= {g.problem.id for g in right}
    assert all(b.unforced == pytest.approx((1.0,) * 3) for b in found)
    assert {round(v, 6) for b in found for v in b.forced} <= {0.0, 1.0}
    first = [b for b in found if b.position < 0.5 / 5]
    # the first word decides in this task: a forced one is right where its number is even
    assert first and any(v == 0 for b in first for v in b.forced)


def test_no_right_rollout_is_a_sentence(base, tmp_path):
    parts = assemble(settings(base, tmp_path), method=opsd())
    with pytest.raises(ValueError, match="none of the rollouts of 1 problems is right"):
        branches(parts, [Group(problem=Problem(prompt="w1"), rollouts=[])], rollouts=1, budget=100)
    with pytest.raises(ValueError, match="hesitates nowhere"):
        viability([])
