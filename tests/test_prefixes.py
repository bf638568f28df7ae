"""What sequences have in common: every sequence is its branches end to end, and nothing worth reading once is read twice."""

import random

import numpy as np
import pytest

from selfdistill.prefixes import SAVED_TOKENS, Tree, prefix_tree


def walked(tree: Tree, sequences: list[np.ndarray], i: int) -> list[int]:
    """The tokens of a sequence, from the tree."""
    tokens, at = [], tree.last[i]
    while at is not None:
        branch = tree.branches[at]
        tokens = [*sequences[branch.sequence][branch.start : branch.stop].tolist(), *tokens]
        above = None if branch.parent is None else tree.branches[branch.parent]
        assert branch.start == (above.stop if above else 0) and branch.level == (above.level + 1 if above else 0)
        at = branch.parent
    return tokens


def arrays(*sequences) -> list[np.ndarray]:
    return [np.array(s) for s in sequences]


@pytest.mark.parametrize("seed", range(8))
def test_every_sequence_is_its_branches_end_to_end(seed):
    """Random sequences of few words, begun by one another, some equal, some the beginning of others, in any order."""
    rng = random.Random(seed)
    known: list[list[int]] = [[rng.randrange(300) for _ in range(5)]]
    for _ in range(60):
        base = rng.choice(known)
        known.append(base[: rng.randrange(1, len(base) + 1)] + [rng.randrange(300) for _ in range(rng.choice((0, 3, 30)))])
    rng.shuffle(known)
    sequences = arrays(*known)
    for level in (0, 50, 400):
        tree = prefix_tree(sequences, level=level)
        assert [walked(tree, sequences, i) for i in range(len(sequences))] == known
        assert tree.tokens <= sum(map(len, {tuple(s): s for s in known}.values()))
        assert all(branch.length > 0 for branch in tree.branches)


def test_equal_sequences_are_one_and_a_beginning_costs_nothing():
    long = list(range(100))
    sequences = arrays(long, long[:40], long, long[:40])
    tree = prefix_tree(sequences, level=0)
    assert tree.tokens == 100
    assert tree.last[0] == tree.last[2] and tree.last[1] == tree.last[3] == tree.branches[tree.last[0]].parent


def test_a_stretch_that_saves_little_is_read_with_what_follows():
    """A level more is one more pass, and a branch more a copy of keys and values."""
    few = [1] * (SAVED_TOKENS - 1)
    tree = prefix_tree(arrays(few + [2] * 30, few + [3] * 30), level=0)
    assert tree.depth == 1 and tree.tokens == 2 * (SAVED_TOKENS + 29)
    assert prefix_tree(arrays(few + [2] * 30, few + [3] * 30, few + [4] * 30), level=0).depth == 2, "three save twice as much"
    enough = [1] * 50
    assert [prefix_tree(arrays(enough + [2] * 30, enough + [3] * 30), level=level).depth for level in (50, 51)] == [2, 1]


def test_the_order_of_ids_beyond_a_byte_is_theirs():
    ends = [[k] * 30 for k in (255, 256, 65536, 1, 257)]
    sequences = arrays(*([7] * 40 + end for end in ends))
    assert prefix_tree(sequences, level=0).tokens == 40 + 150


def test_every_level_saves_what_a_pass_costs():
    """Not the deepest alone: one in between that saves little is read with what follows it."""
    stem, middle, ends = [1] * 100, [[k] * 20 for k in (2, 3)], [[k] * 30 for k in range(10, 22)]
    sequences = arrays(*(stem + part + end for part in middle for end in ends))
    assert prefix_tree(sequences, level=0).depth == 3
    tree = prefix_tree(sequences, level=500)
    assert tree.depth == 2 and tree.tokens == 100 + len(sequences) * 50
