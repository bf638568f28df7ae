"""How rows are cut into passes."""

import random
from itertools import pairwise

from selfdistill.layouts import row_groups


def cost(groups: list[list[int]], lengths: list[int], each: float) -> float:
    return sum(len(rows) * max(lengths[i] for i in rows) + each for rows in groups)


def test_row_groups_hold_every_sequence_once_and_cost_least():
    rng = random.Random(0)
    lengths = [rng.choice([rng.randrange(1, 40), rng.randrange(400, 3000)]) for _ in range(300)]
    groups = row_groups(lengths, each=512)
    assert sorted(i for rows in groups for i in rows) == list(range(300))
    assert all(lengths[rows[0]] == max(lengths[i] for i in rows) for rows in groups)
    for _ in range(20):
        few, each = [rng.randrange(1, 60) for _ in range(8)], rng.randrange(1, 100)
        order = sorted(range(8), key=lambda i: -few[i])
        cuts = [[0, *(k for k in range(1, 8) if chosen >> k & 1), 8] for chosen in range(0, 256, 2)]
        every = [[order[i:j] for i, j in pairwise(cut)] for cut in cuts]
        assert cost(row_groups(few, each=each), few, each) == min(cost(groups, few, each) for groups in every)
    assert row_groups([7] * 50, each=1) == [list(range(50))]
