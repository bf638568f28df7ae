"""What a model is given: token rows of like length, or what several rows begin with read once and their ends behind it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from selfdistill.types import Packed

PADDING_SHARE, PADDING_TOKENS = 0.15, 512
"""Rows of unequal length share a forward pass while padding stays below this share or number of tokens."""
SAVED_SHARE = 0.2
"""Prompts that several sequences begin with are read once where that saves at least this share of all tokens."""


def row_groups(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of sequences, longest first, cut where padding to the longest would waste too much."""
    groups: list[list[int]] = []
    real = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        padded = (len(groups[-1]) + 1) * lengths[groups[-1][0]] if groups else 0
        if not groups or padded - real - lengths[i] > max(PADDING_SHARE * padded, PADDING_TOKENS):
            groups.append([])
            real = 0
        groups[-1].append(i)
        real += lengths[i]
    return groups


def read_rows(backbone: nn.Module, packed: Packed) -> Float[Tensor, "predicted hidden"]:
    """States at `packed.predicts` from right-padded rows, exact for any causal model: padding stands behind every token that is read."""
    return _read_ends(packed, [0] * len(packed.lengths), [(list(range(len(packed.lengths))), partial(_plain, backbone))])


def read_shared(backbone: nn.Module, config: PreTrainedConfig, packed: Packed) -> Float[Tensor, "predicted hidden"]:
    """The same states, with the tokens that sequences of one prompt have in common read once; gradients of their ends meet in its keys and values."""
    trunks = _trunks(packed)
    starts = [trunks[number].length for number, _ in packed.prompts]
    jobs: list[_Job] = []
    for numbers in _groups_of(trunks):
        trunk = _read_trunks(backbone, config, packed, [trunks[n] for n in numbers])
        place = {n: row for row, n in enumerate(numbers)}
        mine = [i for i, (number, _) in enumerate(packed.prompts) if number in place]
        jobs.append((mine, partial(_behind, backbone, config, trunk, [place[packed.prompts[i][0]] for i in mine])))
    return _read_ends(packed, starts, jobs)


def saves(packed: Packed) -> bool:
    """Whether sequences have enough of their prompts in common for `read_shared`."""
    once = sum(trunk.length for trunk in _trunks(packed).values())
    again = sum(max(length - 1, 0) for _, length in packed.prompts)
    return again - once >= SAVED_SHARE * sum(packed.lengths)


def plain_cache(config: PreTrainedConfig) -> bool:
    """Whether all that a model carries along a sequence are keys and values of every token: neither windows nor states."""
    layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


Read = Callable[[Sequence[int], Int[Tensor, "rows width"]], Float[Tensor, "rows width hidden"]]
_Job = tuple[list[int], Read]
"""Sequences, and what reads rows of their ends; it is told which of them by their places in that list."""


@dataclass(frozen=True, kw_only=True)
class _Trunk:
    """All of a prompt but its last token, whose state predicts: where it stands first."""

    start: int
    length: int


@dataclass(frozen=True, kw_only=True)
class _Read:
    """Left-padded prompts as their keys and values, layer by layer."""

    layers: Sequence[tuple[Tensor, Tensor]]
    mask: Int[Tensor, "trunks width"] | None
    """None: no padding."""
    lengths: Int[Tensor, " trunks"]


def _trunks(packed: Packed) -> dict[int, _Trunk]:
    found: dict[int, _Trunk] = {}
    start = 0
    for (number, prompt), length in zip(packed.prompts, packed.lengths, strict=False):
        found.setdefault(number, _Trunk(start=start, length=max(prompt - 1, 0)))
        start += length
    return found


def _groups_of(trunks: dict[int, _Trunk]) -> list[list[int]]:
    numbers = list(trunks)
    return [[numbers[i] for i in group] for group in row_groups([trunks[n].length for n in numbers])]


def _read_trunks(backbone: nn.Module, config: PreTrainedConfig, packed: Packed, trunks: Sequence[_Trunk]) -> _Read:
    device, width = packed.input_ids.device, max(t.length for t in trunks)
    lengths = torch.tensor([t.length for t in trunks], device=device)
    if not width:
        return _Read(layers=(), mask=None, lengths=lengths)
    column, padding = torch.arange(width, device=device), (width - lengths)[:, None]
    starts = torch.tensor([t.start for t in trunks], device=device)[:, None]
    real = column >= padding
    ids = packed.input_ids[torch.where(real, starts + column - padding, starts)]
    mask = None if all(t.length == width for t in trunks) else real.long()
    cache = DynamicCache(config=config)
    backbone(ids, attention_mask=mask, position_ids=(column - padding).clamp(min=0), past_key_values=cache, use_cache=True)
    return _Read(layers=[(layer.keys, layer.values) for layer in cast(Sequence[Any], cache.layers)], mask=mask, lengths=lengths)


def _plain(backbone: nn.Module, rows: Sequence[int], ids: Int[Tensor, "rows width"]) -> Float[Tensor, "rows width hidden"]:
    return backbone(ids, use_cache=False).last_hidden_state


def _behind(
    backbone: nn.Module, config: PreTrainedConfig, trunk: _Read, place: Sequence[int], rows: Sequence[int], ids: Int[Tensor, "rows width"]
) -> Float[Tensor, "rows width hidden"]:
    """Ends of sequences behind the trunks they begin with."""
    at = torch.tensor([place[row] for row in rows], device=ids.device)
    if not trunk.layers:
        return _plain(backbone, rows, ids)
    cache = DynamicCache(config=config)
    for i, (keys, values) in enumerate(trunk.layers):
        cache.update(keys.index_select(0, at), values.index_select(0, at), i)
    mask = None if trunk.mask is None else torch.cat([trunk.mask[at], torch.ones_like(ids)], dim=1)
    positions = trunk.lengths[at][:, None] + torch.arange(ids.shape[1], device=ids.device)
    return backbone(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True).last_hidden_state


def _read_ends(packed: Packed, starts: Sequence[int], jobs: Sequence[_Job]) -> Float[Tensor, "predicted hidden"]:
    """What follows `starts` in every sequence, in right-padded rows of like length; states at `packed.predicts`."""
    device = packed.input_ids.device
    ends = [n - start for n, start in zip(packed.lengths, starts, strict=True)]
    first, total, shapes = [0] * len(ends), 0, []
    for mine, read in jobs:
        for rows in row_groups([ends[i] for i in mine]):
            width = ends[mine[rows[0]]]
            for row, i in enumerate(rows):
                first[mine[i]] = total + row * width
            shapes.append((read, rows, width))
            total += len(rows) * width
    # where each token lies among the rows; those before its sequence's start lie nowhere. Made on the host, so that no device is waited for
    lengths, offset = torch.tensor(packed.lengths), torch.tensor([at - start for at, start in zip(first, starts, strict=True)])
    positions = torch.cat([torch.arange(n) for n in packed.lengths])
    place = torch.repeat_interleave(offset, lengths) + positions
    kept = (positions >= torch.repeat_interleave(torch.tensor(starts), lengths)).nonzero()[:, 0]
    ids = packed.input_ids.new_zeros(total).index_copy(0, place[kept].to(device), packed.input_ids[kept.to(device)])
    parts = ids.split([len(rows) * width for _, rows, width in shapes])
    states = [read(rows, part.view(len(rows), width)).flatten(0, 1) for (read, rows, width), part in zip(shapes, parts, strict=True)]
    return torch.cat(states)[place.to(device)[packed.predicts]]
