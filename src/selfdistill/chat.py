"""Chats to token ids by the model's own template, and back. Text inside a message can never become a role token."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from selfdistill.types import Message


@dataclass(frozen=True)
class Chat:
    """The one place where text meets the tokenizer."""

    tokenizer: PreTrainedTokenizerBase

    def encode(self, messages: Sequence[Message], thinking: bool | None = None) -> list[int]:
        """The chat up to and with the assistant's header; special tokens written inside contents are encoded as plain text."""
        specials = sorted(self.tokenizer.all_special_tokens, key=len, reverse=True)
        guarded, hidden = _hide(messages, specials)
        if not hidden:
            return self._ids(self.render(messages, thinking))
        pieces, rest = [], self.render(guarded, thinking)
        for mark, special in hidden:
            before, rest = rest.split(mark, 1)
            pieces += self._ids(before) + self._ids(special, split_special_tokens=True)
        return pieces + self._ids(rest)

    def render(self, messages: Sequence[Message], thinking: bool | None = None, *, header: bool = True) -> str:
        """The chat as the template's text."""
        flag = {} if thinking is None else {"enable_thinking": thinking}
        turns = [dict(m) for m in messages]
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=header, **flag)

    def completion(self, text: str) -> list[int]:
        """A completion's ids, special tokens split, closed by the end-of-sequence token."""
        return [*self._ids(text, split_special_tokens=True), self.tokenizer.eos_token_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def header(self, ids: Sequence[int]) -> list[int]:
        """The assistant header a prompt ends in, without the think block a flag may append; the last tokens where it ends otherwise."""
        shortest = min(self._headers, key=len)
        if any(list(ids[-len(h) :]) == h for h in self._headers):
            return shortest
        return list(ids[-len(shortest) :])

    @cached_property
    def _headers(self) -> list[list[int]]:
        """What the template appends for the assistant under each thinking flag."""
        probe = [{"role": "user", "content": "x"}]
        found = []
        for thinking in (None, True, False):
            without = self.render(probe, thinking, header=False)
            found.append(self._ids(self.render(probe, thinking)[len(without) :]))
        return found

    def _ids(self, text: str, *, split_special_tokens: bool = False) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=split_special_tokens)["input_ids"]


def _hide(messages: Sequence[Message], specials: Sequence[str]) -> tuple[list[dict[str, str]], list[tuple[str, str]]]:
    """Messages with every special token replaced by a mark, and (mark, special) in the order of reading."""
    guarded, hidden = [], []
    for message in messages:
        text, done = message["content"], ""
        while (at := min(((text.find(s), s) for s in specials if s in text), key=lambda found: found[0], default=None)) is not None:
            mark = f"\ue000{len(hidden)}\ue001"
            hidden.append((mark, at[1]))
            done += text[: at[0]] + mark
            text = text[at[0] + len(at[1]) :]
        guarded.append({**message, "content": done + text})
    return guarded, hidden
