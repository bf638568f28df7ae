"""A causal language model as the framework sees it: packed tokens in, the states that predict trained tokens and the head out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selfdistill.chat import Chat
from selfdistill.heads import Head
from selfdistill.kernels.layers import quicken
from selfdistill.layouts import plain_cache, read_rows, room_of, saving_tree, shared_tree, tree_of
from selfdistill.prefixes import Tree, separate
from selfdistill.teachers import evaluating
from selfdistill.types import Packed

Layout = Literal["rows", "packed"]
T = TypeVar("T")


class Policy(nn.Module):
    """A model with its tokenizer. Parameters are used inside `forward` alone, where a sharded model gathers them.

    rows: right-padded rows, exact for any causal model, since padding stands behind every token that is read. packed: one row
    with restarting positions, whose block mask transformers derives (flex or flash attention on an accelerator).
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        layout: Layout = "rows",
        autocast: torch.dtype | None = None,
        fresh_adapter: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.chat, self.layout = model, tokenizer, Chat(tokenizer), layout
        self.autocast_dtype, self.fresh_adapter = autocast, fresh_adapter
        quicken(model)
        self.shares_prefixes = plain_cache(self.base.config)
        # ids may have holes, and a few multimodal tokenizers know a token that their text models have no row for
        self.vocab_size = min(max(tokenizer.get_vocab().values()) + 1, Head.of(self.base).vocab_size)

    def forward(self, fn: Callable[[Float[Tensor, "predicted hidden"], Head], T], packed: Packed) -> T:
        """fn(states that predict the trained tokens, head), inside this module's forward."""
        with self.autocast():
            return fn(self.hidden(packed), self.head)

    def hidden(self, packed: Packed) -> Float[Tensor, "predicted hidden"]:
        """Final-norm states at `packed.predicts`. Raises ValueError on a sequence with more tokens than the model has positions."""
        if self.max_length is not None and (longest := max(packed.lengths, default=0)) > self.max_length:
            raise ValueError(
                f"a prompt with its completion has {longest} tokens, above the model's {self.max_length} positions; where a teacher's prompt is what is "
                f"long, shorten what it reads or lower sampling.max_completion_length"
            )
        if self.layout == "packed":
            return self._packed(packed)
        shares = self._reads_once or (self.shares_prefixes and not self._backbone.training)
        tree = shared_tree(packed) if shares else separate(packed.lengths)
        return read_rows(self._backbone, self.base.config, packed, tree)

    def room(self, sequences: Sequence[Int[np.ndarray, " _"]], device: torch.device) -> float:
        """How many tokens of `tokens_per_batch` one pass over sequences takes while learning, padding included."""
        lengths = [len(ids) for ids in sequences]
        if self.layout == "packed":
            return sum(lengths)
        return room_of(saving_tree(sequences, device) if self._reads_once else separate(lengths), device)

    def _packed(self, packed: Packed) -> Float[Tensor, "predicted hidden"]:
        states = self._backbone(packed.input_ids[None], position_ids=packed.positions[None], use_cache=False).last_hidden_state
        return states[0, packed.predicts]

    @torch.no_grad()
    def embed(self, ids: Sequence[int]) -> Float[Tensor, "ids hidden"]:
        """Input embeddings of token ids."""
        # under gradient checkpointing transformers hooks the embedding so that its output asks for a gradient, here too
        return self.base.get_input_embeddings()(torch.tensor(list(ids), device=self.device)).detach().float()

    @property
    def base(self) -> PreTrainedModel:
        """The Hugging Face model, adapters inside."""
        return cast(PreTrainedModel, self.model.get_base_model()) if isinstance(self.model, PeftModel) else self.model

    @property
    def _backbone(self) -> nn.Module:
        return self.base.base_model

    @property
    def _reads_once(self) -> bool:
        """Whether learning reads once what sequences begin with: keys and values stand for it, and transformers keeps none while it checkpoints activations."""
        return self.layout == "rows" and self.shares_prefixes and not getattr(self._backbone, "gradient_checkpointing", False)

    @property
    def head(self) -> Head:
        return Head.of(self.base, vocab_size=self.vocab_size)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products run in."""
        return self.autocast_dtype or next(self.parameters()).dtype

    @property
    def max_length(self) -> int | None:
        """Positions the model has; None where its configuration names no limit."""
        return getattr(self.base.config.get_text_config(), "max_position_embeddings", None)

    def autocast(self) -> AbstractContextManager:
        """fp32 weights computing in bf16, where asked for."""
        return torch.autocast(self.device.type, dtype=self.autocast_dtype) if self.autocast_dtype else nullcontext()

    @property
    def lora(self) -> bool:
        return isinstance(self.model, PeftModel)

    @property
    def _adapted(self) -> PeftModel:
        assert isinstance(self.model, PeftModel), "only a LoRA policy has adapters"
        return self.model

    @contextmanager
    def adapters_off(self) -> Iterator[None]:
        """The base weights alone."""
        with self._adapted.disable_adapter():
            yield

    def add_adapter(self, name: str) -> None:
        """A second adapter in fp32 that begins at the student's and is not trained."""
        self._adapted.add_adapter(name, self._adapted.peft_config["default"])
        student = self.adapter_parameters("default")
        with torch.no_grad():
            for key, parameter in self.adapter_parameters(name).items():
                parameter.data = student[key].detach().float().clone()
                parameter.requires_grad_(False)

    @contextmanager
    def use_adapter(self, name: str) -> Iterator[None]:
        """Reads with another adapter, then with the student's again."""
        self._adapted.set_adapter(name)
        try:
            yield
        finally:
            self._adapted.set_adapter("default")

    def adapter_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """An adapter's factors by the names they share with every other adapter's."""
        return {n.replace(f".{name}.", "."): p for n, p in self.model.named_parameters() if f".{name}." in n and "lora_" in n}


def check_head(policy: Policy) -> float:
    """Largest deviation of head(hidden) from the model's own logits on random ids; ValueError above rounding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, policy.vocab_size, (1, 8), generator=generator).to(policy.device)
    with evaluating(policy), policy.autocast():
        ours = policy.head(policy._backbone(ids, use_cache=False).last_hidden_state[0])
        theirs = policy.base(ids, use_cache=False).logits[0, :, : policy.vocab_size].float()
    deviation = float((ours - theirs).abs().max())
    if not deviation <= _rounding(policy, theirs):
        raise ValueError(
            f"{type(policy.base).__name__} is not supported: its logits differ by {deviation:.3g} from its head's product; choose another model.path"
        )
    return deviation


def check_layout(policy: Policy) -> float:
    """Largest deviation of packed states from one sequence at a time; ValueError above rounding, naming model.layout.

    Where reading what sequences begin with once deviates, every sequence is read whole from then on.
    """
    generator = torch.Generator().manual_seed(0)
    stem, *rests = (torch.randint(0, policy.vocab_size, (n,), generator=generator) for n in (24, 20, 28, 9))
    parts = [torch.cat([stem, rest, rests[2][:end]]) for end in (2, 9, 5) for rest in rests[:2]] + [stem, stem]
    lengths = tuple(map(len, parts))
    packed = Packed(
        input_ids=torch.cat(parts),
        positions=torch.cat([torch.arange(n) for n in lengths]),
        lengths=lengths,
        predicts=torch.arange(sum(lengths)),
    ).to(policy.device)
    with evaluating(policy), policy.autocast():
        apart = torch.cat([policy._backbone(part[None], use_cache=False).last_hidden_state[0] for part in packed.input_ids.split(lengths)])[packed.predicts]
        allowed = _rounding(policy, apart)
        if policy.layout == "packed":
            deviation = float((policy.hidden(packed) - apart).abs().max())
        else:
            deviation = _off(policy, packed, separate(lengths), apart)
            if policy.shares_prefixes:
                together = _off(policy, packed, tree_of(packed, level=0), apart)
                policy.shares_prefixes = together <= allowed
                deviation = max(deviation, together) if policy.shares_prefixes else deviation
    if not deviation <= allowed:
        raise ValueError(f'sequences packed as {policy.layout!r} differ from separate ones by {deviation:.3g}; set model.layout = "rows"')
    return deviation


def _off(policy: Policy, packed: Packed, tree: Tree, apart: Tensor) -> float:
    """How far states read by that tree lie from those of sequences read apart."""
    return float((read_rows(policy._backbone, policy.base.config, packed, tree) - apart).abs().max())


def _rounding(policy: Policy, values: Tensor) -> float:
    """How far two orders of the same sums may lie apart; NaN is never within it."""
    return (1e-4 if policy.dtype == torch.float32 else 0.1) * max(float(values.abs().max()), 1.0)
