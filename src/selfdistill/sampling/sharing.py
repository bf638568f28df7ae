"""Attention of rows that began with the same prompts: keys and values of a prompt stand once, and are read once for all of its rows.

Writing a token reads all keys and values there are and multiplies little, so on a CPU it takes as long as they are many.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from selfdistill.models import Policy
from selfdistill.sampling.masks import hiding

ROWS = 4
"""Rows a prompt, on average, from which sharing pays."""
ATTACHED = "_selfdistill_prompts"
NAME = "selfdistill_shared_prompts"


@dataclass(frozen=True, kw_only=True)
class Family:
    """Which rows go on from which prompt: a table of rows by prompt, short lines filled up, and every row's place in it."""

    rows: Int[Tensor, "prompts widest"]
    place: Int[Tensor, " rows"]
    in_order: bool
    """Whether the rows already stand as in the table, line by line."""
    hidden: Float[Tensor, "prompts 1 1 width"] | None
    """Added to the scores of a prompt's columns, the lowest number where they are padding."""

    @classmethod
    def of(cls, prompt: Sequence[int], lengths: Sequence[int], *, like: Tensor) -> "Family":
        """`prompt[i]` is row i's; lengths are the prompts'."""
        members: list[list[int]] = [[] for _ in lengths]
        for row, number in enumerate(prompt):
            members[number].append(row)
        widest = max(map(len, members))
        at = {row: number * widest + j for number, rows in enumerate(members) for j, row in enumerate(rows)}
        hidden = None
        if min(lengths) < max(lengths):
            padding = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
            hidden = hiding(padding, dtype=like.dtype).to(like.device)
        table = torch.tensor([rows + rows[:1] * (widest - len(rows)) for rows in members], device=like.device)
        places = [at[row] for row in range(len(prompt))]
        in_order = places == list(range(len(lengths) * widest))
        return cls(rows=table, place=torch.tensor(places, device=like.device), in_order=in_order, hidden=hidden)

    def gather(self, x: Float[Tensor, "rows heads queries width"]) -> Float[Tensor, "prompts heads all width"]:
        """What the rows of a prompt have, one behind the other."""
        lines = x.unflatten(0, tuple(self.rows.shape)) if self.in_order else x[self.rows]
        return lines.transpose(1, 2).flatten(2, 3)

    def spread(self, x: Float[Tensor, "prompts heads all width"], queries: int) -> Float[Tensor, "rows heads queries width"]:
        """The reverse of `gather`."""
        lines = x.unflatten(2, (-1, queries)).transpose(1, 2).flatten(0, 1)
        return lines if self.in_order else lines[self.place]


@dataclass(kw_only=True)
class Prompts:
    """One layer's keys and values of prompts, right-padded; the keys turned round, as each pass multiplies them."""

    keys: Float[Tensor, "prompts heads dim width"]
    values: Float[Tensor, "prompts heads width dim"]
    family: Family
    behind: int = 0
    """Columns behind them that are written."""
    read: bool = False
    """Whether attention has asked for them."""

    @classmethod
    def of(cls, keys: Float[Tensor, "prompts heads width dim"], values: Float[Tensor, "prompts heads width dim"], family: Family) -> "Prompts":
        """As a layer gave them."""
        return cls(keys=keys.transpose(-1, -2).contiguous(), values=values.contiguous(), family=family)

    def keep(self, prompts: Int[Tensor, " prompts"], width: int, family: Family) -> "Prompts":
        """Only these prompts, and of their columns so many."""
        keys, values = self.keys[..., :width].index_select(0, prompts), self.values[:, :, :width].index_select(0, prompts)
        return replace(self, keys=keys, values=values, family=family)

    def attend(
        self, query: Float[Tensor, "rows all_heads 1 dim"], keys: Float[Tensor, "rows heads own dim"], values: Float[Tensor, "rows heads own dim"], scale: float
    ) -> Float[Tensor, "rows 1 all_heads dim"]:
        """softmax(q K^T scale) V over a row's prompt and those of its own columns that are written.

        The others are read too and hidden: many short stretches of memory are slower to read than one long one.
        """
        self.read = True
        rows, heads, own, dim = keys.shape
        # the query heads that read one head's keys are so many queries
        q = (query * scale).reshape(rows, heads, -1, dim)
        before = self.family.gather(q) @ self.keys
        before = before if self.family.hidden is None else before + self.family.hidden
        scores = torch.cat([self.family.spread(before, q.shape[2]), q @ keys.transpose(-1, -2)], dim=-1)
        scores[..., scores.shape[-1] - own + self.behind :] = -torch.inf
        of_prompt, of_own = scores.softmax(-1).split([scores.shape[-1] - own, own], dim=-1)
        read = self.family.spread(self.family.gather(of_prompt) @ self.values, q.shape[2]) + of_own @ values
        return read.reshape(rows, 1, -1, dim)


def attach(prompts: Prompts, *columns: Tensor) -> None:
    """A model hands keys and values on to its attention as they are, and the prompts with them."""
    for column in columns:
        setattr(column, ATTACHED, prompts)


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None, **rest: Any
) -> tuple[Tensor, None]:
    """As transformers' sdpa, but for keys and values that say behind which prompts they stand, where nothing else bends the scores."""
    prompts: Prompts | None = getattr(key, ATTACHED, None)
    plain = attention_mask is None and all(rest.get(name) is None for name in ("position_bias", "s_aux", "softcap"))
    if prompts is None or getattr(value, ATTACHED, None) is not prompts or not plain:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
    return prompts.attend(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling), None


AttentionInterface.register(NAME, attention)


@contextmanager
def sharing(policy: Policy) -> Iterator[None]:
    """A model attends that way; transformers makes it no masks then."""
    config = policy.base.config.get_text_config()
    before = config._attn_implementation
    try:
        config._attn_implementation = NAME
        yield
    finally:
        config._attn_implementation = before


def pays(policy: Policy, prompts: Sequence[list[int]], windows: Sequence[int | None]) -> bool:
    """Whether a batch's prompts are shared: in fp32 on a CPU, where they have rows enough and about as many each, and attention is sdpa's over all before.

    In bf16 the sums would round otherwise than those of the pass that trains.
    """
    rows = Counter(map(tuple, prompts))
    many = len(prompts) >= ROWS * len(rows) and 2 * len(prompts) >= max(rows.values(), default=0) * len(rows)
    # others choose among kinds of attention of their own
    asks = policy.base._supports_attention_backend
    plain = asks and policy.base.config.get_text_config()._attn_implementation == "sdpa" and not any(windows)
    return many and plain and policy.device.type == "cpu" and policy.dtype == torch.float32
