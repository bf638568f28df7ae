"""What a model is given: token rows of like length, or what several rows begin with read once and their ends behind it."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from selfdistill.devices import send
from selfdistill.prefixes import Tree, prefix_tree, separate
from selfdistill.types import Packed

PASS_TOKENS = {"cpu": 64}
LAUNCHED_TOKENS = 2048
PASS_SHARE = 0.01
"""What one more pass through the model is held to cost: as much as so many tokens, on an accelerator that of its launches; or this share of what is read."""
SAVED_SHARE = 0.2
"""What sequences begin with in common is read once where that saves at least this share of all tokens."""
GONE_ON_FROM = 0.3
"""What a token that is read once takes again for every row behind it: its keys and values stand beside the row's own until backward.

A share of what a token itself keeps: 0.07 to 0.3 by the model's heads.
"""


def pass_tokens(tokens: int, device: torch.device) -> float:
    """What a pass through the model costs beside its tokens, in tokens, where so many are read in all."""
    return max(PASS_TOKENS.get(device.type, LAUNCHED_TOKENS), PASS_SHARE * tokens)


def row_groups(lengths: Sequence[int], *, each: float) -> list[list[int]]:
    """Indices of sequences, longest first, in the groups that cost least: padding to each one's longest, and `each` tokens a group."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    widths, counts = np.unique([-n for n in lengths], return_counts=True)
    rows = np.concatenate([[0], np.cumsum(counts)])
    cost, cut = np.zeros(len(rows)), np.zeros(len(rows), dtype=int)
    for end in range(1, len(rows)):
        # the last group has the widths begin..end, all padded to the first
        costs = cost[:end] - widths[:end] * (rows[end] - rows[:end]) + each
        cut[end] = costs.argmin()
        cost[end] = costs[cut[end]]
    groups, end = list[list[int]](), len(rows) - 1
    while end:
        groups.append(order[rows[cut[end]] : rows[end]])
        end = cut[end]
    return groups[::-1]


def plain_cache(config: PreTrainedConfig) -> bool:
    """Whether all that a model carries along a sequence are keys and values of every token: neither windows nor states."""
    layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def tree_of(packed: Packed, *, level: float) -> Tree:
    """Sequences by what they begin with in common, on levels that save so many tokens each."""
    return prefix_tree(sequences_of(packed), level=level)


def sequences_of(packed: Packed) -> list[np.ndarray]:
    """The ids of each."""
    return np.split(packed.host_ids.numpy(), list(accumulate(packed.lengths))[:-1])


def shared_tree(packed: Packed) -> Tree:
    """The tree by which sequences are read."""
    return saving_tree(sequences_of(packed), packed.input_ids.device)


def saving_tree(sequences: Sequence[Int[np.ndarray, " _"]], device: torch.device) -> Tree:
    """Sequences by what they begin with in common, where reading that once saves enough; else each for itself."""
    lengths = [len(ids) for ids in sequences]
    tree = prefix_tree(sequences, level=pass_tokens(sum(lengths), device))
    return tree if sum(lengths) - tree.tokens >= SAVED_SHARE * sum(lengths) else separate(lengths)


def room_of(tree: Tree, device: torch.device) -> float:
    """Tokens that reading a tree takes: those of its passes, padding included, and what stands before each row, as far as that is held again."""
    each, before, total = pass_tokens(tree.tokens, device), list[int](), 0.0
    for branch in tree.branches:
        before.append(0 if branch.parent is None else before[branch.parent] + tree.branches[branch.parent].length)
    for level in tree.levels:
        for rows in row_groups([tree.branches[i].length for i in level], each=each):
            width, stem = max(tree.branches[level[row]].length for row in rows), max(before[level[row]] for row in rows)
            total += len(rows) * (width + GONE_ON_FROM * stem)
    return total


def read_rows(backbone: nn.Module, config: PreTrainedConfig, packed: Packed, tree: Tree) -> Float[Tensor, "predicted hidden"]:
    """States at `packed.predicts`, a level of the tree after the other, in right-padded rows behind the keys and values of what they begin with.

    Exact for any causal model where every sequence is a branch of its own, since padding stands behind every token that is read; else for one whose
    keys and values are all that it carries. Gradients of all that goes on from a branch meet in its keys and values.
    """
    each = pass_tokens(tree.tokens, packed.input_ids.device)
    reading = _Reading(packed=packed, tree=tree, layers=0 if tree.depth == 1 else len(DynamicCache(config=config).layers))
    for level in tree.levels:
        reading.merge()
        for rows in row_groups([tree.branches[i].length for i in level], each=each):
            branches = [level[row] for row in rows]
            reading.append(branches, *_pass(backbone, config, reading, branches))
    place = reading.on_device(np.concatenate([reading.paths[i] for i in tree.last]))
    return torch.cat(reading.states)[place[packed.predicts]]


class _Reading:
    """The branches read so far: states of all rows, padding included, and keys and values of what others go on from."""

    def __init__(self, *, packed: Packed, tree: Tree, layers: int) -> None:
        self.packed, self.tree = packed, tree
        self.begins = [0, *accumulate(packed.lengths)]
        self.parents = {branch.parent for branch in tree.branches}
        self.states: list[Float[Tensor, "read hidden"]] = []
        self.layers: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(layers)]
        """Keys and values by layer and pass, [kept heads dim] each."""
        self.paths: dict[int | None, np.ndarray] = {None: np.zeros(0, dtype=np.int64)}
        """Places among the states of a branch's tokens and of all before them."""
        self.kept: dict[int | None, np.ndarray] = {None: np.zeros(0, dtype=np.int64)}
        """The same among keys and values, of parents."""
        self.total = self.total_kept = 0

    def append(self, rows: Sequence[int], states: Float[Tensor, "rows width hidden"], layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        """One pass over these branches, and its keys and values [rows heads width dim]; none where nothing goes on from them."""
        width, places = states.shape[1], list[np.ndarray]()
        for row, i in enumerate(rows):
            branch, own = self.tree.branches[i], np.arange(self.tree.branches[i].length)
            self.paths[i] = np.concatenate([self.paths[branch.parent], self.total + row * width + own])
            if i in self.parents:
                self.kept[i] = np.concatenate([self.kept[branch.parent], self.total_kept + own])
                self.total_kept += branch.length
                places.append(row * width + own)
        self.total += len(rows) * width
        self.states.append(states.flatten(0, 1))
        if layers:
            at = self.on_device(np.concatenate(places))
            for known, both in zip(self.layers, layers, strict=True):
                keys, values = (x.transpose(1, 2).flatten(0, 1).index_select(0, at) for x in both)
                known.append((keys, values))

    def merge(self) -> None:
        """Keys and values of all passes as one: a level goes on from those before it, so this is done once a level."""
        self.layers = [[cast(tuple[Tensor, Tensor], tuple(map(torch.cat, zip(*passes, strict=True))))] if passes else [] for passes in self.layers]

    def on_device(self, values: np.ndarray) -> Tensor:
        """Made on the host, so that no device is waited for."""
        return send(values, self.packed.input_ids.device)


class _Behind(DynamicLayer):
    """One layer: keys and values of what rows go on from, gathered when the layer asks, and their own, kept where others go on from them."""

    is_initialized = True

    def __init__(self, *, known: tuple[Tensor, Tensor] | None, places: Int[Tensor, "rows before"] | None, keeps: bool) -> None:
        super().__init__()
        self.known, self.places, self.keeps = known, places, keeps
        self.own: tuple[Tensor, Tensor] | None = None

    def get_seq_length(self) -> int:
        return 0 if self.places is None else self.places.shape[1]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """[rows heads width dim] each, behind what stands before them."""
        own = (key_states, value_states)
        if self.keeps:
            self.own = own
        if self.places is None:
            return own
        assert self.known is not None, "places are of what has been read"
        at, shape = self.places.reshape(-1), tuple(self.places.shape)
        keys, values = (torch.cat([x.index_select(0, at).unflatten(0, shape).transpose(1, 2), new], dim=2) for x, new in zip(self.known, own, strict=True))
        return keys, values


def _pass(
    backbone: nn.Module, config: PreTrainedConfig, reading: _Reading, rows: Sequence[int]
) -> tuple[Float[Tensor, "rows width hidden"], list[tuple[Tensor, Tensor]]]:
    """The model on branches of one level: their states, and their keys and values if others go on from any of them."""
    branches, keeps = [reading.tree.branches[i] for i in rows], not reading.parents.isdisjoint(rows)
    own, paths = np.array([b.length for b in branches]), [reading.kept[b.parent] for b in branches]
    width, before = own.max(), max(map(len, paths))
    # padding repeats the last token and its position, so that none is beyond the model's
    column = np.minimum(np.arange(width), own[:, None] - 1)
    ids = reading.packed.input_ids[reading.on_device(np.array([reading.begins[b.sequence] + b.start for b in branches])[:, None] + column)]
    if not reading.layers:
        return backbone(ids, use_cache=False).last_hidden_state, []
    lengths = np.array([len(path) for path in paths])
    padding = before - lengths
    places = reading.on_device(np.stack([np.pad(path, (n, 0)) for path, n in zip(paths, padding, strict=True)])) if before else None
    mask = reading.on_device((np.arange(before + width) >= padding[:, None]).astype(np.int64)) if padding.any() else None
    cache = DynamicCache(config=config)
    layers = [_Behind(known=passes[0] if passes else None, places=places, keeps=keeps) for passes in reading.layers]
    cache.layers = cast(Any, layers)
    positions = reading.on_device(lengths[:, None] + column)
    states = backbone(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True).last_hidden_state
    return states, [layer.own for layer in layers if layer.own is not None]
