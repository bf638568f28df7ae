"""What sequences begin with in common, as a tree: each stretch of tokens once, however many sequences go through it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

SAVED_TOKENS = 16
"""A stretch is a branch of its own where that saves at least so many tokens: each costs a place in a pass and its keys and values a copy a child."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """Tokens start..stop of a sequence, and of all others that go through it."""

    parent: int | None
    """The branch before it, of a lower level; None: the sequence begins here."""
    level: int
    sequence: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Its tokens."""
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Branches, parents first; `last` has of each sequence the branch that it ends with."""

    branches: tuple[Branch, ...]
    last: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """What is read: every branch once."""
        return sum(branch.length for branch in self.branches)

    @property
    def depth(self) -> int:
        """Number of levels."""
        return 1 + max(branch.level for branch in self.branches)

    @property
    def levels(self) -> list[list[int]]:
        """Branches by level."""
        found: list[list[int]] = []
        for i, branch in enumerate(self.branches):
            if branch.level == len(found):
                found.append([])
            found[branch.level].append(i)
        return found


def separate(lengths: Sequence[int]) -> Tree:
    """Every sequence a branch of its own."""
    branches = (Branch(parent=None, level=0, sequence=i, start=0, stop=n) for i, n in enumerate(lengths))
    return Tree(branches=tuple(branches), last=tuple(range(len(lengths))))


def prefix_tree(sequences: Sequence[Int[np.ndarray, " _"]], *, level: float) -> Tree:
    """The tree of all stretches that are worth a branch, on levels that save `level` tokens each; equal sequences end with the same branch."""
    assert all(map(len, sequences)), "a sequence has tokens"
    root = _radix_tree(sequences)
    for node, _ in list(_leveled(root)):
        if node.children and node.saved < SAVED_TOKENS:
            node.dissolve()
    while weak := _weakest(root, level):
        for node in weak:
            node.dissolve()
    return _numbered(root, len(sequences))


def _weakest(root: "_Node", level: float) -> list["_Node"]:
    """Nodes of the lowest level that saves less than a level has to."""
    by_level: dict[int, list[_Node]] = {}
    for node, at in _leveled(root):
        if node.children:
            by_level.setdefault(at, []).append(node)
    return next((nodes for _, nodes in sorted(by_level.items(), reverse=True) if sum(node.saved for node in nodes) < level), [])


@dataclass(eq=False)
class _Node:
    parent: "_Node | None"
    sequence: int
    stop: int
    ends: list[int] = field(default_factory=list)
    """Sequences that have no further tokens."""
    children: list["_Node"] = field(default_factory=list)

    @property
    def start(self) -> int:
        return self.parent.stop if self.parent else 0

    @property
    def saved(self) -> int:
        """Tokens that would be read again without this node."""
        return (self.stop - self.start) * (len(self.children) + bool(self.ends) - 1)

    def dissolve(self) -> None:
        """Its tokens become its children's, and its own where sequences end here."""
        assert self.parent is not None
        for child in self.children:
            child.parent = self.parent
        self.parent.children += self.children
        self.children = []
        if not self.ends:
            self.parent.children.remove(self)


def _radix_tree(sequences: Sequence[np.ndarray]) -> _Node:
    """Sequences in lexicographic order, each hung where it leaves the one before."""
    # big-endian bytes of numbers that are not negative sort as the numbers do
    keys = [np.ascontiguousarray(ids, dtype=">u4").tobytes() for ids in sequences]
    root = _Node(parent=None, sequence=0, stop=0)
    path, before = [root], np.zeros(0)
    for i in sorted(range(len(keys)), key=keys.__getitem__):
        common, below = _in_common(before, sequences[i]), None
        while path[-1].stop > common:
            below = path.pop()
        if path[-1].stop < common:
            assert below is not None
            path.append(_split(below, common))
        if len(sequences[i]) > common:
            path.append(_Node(parent=path[-1], sequence=i, stop=len(sequences[i])))
            path[-2].children.append(path[-1])
        path[-1].ends.append(i)
        before = sequences[i]
    return root


def _split(node: _Node, stop: int) -> _Node:
    """A node of the tokens before `stop`, between a node and its parent."""
    assert node.parent is not None
    upper = _Node(parent=node.parent, sequence=node.sequence, stop=stop, children=[node])
    node.parent.children.remove(node)
    node.parent.children.append(upper)
    node.parent = upper
    return upper


def _in_common(one: np.ndarray, other: np.ndarray) -> int:
    n = min(len(one), len(other))
    differs = one[:n] != other[:n]
    return int(differs.argmax()) if differs.any() else n


def _leveled(root: _Node) -> Iterator[tuple[_Node, int]]:
    """Every node but the root with its level, parents first."""
    level, found = 0, root.children
    while found:
        yield from ((node, level) for node in found)
        level, found = level + 1, [child for node in found for child in node.children]


def _numbered(root: _Node, sequences: int) -> Tree:
    number: dict[int, int] = {}
    branches, last = list[Branch](), [0] * sequences
    for node, level in _leveled(root):
        parent = number.get(id(node.parent))
        number[id(node)] = len(branches)
        for i in node.ends:
            last[i] = len(branches)
        branches.append(Branch(parent=parent, level=level, sequence=node.sequence, start=node.start, stop=node.stop))
    return Tree(branches=tuple(branches), last=tuple(last))
