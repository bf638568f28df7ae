"""Rollouts a token at a time: a prompt is read once however many rollouts it has, and who has finished leaves the batch.

One number of torch's global generator is the seed of a batch. From it every row of the batch gets its uniform numbers, finished or not,
so a row's tokens do not depend on when others leave.
"""

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from selfdistill.models import Policy
from selfdistill.sampling.cache import ROOM, RolloutCache, states_behind, windows
from selfdistill.sampling.choosing import Choice
from selfdistill.sampling.masks import hiding
from selfdistill.sampling.replay import FAR, NEAR, Refused, agree, records, refuse
from selfdistill.sampling.sharing import Family, pays, sharing
from selfdistill.sampling.standing import Standing
from selfdistill.teachers import evaluating

BLOCK = 8
"""Tokens between two looks at who has finished: the device is waited for no more often."""
LEAVING = 8
"""Finished rows leave once they are 1 in so many."""
LEAVING_RECORDED = 2
"""The same where passes are recorded, which they are again when rows leave."""


def writable(policy: Policy) -> bool:
    """Whether a model is written with here: its layers keep keys and values only, and take positions and masks as they are given."""
    config, backbone = policy.base.config.get_text_config(), policy.base.base_model
    takes = inspect.signature(type(backbone).forward).parameters
    masks = getattr(config, "_attn_implementation", None) in ("sdpa", "eager")
    return masks and {"position_ids", "past_key_values", "attention_mask"} <= takes.keys() and not getattr(config, "alibi", False) and bool(windows(config))


@dataclass(kw_only=True)
class Line:
    """One row's completion as far as it is written."""

    ids: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    ended: bool = False

    def extend(self, ids: Sequence[int], logp: Sequence[float], stops: frozenset[int]) -> None:
        """Takes tokens up to and with the first that ends a completion. Raises ValueError where a log-prob is no number."""
        length = next((i + 1 for i, token in enumerate(ids) if token in stops), None)
        self.ids += ids[:length]
        self.logp += logp[:length]
        self.ended = length is not None
        if any(x != x for x in logp[:length]):
            raise ValueError("the model's logits are not numbers; its weights have diverged: lower optimizer.lr, or check model.path and model.dtype")


def write(policy: Policy, prompts: Sequence[list[int]], *, choice: Choice, limit: int, stops: Sequence[int], cuda_graphs: bool = True) -> list[Line]:
    """A completion of at most `limit` tokens a prompt, from one batch; cuda_graphs: whether an accelerator's passes are recorded."""
    generator = torch.Generator(device=policy.device).manual_seed(int(torch.randint(2**63 - 1, ())))
    lines, ending = [Line() for _ in prompts], frozenset(stops)
    with evaluating(policy), policy.autocast():
        batch = _Batch(policy, prompts, cuda_graphs)
        for start in range(0, limit, BLOCK):
            uniform = torch.rand(BLOCK, len(prompts), generator=generator, device=policy.device, dtype=torch.float64)
            steps = [batch.step(choice, numbers) for numbers in uniform[: limit - start]]
            ids, logp = (torch.stack(of_steps, dim=1).tolist() for of_steps in zip(*steps, strict=True))
            for line, its_ids, its_logp in zip((lines[i] for i in batch.rows), ids, logp, strict=True):
                if not line.ended:
                    line.extend(its_ids, its_logp, ending)
            writing = [place for place, i in enumerate(batch.rows) if not lines[i].ended]
            if not writing:
                break
            if (len(batch.rows) - len(writing)) * (LEAVING_RECORDED if batch.records else LEAVING) >= len(batch.rows):
                batch.keep(writing)
    return lines


class _Batch:
    """Rows that are written together, left-padded; each pass gives all of them one token."""

    def __init__(self, policy: Policy, prompts: Sequence[list[int]], cuda_graphs: bool) -> None:
        seen = windows(policy.base.config)
        assert seen is not None, "writable() was asked"
        self.backbone, self.head, self.device = policy.base.base_model, policy.head.cast(), policy.device
        self.policy, self.cache, self.shares = policy, RolloutCache(seen), pays(policy, prompts, seen)
        self.records = cuda_graphs and records(self.backbone, self.device) and not self.shares and not any(seen)
        self.near = NEAR.get(policy.dtype, FAR)
        self.recorded: Standing | None = None
        self.believed = False
        """Whether what was recorded has been seen to do what plain passes do."""
        self.prompts = list({tuple(p): None for p in prompts})
        """Those that differ."""
        number = {p: i for i, p in enumerate(self.prompts)}
        self.prompt = [number[tuple(p)] for p in prompts]
        """Which of them each row goes on from."""
        self.rows = list(range(len(prompts)))
        """Whose completion each row is."""
        self.padding = [0] * len(prompts)
        """Columns before each row's own that are hidden from it."""
        self.place = torch.arange(len(prompts), device=self.device)
        self.position = torch.tensor([len(p) for p in prompts], device=self.device)
        self.token: Int[Tensor, " rows"] | None = None

    def step(self, choice: Choice, uniform: Float[Tensor, " prompts"]) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
        """Every row's next token and its log-prob; `uniform` has a number for every row there ever was."""
        if self.records and self.token is not None:
            return self._recorded(self.token, choice, uniform)
        logits = self._after_prompts() if self.token is None else self._after(self.token)
        self.token, logp = choice(logits, uniform[self.place])
        return self.token, logp

    def keep(self, places: Sequence[int]) -> None:
        """Only the rows at these places go on; columns that pad all of them go too."""
        index = torch.tensor(places, device=self.device)
        assert self.token is not None, "a batch is cut after a step"
        self.recorded = None
        self.rows, self.padding, self.prompt = ([values[i] for i in places] for values in (self.rows, self.padding, self.prompt))
        self.place, self.position, self.token = self.place[index], self.position[index], self.token[index]
        common = min(self.padding)
        self.cache.keep(index, common)
        self.padding = [n - common for n in self.padding]
        if self.shares:
            self._keep_prompts()
        self._pad()

    def _keep_prompts(self) -> None:
        """Those that have rows."""
        kept = sorted(set(self.prompt))
        self.prompts = [self.prompts[i] for i in kept]
        self.prompt = [kept.index(i) for i in self.prompt]
        self.cache.keep_prompts(torch.tensor(kept, device=self.device), max(map(len, self.prompts)), self._family())

    def _family(self) -> Family:
        return Family.of(self.prompt, [len(p) for p in self.prompts], like=self.cache.like)

    def _after_prompts(self) -> Float[Tensor, "rows vocab"]:
        """Logits behind every prompt. Different prompts are read once each, right-padded: no token sees what stands behind it."""
        width = max(map(len, self.prompts))
        ids = torch.tensor([[*p, *[0] * (width - len(p))] for p in self.prompts], device=self.device)
        states = self.backbone(ids, past_key_values=self.cache, use_cache=True).last_hidden_state
        ends = torch.tensor([len(p) - 1 for p in self.prompts], device=self.device)
        if self.shares:
            self.cache.share(self._family())
        else:
            self._spread()
        self._pad()
        return self.head(states[torch.arange(len(self.prompts), device=self.device), ends])[torch.tensor(self.prompt, device=self.device)]

    def _spread(self) -> None:
        """Every row has its prompt's keys and values; a padding column repeats the first one and is masked."""
        width = max(map(len, self.prompts))
        self.padding = [width - len(self.prompts[i]) for i in self.prompt]
        padding = torch.tensor(self.padding, device=self.device)
        columns = (torch.arange(width, device=self.device) - padding[:, None]).clamp(min=0)
        self.cache.spread(torch.tensor(self.prompt, device=self.device), columns)

    def _after(self, token: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocab"]:
        """Logits behind every row's last token."""
        with sharing(self.policy) if self.shares else nullcontext():
            states = states_behind(self.backbone, self.cache, token, self.position, self._mask())
        if self.shares and not self.cache.read:
            self._stop_sharing()
            return self._after(token)
        self.position = self.position + 1
        return self.head(states)

    def _recorded(self, token: Int[Tensor, " rows"], choice: Choice, uniform: Float[Tensor, " prompts"]) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
        """A step whose pass is recorded at first and after each change of rows or storage."""
        try:
            if self.recorded is None or self.cache.full:
                # what the last one held is let go first
                self.recorded = None
                self.recorded = self._standing(token, choice, uniform)
            else:
                self.recorded.go_on(uniform)
                if not self.believed:
                    self._check(self.recorded, token, choice, uniform)
            self.token, self.position = self.recorded.token.clone(), self.recorded.position.clone()
            return self.token, self.recorded.logp.clone()
        except Refused as reason:
            refuse(self.backbone, str(reason))
            self.records, self.recorded = False, None
            self._pad()
            return self.step(choice, uniform)

    def _standing(self, token: Int[Tensor, " rows"], choice: Choice, uniform: Float[Tensor, " prompts"]) -> Standing:
        return Standing(
            backbone=self.backbone,
            head=self.head,
            cache=self.cache,
            choice=choice,
            token=token,
            position=self.position,
            padding=torch.tensor(self.padding, device=self.device),
            place=self.place,
            uniform=uniform,
            near=self.near,
        )

    def _check(self, recorded: Standing, token: Int[Tensor, " rows"], choice: Choice, uniform: Float[Tensor, " prompts"]) -> None:
        """A batch's first replayed pass beside the plain one, which comes last and so leaves its keys and values. Raises Refused before the step."""
        self.cache.advance(-1)
        chosen, logp = choice(self._after(token), uniform[self.place])
        if not agree([recorded.token, recorded.logp, recorded.position], [chosen, logp, self.position], near=self.near):
            self.cache.advance(-1)
            self.position = self.position - 1
            raise Refused("a recorded pass does not give what a plain one gives")
        self.believed = True

    def _stop_sharing(self) -> None:
        """For a model that does something to keys, values or scores on their way: seen at its first token, which is written again."""
        self.shares = False
        self.cache.unshare()
        self._spread()
        self._pad()

    def _pad(self) -> None:
        """What hides the padding of these rows from attention; None where there is none, so that it takes its fast path."""
        self.padded: Float[Tensor, "rows 1 1 columns"] | None = None
        if max(self.padding):
            columns, padding = torch.arange(self.cache.get_seq_length() + ROOM, device=self.device), torch.tensor(self.padding, device=self.device)
            self.padded = hiding(columns < padding[:, None], dtype=self.cache.like.dtype)

    def _mask(self) -> Tensor | dict[str, Tensor] | None:
        """Over the columns that each kind of layer will see; the padding is the only thing in them that is hidden."""
        if self.padded is None:
            return None
        if self.padded.shape[-1] == self.cache.get_seq_length():
            self.padded = torch.nn.functional.pad(self.padded, (0, ROOM))
        masks = {}
        for layer in self.cache.columns:
            seen, offset = layer.get_mask_sizes(1)
            masks["sliding_attention" if layer.is_sliding else "full_attention"] = self.padded.narrow(-1, offset, seen)
        return masks if len(masks) > 1 else next(iter(masks.values()))
