"""Keys and values of rollouts that are written together: one pass over each prompt, written in place."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, get_layer_types_and_kwargs

from selfdistill.sampling.sharing import Family, Prompts, attach

ROOM = 128
"""Columns that storage grows by: copying them costs a 128th of what attention reads."""
CLOSE, CLOSE_SHARE = 32, 1 / 8
"""The same behind shared prompts: at least so many, or that share of those written. All of storage is read there: a CPU is slow to read past gaps."""
PLAIN = {"full_attention", "sliding_attention"}


def windows(config: PreTrainedConfig) -> list[int | None] | None:
    """Each layer's attention window, None where it sees all. No list where a layer keeps more than keys and values or there are several windows."""
    kinds, settings = get_layer_types_and_kwargs(cast(Any, config.get_text_config(decoder=True)))
    found = [s.get("sliding_window") for s in settings]
    return found if set(kinds) <= PLAIN and len(set(found) - {None}) < 2 else None


class Columns(CacheLayerMixin):
    """One layer. A column holds what all rows were given in the same pass; a layer with a window forgets those behind it."""

    def __init__(self, window: int | None) -> None:
        super().__init__()
        self.window, self.is_sliding = window, window is not None
        self.first = self.end = 0
        """Number of the first column in storage, and of the next one to be written."""
        self.at: Int[Tensor, " one"] | None = None
        """The column to be written, where a pass is recorded: it sees all of storage, and its mask hides what is not written."""
        self.prompts: Prompts | None = None
        """What stands before every row's columns, where prompts are shared."""

    @property
    def filled(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None, "the prompts come first"
        return self.keys, self.values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values, self.end, self.is_initialized = key_states, value_states, key_states.shape[2], True

    def update(
        self, key_states: Float[Tensor, "rows heads new dim"], value_states: Float[Tensor, "rows heads new value_dim"], *args: Any, **kwargs: Any
    ) -> tuple[Float[Tensor, "rows heads seen dim"], Float[Tensor, "rows heads seen value_dim"]]:
        """The prompts at first, then a column at a time; what the new column attends to, behind shared prompts with what is not written yet."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        if self.at is not None:
            for storage, new in zip(self.filled, (key_states, value_states), strict=True):
                storage.index_copy_(2, self.at, new.to(storage.dtype))
            return self.filled
        self.make_room()
        seen, offset = self.get_mask_sizes(1)
        keys, values = self.filled
        keys.narrow(2, self.end - self.first, 1).copy_(key_states)
        values.narrow(2, self.end - self.first, 1).copy_(value_states)
        self.end += 1
        if self.prompts is not None:
            self.prompts.behind = self.end
            attach(self.prompts, keys, values)
            return keys, values
        return keys.narrow(2, offset - self.first, seen), values.narrow(2, offset - self.first, seen)

    @property
    def full(self) -> bool:
        return self.end - self.first == self.filled[0].shape[2]

    def clear_room(self) -> None:
        """Zeros where nothing is written yet: what reads all of storage hides it."""
        for storage in self.filled:
            storage[:, :, self.end - self.first :].zero_()

    def make_room(self) -> None:
        """For a column more."""
        if self.full:
            offset = self.get_mask_sizes(1)[1]
            room = ROOM if self.prompts is None else max(CLOSE, int(CLOSE_SHARE * self.end))
            self.keys, self.values = (_with_room(x[:, :, offset - self.first :], room) for x in self.filled)
            self.first = offset
            if self.prompts is not None:
                self.clear_room()

    def share(self, family: Family) -> None:
        """The prompts, read before, stay as they are; columns begin behind them."""
        keys, values = self.filled
        self.prompts = Prompts.of(keys, values, family)
        self.keys, self.values = (x.new_empty(len(family.place), x.shape[1], 0, x.shape[3]) for x in (keys, values))
        self.first = self.end = 0

    def unshare(self) -> None:
        """As before `share`."""
        assert self.prompts is not None, "nothing is shared"
        self.keys, self.values, self.prompts = self.prompts.keys.transpose(-1, -2), self.prompts.values, None
        self.first, self.end = 0, self.keys.shape[2]

    def spread(self, rows: Int[Tensor, " rows"], columns: Int[Tensor, "rows width"]) -> None:
        """Row i becomes columns[i] of what row rows[i] is now."""
        self.keys, self.values = (_with_room(x.transpose(1, 2)[rows[:, None], columns].transpose(1, 2)) for x in self.filled)
        self.first, self.end = 0, columns.shape[1]

    def keep(self, rows: Int[Tensor, " rows"], after: int) -> None:
        """These rows, without their first `after` columns: no other row's padding reaches further."""
        drop = max(after - self.first, 0)
        self.keys, self.values = (x[:, :, drop:].index_select(0, rows) for x in self.filled)
        self.first, self.end = self.first + drop - after, self.end - after

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many columns a pass of this length sees, and the first of them."""
        if self.window is None or not self.is_initialized:
            return self.end + query_length, 0
        offset = max(self.end - self.window + 1, 0)
        return self.end + query_length - offset, offset

    def get_seq_length(self) -> int:
        return self.end

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class RolloutCache(Cache):
    """All layers of a model whose layers keep keys and values only."""

    def __init__(self, windows: Sequence[int | None]) -> None:
        super().__init__(layers=[Columns(window) for window in windows])

    @property
    def columns(self) -> list[Columns]:
        return cast(list[Columns], self.layers)

    def spread(self, rows: Int[Tensor, " rows"], columns: Int[Tensor, "rows width"]) -> None:
        for layer in self.columns:
            layer.spread(rows, columns)

    def keep(self, rows: Int[Tensor, " rows"], after: int) -> None:
        for layer in self.columns:
            layer.keep(rows, after)

    def share(self, family: Family) -> None:
        for layer in self.columns:
            layer.share(family)

    def unshare(self) -> None:
        for layer in self.columns:
            layer.unshare()

    def keep_prompts(self, prompts: Int[Tensor, " prompts"], width: int, family: Family) -> None:
        for layer in self.columns:
            assert layer.prompts is not None, "nothing is shared"
            layer.prompts = layer.prompts.keep(prompts, width, family)

    @contextmanager
    def at(self, column: Int[Tensor, " one"]) -> Iterator[None]:
        """Layers write at a column that the device knows, and count none."""
        try:
            for layer in self.columns:
                layer.at = column
            yield
        finally:
            for layer in self.columns:
                layer.at = None

    def stand(self) -> None:
        """Storage stays where it is until it is full."""
        for layer in self.columns:
            layer.make_room()
            layer.clear_room()

    def advance(self, columns: int = 1) -> None:
        """So many were written that way; below 0: are to be written again."""
        for layer in self.columns:
            layer.end += columns

    @property
    def full(self) -> bool:
        return any(layer.full for layer in self.columns)

    @property
    def like(self) -> Tensor:
        """Keys of one layer, whose type and columns are those of all."""
        return self.columns[0].filled[0]

    @property
    def read(self) -> bool:
        """Whether the attention of every layer has read the prompts that it shares."""
        return all(layer.prompts is not None and layer.prompts.read for layer in self.columns)


def states_behind(
    backbone: nn.Module, cache: RolloutCache, token: Int[Tensor, " rows"], position: Int[Tensor, " rows"], mask: Tensor | dict[str, Tensor] | None
) -> Float[Tensor, "rows hidden"]:
    """Final-norm states of a token a row, read behind what the cache holds."""
    read = backbone(token[:, None], attention_mask=mask, position_ids=position[:, None], past_key_values=cache, use_cache=True)
    return read.last_hidden_state[:, -1]


def _with_room(x: Float[Tensor, "rows heads filled dim"], room: int = ROOM) -> Float[Tensor, "rows heads columns dim"]:
    rows, heads, filled, dim = x.shape
    storage = x.new_empty(rows, heads, filled + room, dim)
    storage[:, :, :filled] = x
    return storage
