"""Rollouts by transformers' `generate`, for models that the loop does not write with; log-probs gathered step by step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from selfdistill.chat import special_id
from selfdistill.models import Policy
from selfdistill.sampling.choosing import Choice
from selfdistill.sampling.loop import Line
from selfdistill.teachers import evaluating


def write(policy: Policy, prompts: Sequence[list[int]], *, choice: Choice, limit: int, stops: Sequence[int]) -> list[Line]:
    """A completion of at most `limit` tokens a prompt, from one batch, on torch's global generator."""
    pad = special_id(policy.tokenizer, "pad")
    pad = stops[0] if pad is None else pad
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=policy.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=policy.device)
    recorder = _Recorder(temperature=choice.temperature or 1.0, vocab_size=policy.vocab_size, prompt_width=width)
    decoding = {"do_sample": True, "temperature": choice.temperature, "top_p": choice.top_p, "top_k": choice.top_k}
    with evaluating(policy), policy.autocast(), _own_settings_only(policy.base):
        out = cast(Callable[..., Tensor], policy.base.generate)(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=limit,
            # a static cache takes the type of the weights, autocast's keys and values have another
            cache_implementation="dynamic" if policy.autocast_dtype else "static",
            eos_token_id=list(stops),
            pad_token_id=pad,
            logits_processor=LogitsProcessorList([recorder]),
            **(decoding if choice.temperature else {"do_sample": False}),
        )
    lines, ending = [Line() for _ in prompts], frozenset(stops)
    for line, row, logp in zip(lines, out[:, width:].tolist(), recorder.finish(out).tolist(), strict=True):
        line.extend(row, logp, ending)
    return lines


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
