"""Blame: how much of the credit lies at a wrong step and behind it."""

import pytest
from planted import reading, rollout

from selfdistill.diagnostics.blame import blame
from selfdistill.tasks.arithmetic.checker import Verdict
from selfdistill.types import Group, Problem


def test_blame_lies_where_it_was_put():
    """Two steps of two tokens; the second is wrong in one rollout. Credit of -3 there, 1 before, and 2 in a right rollout."""
    words = {1: "a ", 2: "b", 3: " ; c", 4: " d", 5: " ; e"}
    ids = [1, 2, 3, 4, 5]
    wrong, right = rollout(ids, 0.0), rollout(ids, 1.0, index=1)
    wrong.text = right.text = "a b ; c d ; e"
    group = Group(problem=Problem(prompt="q", id="p"), rollouts=[wrong, right])
    verdicts = [Verdict(line=None, holds=holds, text=text) for holds, text in ((True, "a b"), (False, "c d"), (True, "e"))]
    answers = iter([verdicts, [Verdict(line=None, holds=True, text=v.text) for v in verdicts]])
    readings = [reading(wrong, group, [1.0, 1.0, -3.0, -3.0, 0.0]), reading(right, group, [2.0] * 5)]
    found = blame(readings, method="m", judge=lambda problem, text: next(answers), decode=lambda some: "".join(words[i] for i in some))
    places = {p.name: p for p in found.places}
    assert [places[n].tokens for n in ("right rollout", "before", "wrong step", "after")] == [5, 2, 2, 1]
    assert places["wrong step"].mean == -3 and places["before"].mean == 1 and found.failing == pytest.approx(6 / 18)
    assert places["right rollout"].share == pytest.approx(10 / 18) and places["before"].even == pytest.approx(0.2)
    with pytest.raises(ValueError, match="has a wrong step"):
        blame(readings[1:], method="m", judge=lambda problem, text: [], decode=lambda some: "")
