"""The embedded engine: transformers' `generate` with a static cache, log-probs gathered step by step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from heapq import nlargest
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from selfdistill.chat import special_id
from selfdistill.contexts import student_messages
from selfdistill.models import Policy
from selfdistill.teachers import evaluating
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
            for i, (ids, logp, truncated) in zip(batch, self._generate([prompts[i] for i in batch]), strict=True):
                self.written.tokens += len(ids)
                rollouts[i] = self._rollout(prompts[i], ids, logp, truncated=truncated, index=0)
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

    def _generate(self, prompts: Sequence[list[int]]) -> list[tuple[list[int], list[float], bool]]:
        """(completion ids, their log-probs, truncated) a prompt, from one batch."""
        policy = self.policy
        stops = stop_ids(policy)
        pad = special_id(policy.tokenizer, "pad")
        pad = stops[0] if pad is None else pad
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=policy.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=policy.device)
        recorder = _Recorder(temperature=self.temperature or 1.0, vocab_size=policy.vocab_size, prompt_width=width)
        choice = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k} if self.temperature else {"do_sample": False}
        with evaluating(policy), policy.autocast(), _own_settings_only(policy.base):
            out = cast(Callable[..., Tensor], policy.base.generate)(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self.max_completion_length,
                # a static cache takes the type of the weights, autocast's keys and values have another
                cache_implementation="dynamic" if policy.autocast_dtype else "static",
                eos_token_id=stops,
                pad_token_id=pad,
                logits_processor=LogitsProcessorList([recorder]),
                **choice,
            )
        logps = recorder.finish(out).tolist()
        return [_cut(row, logp, stops) for row, logp in zip(out[:, width:].tolist(), logps, strict=True)]


class _Recorder(LogitsProcessor):
    """Keeps the last step's logits only, and gathers each chosen token's log-prob from them one step later.

    First of all processors, so it sees the distribution before temperature, top-p and top-k; tokens beyond the tokenizer's
    vocabulary are never sampled.
    """

    def __init__(self, *, temperature: float, vocab_size: int, prompt_width: int) -> None:
        self.temperature, self.vocab_size, self.width = temperature, vocab_size, prompt_width
        self.logits: Tensor | None = None
        self.log_total: Tensor | None = None
        self.chosen: list[Tensor] = []

    def __call__(self, input_ids: Int[Tensor, "batch width"], scores: Float[Tensor, "batch padded_vocab"]) -> Float[Tensor, "batch padded_vocab"]:
        # generate hands over a copy of its own
        scores[:, self.vocab_size :] = -torch.inf
        self._gather(input_ids)
        self.logits, self.log_total = scores, (scores / self.temperature).logsumexp(-1)
        return scores

    def finish(self, output: Int[Tensor, "batch width"]) -> Float[Tensor, "batch steps"]:
        """Log-probs of every generated token; what follows an end of sequence means nothing."""
        self._gather(output[:, : self.width + len(self.chosen) + 1])
        return torch.stack(self.chosen, dim=1)

    def _gather(self, input_ids: Int[Tensor, "batch width"]) -> None:
        if self.logits is not None and self.log_total is not None:
            self.chosen.append(self.logits.gather(-1, input_ids[:, -1:])[:, 0] / self.temperature - self.log_total)


@contextmanager
def _own_settings_only(model: PreTrainedModel) -> Iterator[None]:
    """Without the model's own generation settings: their penalties would sample from another distribution than the trainer's."""
    kept, model.generation_config = model.generation_config, GenerationConfig()
    if model.device.type == "cpu":
        # transformers keeps the longest cache yet, to spare compilations; here it would make results depend on earlier calls
        model._previous_max_cache_length = -1  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        model.generation_config = kept


def stop_ids(policy: Policy) -> list[int]:
    """The tokenizer's end of sequence, those of the model's generation settings, and what closes a turn of the chat."""
    configured = policy.base.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(i for i in (special_id(policy.tokenizer, "eos"), *listed, policy.chat.end_id) if i is not None))


def _cut(row: list[int], logp: list[float], stops: Sequence[int]) -> tuple[list[int], list[float], bool]:
    """A completion up to and with its first end of sequence; truncated if it has none."""
    end = next((t for t, token in enumerate(row) if token in stops), None)
    length = len(row) if end is None else end + 1
    return row[:length], logp[:length], end is None


def _batches(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
