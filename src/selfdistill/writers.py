"""Who writes texts for feedback stages: chats in, one reply each out, without its thinking."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from selfdistill.contexts import TextSource, without_thinking, worded
from selfdistill.sampling import Sampler
from selfdistill.tools import Tools
from selfdistill.types import Group, Message, Problem, Rollout

if TYPE_CHECKING:
    from selfdistill.models import Policy

Writer = Callable[[Sequence[Sequence[Message]], Tools], list[str]]
"""(chats, tools) -> one reply a chat, empty where there is nothing but thinking."""
LONGEST = 300
"""Characters of a server's own words that an error quotes."""


@dataclass(frozen=True, kw_only=True)
class Student:
    """The student as it is now; temperature 0 is greedy."""

    temperature: float = 0.0
    max_completion_length: int | None = None
    """Tokens, thinking included; None: as many as a rollout has."""
    thinking: bool | None = None
    """The chat template's flag; None: as in its rollouts."""

    def __call__(self, chats: Sequence[Sequence[Message]], tools: Tools) -> list[str]:
        sampler = tools.sampler.decoding(temperature=self.temperature, max_completion_length=self.max_completion_length, thinking=self.thinking)
        return _replies(sampler, chats)


@dataclass(frozen=True, kw_only=True)
class Teacher(Student):
    """The weights that the method's teacher reads with."""

    def __call__(self, chats: Sequence[Sequence[Message]], tools: Tools) -> list[str]:
        with tools.readers["teacher"].reading() as policy:
            sampler = decoding_with(policy, tools, temperature=self.temperature, max_completion_length=self.max_completion_length, thinking=self.thinking)
            return _replies(sampler, chats)


@dataclass(frozen=True)
class Checkpoint:
    """Another model in this process: a folder or hub id, loaded once and kept on the student's device."""

    path: str
    temperature: float = 0.0
    max_completion_length: int | None = None
    """Tokens, thinking included; None: as many as a rollout has."""
    thinking: bool | None = None
    """The chat template's flag; None: as in the student's rollouts."""

    def __call__(self, chats: Sequence[Sequence[Message]], tools: Tools) -> list[str]:
        policy = _loaded(self.path, dtype=str(tools.policy.dtype).removeprefix("torch."), device=str(tools.policy.device))
        sampler = decoding_with(policy, tools, temperature=self.temperature, max_completion_length=self.max_completion_length, thinking=self.thinking)
        return _replies(sampler, chats)


@dataclass(frozen=True)
class Peer:
    """The other model of two that learn in lockstep, as it is now. Raises ValueError where one learns alone."""

    writer: Writer = Student()
    reads_peer: ClassVar[bool] = True

    def __call__(self, chats: Sequence[Sequence[Message]], tools: Tools) -> list[str]:
        return self.writer(chats, peer_of(tools))


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible URL, such as `http://localhost:8000/v1`, through the `openai` client.

    The key is the environment's OPENAI_API_KEY; a server that wants none is given a placeholder. Raises ValueError where the client is
    not installed, the server cannot be reached in time, answers with an HTTP error or with anything but chat completions.
    """

    url: str
    model: str
    temperature: float | None = 0.0
    """None leaves it to the server: some models refuse to be told."""
    max_completion_length: int | None = None
    """Tokens; None: the server's own limit."""
    timeout_s: float = 600.0
    """Of one request."""
    retries: int = 2
    """After a lost connection, a time-out, or HTTP 408, 409, 429 and 5xx, each a little later than the one before."""
    concurrency: int = 16
    """Requests on the way at once."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"an endpoint's url begins with http:// or https://, unlike {self.url!r}")
        if self.concurrency < 1 or self.retries < 0 or self.timeout_s <= 0:
            raise ValueError(
                f"an endpoint needs concurrency >= 1, retries >= 0 and timeout_s > 0, not {self.concurrency}, {self.retries} and {self.timeout_s:g}"
            )

    def __call__(self, chats: Sequence[Sequence[Message]], tools: Tools) -> list[str]:
        client = self._client()
        # threads, not an event loop: a notebook already runs one
        with client, ThreadPoolExecutor(self.concurrency) as threads:
            waiting = [threads.submit(self._ask, client, chat) for chat in chats]
            try:
                return [future.result() for future in waiting]
            finally:
                threads.shutdown(cancel_futures=True)

    def _client(self) -> Any:
        try:
            from openai import OpenAI
        except ImportError as error:
            raise ValueError(f"the endpoint {self.url} needs the openai client; install it with: pip install 'selfdistill[endpoint]'") from error
        return OpenAI(base_url=self.url, api_key=_key() or "none", timeout=self.timeout_s, max_retries=self.retries)

    def _ask(self, client: Any, chat: Sequence[Message]) -> str:
        from openai import APIConnectionError, APIStatusError, APITimeoutError, OpenAIError

        given = {"temperature": self.temperature, "max_completion_tokens": self.max_completion_length}
        chosen = {name: value for name, value in given.items() if value is not None}
        try:
            answer = client.chat.completions.create(model=self.model, messages=[dict(m) for m in chat], **chosen)
            return reply(answer.choices[0].message.content or "")
        except APITimeoutError as error:
            raise self._failed(f"it did not answer within {self.timeout_s:g} s; raise the endpoint's timeout_s or lower its concurrency") from error
        except APIConnectionError as error:
            raise self._failed(f"it cannot be reached ({_quoted(error.__cause__ or error)}); start the server or correct the endpoint's url") from error
        except APIStatusError as error:
            raise self._failed(f"it answered HTTP {error.status_code} ({_said(error)}); {_knob(error.status_code)}") from error
        except OpenAIError as error:
            raise self._failed(f"{_quoted(error)}; check the endpoint's url") from error
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            # the client hands over whatever JSON or text came back
            raise self._failed("what it answered is no chat completion; an endpoint's url ends where /chat/completions follows, often in /v1") from error

    def _failed(self, what: str) -> ValueError:
        return ValueError(f"the model {self.model!r} at {self.url} wrote nothing: {what}")


def asked_about(attempts: Sequence[tuple[Rollout, Group, str]], writer: Writer, tools: Tools, *, kind: str, truth: Sequence[TextSource]) -> list[str | None]:
    """What the writer says of each attempt (a rollout, its group, the text to show) beside the truth, in the words of `kind`.

    The truth is the text of the first source that has one; None where none has.
    """
    truths = [next((fields for source in truth if (fields := source(rollout, group)) is not None), None) for rollout, group, _ in attempts]
    known = [i for i, fields in enumerate(truths) if fields is not None]
    chats = []
    for i in known:
        (text,) = (truths[i] or {}).values()
        chats.append(worded(attempts[i][1].problem, kind, {"truth": text, "attempt": attempts[i][2]}))
    said: dict[int, str] = dict(zip(known, writer(chats, tools) if chats else [], strict=True))
    return [said.get(i) for i in range(len(attempts))]


NEEDS_PEER = 'this method needs a second model that learns beside the first; set [peer] path = "...", in Python call selfdistill.train_pair'


def peer_of(tools: Tools) -> Tools:
    """The other model's tools. Raises ValueError where there is none."""
    if tools.peer is None:
        raise ValueError(NEEDS_PEER)
    return tools.peer


def decoding_with(
    policy: "Policy", tools: Tools, *, temperature: float, max_completion_length: int | None, thinking: bool | None = None, version: int = 0
) -> Sampler:
    """The run's engine over other weights: a copy of its own, so that the student's goes on with the student's."""
    sampler = tools.sampler.decoding(temperature=temperature, max_completion_length=max_completion_length, thinking=thinking)
    assert sampler is not tools.sampler, "an engine that shares its weights with every decoding cannot write with others"
    sampler.sync(policy, version)
    return sampler


@cache
def _loaded(path: str, *, dtype: str, device: str) -> "Policy":
    from selfdistill.loading import load_policy

    return load_policy(path, dtype=dtype, device=device, setting="a writer's Checkpoint", trained=False)


def _replies(sampler: Sampler, chats: Sequence[Sequence[Message]]) -> list[str]:
    if not chats:
        return []
    groups = sampler.sample([Problem(prompt=tuple(chat)) for chat in chats], 1)
    return [reply(group.rollouts[0].text) for group in groups]


def reply(text: str) -> str:
    """What follows the thinking; nothing where the thinking never ends."""
    said = without_thinking(text)
    return "" if said.startswith("<think>") else said


def _key() -> str:
    return os.environ.get("OPENAI_API_KEY", "")


def _said(error: Any) -> str:
    """The server's own sentence, where its error has the usual shape."""
    body = error.body
    return _quoted(body["message"] if isinstance(body, dict) and body.get("message") else error.message)


def _quoted(said: object) -> str:
    """One line of bounded length, without the key that some servers repeat."""
    text = " ".join(str(said).split())
    return (text.replace(key, "***") if (key := _key()) else text)[:LONGEST]


def _knob(status: int) -> str:
    if status in (401, 403):
        return "set OPENAI_API_KEY in the environment"
    if status == 404:
        return "correct the endpoint's model or url"
    if status == 429:
        return "lower the endpoint's concurrency or raise its retries"
    return "the server's own log says more" if status >= 500 else "change the endpoint's model, temperature or max_completion_length"
