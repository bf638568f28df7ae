"""Who writes texts for feedback stages: chats in, one reply each out, by the run's engine under its thinking flag, without the think block."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from selfdistill.contexts import without_thinking
from selfdistill.sampling import Sampler
from selfdistill.tools import Tools
from selfdistill.types import Message, Problem

if TYPE_CHECKING:
    from selfdistill.models import Policy

Writer = Callable[[Sequence[Sequence[Message]], Tools], list[str]]
"""(chats, tools) -> one reply a chat."""


@dataclass(frozen=True, kw_only=True)
class Student:
    """The student as it is now; temperature 0 is greedy."""

    temperature: float = 0.0
    max_completion_length: int = 1024

    def __call__(self, chats: Sequence[Sequence[Message]], tools: Tools) -> list[str]:
        return _replies(tools.sampler.decoding(temperature=self.temperature, max_completion_length=self.max_completion_length), chats)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The weights that the method's teacher reads with."""

    temperature: float = 0.0
    max_completion_length: int = 1024

    def __call__(self, chats: Sequence[Sequence[Message]], tools: Tools) -> list[str]:
        with tools.readers["teacher"].reading() as policy:
            return _replies(_sampler_of(policy, tools, self.temperature, self.max_completion_length), chats)


@dataclass(frozen=True)
class Checkpoint:
    """Another model in this process: a folder or hub id, loaded once and kept on the student's device."""

    path: str
    temperature: float = 0.0
    max_completion_length: int = 1024

    def __call__(self, chats: Sequence[Sequence[Message]], tools: Tools) -> list[str]:
        policy = _loaded(self.path, dtype=str(tools.policy.dtype).removeprefix("torch."), device=str(tools.policy.device))
        return _replies(_sampler_of(policy, tools, self.temperature, self.max_completion_length), chats)


@cache
def _loaded(path: str, *, dtype: str, device: str) -> "Policy":
    from selfdistill.loading import load_policy

    return load_policy(path, dtype=dtype, device=device)


def _sampler_of(policy: "Policy", tools: Tools, temperature: float, max_completion_length: int) -> Sampler:
    """The run's engine over other weights: a copy of its own, so that the student's goes on with the student's."""
    sampler = tools.sampler.decoding(temperature=temperature, max_completion_length=max_completion_length)
    assert sampler is not tools.sampler, "an engine that shares its weights with every decoding cannot write with others"
    sampler.sync(policy, 0)
    return sampler


def _replies(sampler: Sampler, chats: Sequence[Sequence[Message]]) -> list[str]:
    if not chats:
        return []
    groups = sampler.sample([Problem(prompt=tuple(chat)) for chat in chats], 1)
    return [without_thinking(group.rollouts[0].text) for group in groups]
