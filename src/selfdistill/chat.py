"""Chats to token ids by the model's own template, and back. Text inside a message can never become a role token."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

from transformers import PreTrainedTokenizerBase

from selfdistill.types import Message

FENCE = "\ue000"
"""A private-use character around the numbers that stand for special tokens while the template runs; longer where a message contains it."""


def special_id(tokenizer: PreTrainedTokenizerBase, name: Literal["eos", "pad", "unk"]) -> int | None:
    """The id of a named special token; None where the tokenizer has none."""
    return getattr(tokenizer, f"{name}_token_id")


@dataclass(frozen=True)
class Chat:
    """The one place where text meets the tokenizer."""

    tokenizer: PreTrainedTokenizerBase

    def encode(self, messages: Sequence[Message], thinking: bool | None = None) -> list[int]:
        """The chat up to and with the assistant's header; special tokens written inside contents are encoded as plain text."""
        contents = [message["content"] for message in messages]
        found = [self._special.findall(content) for content in contents]
        if not any(found):
            return self._ids(self.render(messages, thinking))
        fence = FENCE
        while any(fence in content for content in contents):
            fence += FENCE
        written = [special for specials in found for special in specials]
        numbers = iter(range(len(written)))
        guarded = [
            {**message, "content": self._special.sub(lambda _: f"{fence}{next(numbers)}{fence}", content)}
            for message, content in zip(messages, contents, strict=True)
        ]
        # a template may drop or repeat parts of a message, so marks are taken as they come
        pieces = re.split(f"{fence}(\\d+){fence}", self.render(guarded, thinking))
        return [token for i, piece in enumerate(pieces) for token in (self._spelled(written[int(piece)]) if i % 2 else self._ids(piece))]

    def render(self, messages: Sequence[Message], thinking: bool | None = None, *, header: bool = True) -> str:
        """The chat as the template's text."""
        flag: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
        turns = [dict(m) for m in messages]
        return cast(str, self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=header, **flag))

    def completion(self, text: str) -> list[int]:
        """A completion's ids, special tokens as plain text, closed by the token that ends an assistant's turn where there is one."""
        ids = self.plain(text)
        return ids if self.end_id is None else [*ids, self.end_id]

    def plain(self, text: str) -> list[int]:
        """A text's ids outside of any chat, special tokens as plain text."""
        pieces = self._special.split(text)
        written = self._special.findall(text)
        ids = self._ids(pieces[0])
        for special, piece in zip(written, pieces[1:], strict=True):
            ids += self._spelled(special) + self._ids(piece)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return cast(str, self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def header(self, ids: Sequence[int]) -> list[int]:
        """The assistant header a prompt ends in, without the think block a flag may append; the last tokens where it ends otherwise."""
        shortest = min(self._headers, key=len)
        if any(list(ids[-len(h) :]) == h for h in self._headers):
            return shortest
        return list(ids[-len(shortest) :])

    @cached_property
    def end_id(self) -> int | None:
        """The special token the template closes an assistant's turn with, else the tokenizer's end of sequence, if it has one."""
        probe = "\ue002"
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": probe}]
        closing = self._ids(self.render(turns, header=False).rpartition(probe)[2])
        return next((token for token in closing if token in self.special_ids), special_id(self.tokenizer, "eos"))

    @cached_property
    def _headers(self) -> list[list[int]]:
        """What the template appends for the assistant under each thinking flag."""
        probe = [{"role": "user", "content": "x"}]
        found = []
        for thinking in (None, True, False):
            without = self.render(probe, thinking, header=False)
            found.append(self._ids(self.render(probe, thinking)[len(without) :]))
        return found

    @cached_property
    def _special_tokens(self) -> dict[str, int]:
        """Every token that plain text must not become; named ones are only some of them in many tokenizers."""
        added = {token.content: i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return added | dict(zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids, strict=True))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of every special token but the one for unknown words, which stands for text."""
        return frozenset(self._special_tokens.values()) - {special_id(self.tokenizer, "unk")}

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """Any special token in a text, the longest where several begin at one place."""
        longest_first = sorted(self._special_tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def _spelled(self, special: str) -> list[int]:
        """A special token's text in ordinary tokens, letter by letter where the vocabulary holds it as a word."""
        ids = self._ids(special, split_special_tokens=True)
        return [i for letter in special for i in self._ids(letter)] if self.special_ids.intersection(ids) else ids

    def _ids(self, text: str, *, split_special_tokens: bool = False) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=split_special_tokens)["input_ids"]
