"""Which weights a policy computes with: a policy in, a hash out."""

import hashlib
import json
import re
from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from peft import PeftModel

    from selfdistill.models import Policy

WITHOUT_EFFECT = ("base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "init_lora_weights", "target_modules", "peft_version")
"""Of an adapter's configuration: what is known from its parameters' names and values, or is off while a model is read."""
WRAPPED = re.compile(r"\.(base_layer|original_module)(?=\.)")
"""What peft puts into the names of the parameters that it wraps."""


def weights_hash(policy: "Policy") -> str:
    """SHA-256 over names and bytes of what a policy computes with: its model's parameters, and its trained adapter's with their configuration.

    An adapter whose product is zero is left out: under every rank and seed an untrained one is its base. What a teacher keeps beside is none of it.
    """
    own, adapter = _parameters(policy)
    digest = hashlib.sha256()
    for name, parameter in [*sorted(own.items()), *([] if _is_zero(adapter) else sorted(adapter.items()))]:
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    if not _is_zero(adapter):
        digest.update(_configuration(policy).encode())
    return digest.hexdigest()


def _parameters(policy: "Policy") -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The model's, by the names that they have without adapters, and the trained adapter's."""
    if not policy.lora:
        return dict(policy.named_parameters()), {}
    adapters = re.compile(rf"\.({'|'.join(map(re.escape, _adapted(policy).peft_config))})(?=\.|$)")
    found: dict[str | None, dict[str, torch.Tensor]] = {None: {}, "default": {}}
    for name, parameter in policy.base.named_parameters():
        of = match[1] if (match := adapters.search(name)) else None
        found.setdefault(of, {})[name if of else f"model.{WRAPPED.sub('', name)}"] = parameter
    return found[None], found["default"]


def _is_zero(adapter: dict[str, torch.Tensor]) -> bool:
    """Whether it adds nothing: LoRA's factors alone, with zeros in one of the two. Other kinds of adapters are never taken for nothing."""
    factors, last = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"), ("lora_B", "lora_embedding_A")
    return all(any(kind in name for kind in factors) and not (any(kind in name for kind in last) and parameter.any()) for name, parameter in adapter.items())


def _configuration(policy: "Policy") -> str:
    """What the trained adapter makes of its parameters: alpha, rank, scaling and the like."""
    known = {key: value for key, value in _adapted(policy).peft_config["default"].to_dict().items() if key not in WITHOUT_EFFECT}
    return json.dumps(known, sort_keys=True, default=lambda value: sorted(map(str, value)) if isinstance(value, set) else str(value))


def _adapted(policy: "Policy") -> "PeftModel":
    return cast("PeftModel", policy.model)
