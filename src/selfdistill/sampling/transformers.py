"""The embedded engine: it shares the policy's weights and writes prompts of like length together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import nlargest

from selfdistill.chat import special_id
from selfdistill.contexts import student_messages
from selfdistill.models import Policy
from selfdistill.sampling import generate, loop
from selfdistill.sampling.choosing import Choice
from selfdistill.sampling.loop import Line
from selfdistill.types import Group, Problem, Rollout

LONGEST = 100
"""Prompts whose length is looked at before a run: those with the most letters."""


@dataclass
class Written:
    """Tokens that an engine has written so far."""

    tokens: int = 0


@dataclass(kw_only=True)
class TransformersSampler:
    """Samples on torch's global generator. temperature 0 is greedy.

    Raises ValueError on a prompt above `max_prompt_length` or one that leaves no room for the completion in the model's positions.
    """

    policy: Policy
    max_completion_length: int
    max_prompt_length: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    batch_size: int = 256
    thinking: bool | None = None
    cuda_graphs: bool = True
    on_progress: Callable[[int, int], None] | None = None
    """Called with (rollouts finished, rollouts asked for) after every batch."""
    version: int = 0
    written: Written = field(default_factory=Written)
    """Shared with the samplers that `decoding` makes of this one."""

    def sample(self, problems: Sequence[Problem], n: int) -> list[Group]:
        """n completions a problem; prompts of like length share a batch."""
        written = self.complete([ids for ids in map(self._prompt, problems) for _ in range(n)])
        for i, rollout in enumerate(written):
            rollout.index = i % n
        return [Group(problem=problem, rollouts=written[p * n : (p + 1) * n]) for p, problem in enumerate(problems)]

    def complete(self, prompts: Sequence[list[int]]) -> list[Rollout]:
        """One completion a prompt of token ids. Raises ValueError where one leaves no room for it in the model's positions."""
        limit, longest = self.policy.max_length, max(map(len, prompts), default=0)
        if limit is not None and longest + self.max_completion_length > limit:
            raise ValueError(
                f"{longest} tokens and a completion of {self.max_completion_length} are together above the model's {limit} positions; "
                f"lower sampling.max_completion_length"
            )
        rollouts: dict[int, Rollout] = {}
        for batch in _batches(sorted(range(len(prompts)), key=lambda i: len(prompts[i])), self.batch_size):
            for i, line in zip(batch, self._write([prompts[i] for i in batch]), strict=True):
                self.written.tokens += len(line.ids)
                rollouts[i] = self._rollout(prompts[i], line.ids, line.logp, truncated=not line.ended, index=0)
            if self.on_progress:
                self.on_progress(len(rollouts), len(prompts))
        return [rollouts[i] for i in range(len(prompts))]

    def has_room(self, problem: Problem) -> bool:
        """Whether the prompt is within its limit and leaves the completion's length free in the model's positions."""
        return self._too_long(self._encoded(problem), problem) is None

    def check_lengths(self, problems: Sequence[Problem]) -> None:
        """Raises the ValueError that sampling any of them would: the longest by their letters are rendered."""
        for problem in nlargest(LONGEST, problems, key=lambda p: len(str(p.prompt))):
            self._prompt(problem)

    def write(self, problem: Problem, text: str) -> Rollout:
        """A given text as a rollout that ends by itself, with log-probs 0."""
        ids = self.policy.chat.completion(text)
        return self._rollout(self._prompt(problem), ids, [0.0] * len(ids), truncated=False, index=0)

    def decoding(self, *, temperature: float, max_completion_length: int | None = None, thinking: bool | None = None) -> "TransformersSampler":
        """The same weights under another temperature, length and thinking flag; `max_prompt_length` limits what is trained on."""
        return replace(
            self,
            temperature=temperature,
            max_completion_length=self.max_completion_length if max_completion_length is None else max_completion_length,
            max_prompt_length=None,
            thinking=self.thinking if thinking is None else thinking,
        )

    def sync(self, policy: Policy, version: int) -> None:
        """The engine shares the policy's weights: nothing is copied."""
        self.policy, self.version = policy, version

    def _rollout(self, prompt: list[int], ids: list[int], logp: list[float], *, truncated: bool, index: int) -> Rollout:
        return Rollout(
            prompt_ids=prompt,
            completion_ids=ids,
            behavior_logp=logp,
            text=self.policy.chat.decode(ids),
            truncated=truncated,
            temperature=self.temperature or 1.0,
            policy_version=self.version,
            index=index,
        )

    def _prompt(self, problem: Problem) -> list[int]:
        ids = self._encoded(problem)
        if reason := self._too_long(ids, problem):
            raise ValueError(reason)
        return ids

    def _encoded(self, problem: Problem) -> list[int]:
        return self.policy.chat.encode(student_messages(problem), self.thinking)

    def _too_long(self, ids: list[int], problem: Problem) -> str | None:
        """The sentence that refuses a prompt; None where there is room."""
        name = problem.id or str(problem.prompt)[:40]
        if self.max_prompt_length is not None and len(ids) > self.max_prompt_length:
            return f"the prompt of {name!r} has {len(ids)} tokens, above sampling.max_prompt_length = {self.max_prompt_length}; raise it or filter the data"
        limit = self.policy.max_length
        if limit is not None and len(ids) + self.max_completion_length > limit:
            return (
                f"the prompt of {name!r} has {len(ids)} tokens and sampling.max_completion_length is {self.max_completion_length}, together above "
                f"the model's {limit} positions; lower max_completion_length or filter the data"
            )
        return None

    def _write(self, prompts: Sequence[list[int]]) -> list[Line]:
        """One batch, in the order of the prompts."""
        choice = Choice(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)
        write = partial(loop.write, cuda_graphs=self.cuda_graphs) if loop.writable(self.policy) else generate.write
        return write(self.policy, prompts, choice=choice, limit=self.max_completion_length, stops=stop_ids(self.policy))


def stop_ids(policy: Policy) -> list[int]:
    """The tokenizer's end of sequence, those of the model's generation settings, and what closes a turn of the chat."""
    configured = policy.base.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(i for i in (special_id(policy.tokenizer, "eos"), *listed, policy.chat.end_id) if i is not None))


def _batches(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
