"""The language-model head as a value: final hidden states in, fp32 logits over the real vocabulary out."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from selfdistill.kernels.products import linear


@dataclass(frozen=True, kw_only=True)
class Head:
    """logits = softcap(scale (h W^T + b)); rows beyond the tokenizer's vocabulary are cut before any softmax."""

    weight: Float[Tensor, "vocab hidden"]
    bias: Float[Tensor, " vocab"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, *, vocab_size: int | None = None) -> "Head":
        """The head of a causal model; tied heads are the embedding parameter itself. Raises ValueError on a head with its own adapter."""
        output = model.get_output_embeddings()
        if not isinstance(output, nn.Linear):
            raise ValueError(f"{type(model).__name__} has no plain output head (a LoRA on lm_head?); leave lm_head out of model.lora.target_modules")
        config = model.config.get_text_config()
        # Cohere and Falcon-H1 multiply, Granite divides, Gemma caps: the names their configurations use
        scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1 / getattr(config, "logits_scaling", 1.0)
        softcap = getattr(config, "final_logit_softcapping", None)
        weight, bias = output.weight, output.bias
        if vocab_size is not None and vocab_size < len(weight):
            weight, bias = weight[:vocab_size], None if bias is None else bias[:vocab_size]
        return cls(weight=weight, bias=bias, scale=float(scale), softcap=softcap)

    def __call__(self, hidden: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens vocab"]:
        return self.shape(self.product(hidden))

    def product(self, hidden: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens vocab"]:
        """h W^T + b, in the type that matrix products run in."""
        return linear(hidden.to(self.weight.dtype), self.weight, self.bias)

    def shape(self, product: Float[Tensor, "tokens vocab"]) -> Float[Tensor, "tokens vocab"]:
        """The product as fp32 logits, scaled and capped."""
        logits = product.float()
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def detach(self) -> "Head":
        return replace(self, weight=self.weight.detach(), bias=None if self.bias is None else self.bias.detach())

    def cast(self) -> "Head":
        """Without gradient, and under autocast in its type, so that many products cast the weights once."""
        kind = self.weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.weight.dtype
        bias = None if self.bias is None else self.bias.detach().to(dtype)
        return replace(self, weight=self.weight.detach().to(dtype), bias=bias)

    @property
    def vocab_size(self) -> int:
        return len(self.weight)


@dataclass(frozen=True, kw_only=True)
class Product:
    """What a head's matrix product made of some states, on its way to logits."""

    values: Float[Tensor, "tokens vocab"]
    head: Head

    def logits(self) -> Float[Tensor, "tokens vocab"]:
        return self.head.shape(self.values)

    def at(self, chosen: Int[Tensor, "tokens chosen"]) -> Float[Tensor, "tokens chosen"]:
        """Logits of some of the vocabulary."""
        return self.head.shape(self.values.gather(-1, chosen))
