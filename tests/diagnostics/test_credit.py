"""Profiles lie where the credit was put: rollouts that differ from their peer in one known token, with planted log-ratios."""

import json

import pytest
from matplotlib.image import imread
from planted import reading, rollout

from selfdistill.diagnostics.credit import credit, divergence_point, picture, table
from selfdistill.diagnostics.drawing import plain
from selfdistill.types import Group, Problem

LENGTH = 40


def planted(taus, shape):
    """A failed rollout a problem that leaves its only successful peer at tau alone; shape(t - tau) is its credit."""
    found = []
    for k, tau in enumerate(taus):
        right = rollout(list(range(100, 100 + LENGTH)), 1.0, index=1)
        wrong = rollout([*right.completion_ids[:tau], 7, *right.completion_ids[tau + 1 :]], 0.0)
        group = Group(problem=Problem(prompt="q", id=f"p{k}"), rollouts=[wrong, right])
        found += [reading(wrong, group, [shape(t - tau) for t in range(LENGTH)]), reading(right, group, [0.5] * LENGTH)]
    return found


def test_where_rollout_and_peer_part():
    peer = rollout([1, 2, 3], 1.0)
    assert divergence_point(rollout([1, 5, 3], 0.0), peer) == 1
    assert divergence_point(rollout([1, 2, 3, 4], 0.0), peer) == 3, "it goes on where the peer ended"
    assert divergence_point(rollout([1, 2], 0.0), peer) is None, "it only ends earlier"


def test_a_spike_is_found_where_it_was_put():
    """-3 at tau, -1 on the two tokens behind it, 1 at tau + 20: mass 5/6 within, and the right rollouts are in no profile."""
    values = {0: -3.0, 1: -1.0, 2: -1.0, 20: 1.0}
    (p,) = credit({"planted": planted([10, 15, 12], lambda d: values.get(d, 0.0))}).profiles
    assert (p.rollouts, p.aligned) == (6, 3)
    assert p.inside == pytest.approx(5 / 6) and p.inside_ci95 == pytest.approx((5 / 6, 5 / 6)) and p.before == 0
    assert p.flat == pytest.approx(17 / 40)
    shown = dict(zip(p.offsets, p.signed, strict=True))
    assert {offset for offset, value in shown.items() if value} == {0, 1, 2, 20} and shown[0] == -3 and shown[20] == 1
    assert dict(zip(p.offsets, p.absolute, strict=True))[0] == 3
    assert p.magnitude == pytest.approx((3 * 6 + 3 * LENGTH * 0.5) / (6 * LENGTH)) and p.mean == pytest.approx((3 * -4 + 3 * LENGTH * 0.5) / (6 * LENGTH))


def test_a_flat_profile_has_the_share_of_its_tokens():
    (p,) = credit({"flat": planted([10, 30, 4], lambda d: 0.2)}, window=5).profiles
    near = sum(min(tau, 5) + 1 + min(LENGTH - 1 - tau, 5) for tau in (10, 30, 4))
    assert p.inside == p.flat == pytest.approx(near / (3 * LENGTH))
    assert p.before == pytest.approx((10 + 30 + 4) / (3 * LENGTH))


def test_the_nearest_peer_is_the_one_that_agrees_longest():
    ids = list(range(100, 100 + LENGTH))
    wrong = rollout([*ids[:20], 7, *ids[21:]], 0.0)
    peers = [rollout([9, *ids[1:]], 1.0, index=i) for i in range(1, 6)] + [rollout(ids, 1.0, index=6)]
    group = Group(problem=Problem(prompt="q", id="p"), rollouts=[wrong, *peers])
    spike = [reading(wrong, group, [float(t == 20) for t in range(LENGTH)])]
    assert credit({"x": spike}, align="nearest").profiles[0].inside == 1
    assert credit({"x": spike}, align="shown").profiles[0].inside in (0, 1), "one of six peers, as HSD draws it"


def test_nothing_to_align_is_a_sentence():
    readings = planted([3], lambda d: 1.0)
    readings[0].group.rollouts[1].reward = 0.0
    with pytest.raises(ValueError, match="none of the 2 failed rollouts read by 'x' has a successful peer"):
        credit({"x": readings})


def test_table_json_and_picture(tmp_path):
    result = credit({"one": planted([10, 15], lambda d: 1.0 / (1 + abs(d))), "other": planted([10, 15], lambda d: 0.1)})
    assert [row[0] for row in table(result)] == ["context", "one", "other"] and len({len(row) for row in table(result)}) == 1
    assert json.loads(json.dumps(plain(result)))["profiles"][1]["name"] == "other"
    picture(result, tmp_path / "deep" / "credit.png", title="t")
    assert imread(tmp_path / "deep" / "credit.png")[..., :3].std() > 0.05
