"""How much memory a step will take, said before it starts, and what to turn when it was too much."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

from selfdistill.config import Settings
from selfdistill.contexts import student_messages
from selfdistill.errors import out_of_memory
from selfdistill.models import Policy
from selfdistill.reading import Readers
from selfdistill.scoring import CHUNK_ENTRIES
from selfdistill.types import Problem

GIB = 2**30
LAYER_ACTIVATIONS = 34
"""Numbers of hidden width a token that a transformer layer keeps for backward (2205.05198, section 4.1, without attention scores)."""
CHECKPOINTED_ACTIVATIONS = 1
ADAPTED_BYTES = 70
"""Bytes of hidden width a token that LoRA on all linear layers of a gated transformer layer adds: fp32 copies of what enters and leaves each."""
TRANSIENT = ("activations", "scoring")
"""What a model needs only while its own micro-batches run."""
SCORED_COPIES = 6
"""Tensors of [chunk vocab] alive at once while a chunk is scored."""


def estimate(policy: Policy, readers: Readers, settings: Settings, problems: Iterable[Problem]) -> dict[str, float]:
    """GiB by part: weights, teacher copies, optimizer with gradients, activations of the largest micro-batch, scoring.

    The largest micro-batch is a full one, or every rollout at its longest beside the longest of the given prompts where those are fewer tokens.
    """
    weights = sum(p.numel() * p.element_size() for p in policy.parameters())
    trained = sum(p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad)
    copies = [copy for reader in set(readers.values()) if isinstance(copy := getattr(reader, "teacher", None), Policy)]
    config = policy.base.config.get_text_config()
    kept = CHECKPOINTED_ACTIVATIONS if settings.model.gradient_checkpointing else LAYER_ACTIVATIONS
    width = torch.finfo(policy.dtype).bits // 8
    longest = max((len(policy.chat.encode(student_messages(p))) for p in problems), default=0) + settings.sampling.max_completion_length
    tokens = min(settings.tokens_per_batch, settings.prompts_per_step * settings.sampling.num_generations * longest)
    adapted = ADAPTED_BYTES if policy.lora and not settings.model.gradient_checkpointing else 0
    layers = config.num_hidden_layers * (kept * width + adapted) + LAYER_ACTIVATIONS * width
    activations = tokens * config.hidden_size * layers
    parts = {
        "weights": weights,
        "teachers": sum(p.numel() * p.element_size() for copy in copies for p in copy.parameters()),
        "optimizer": 3 * trained,
        "activations": activations,
        "scoring": SCORED_COPIES * 4 * CHUNK_ENTRIES.get(policy.device.type, CHUNK_ENTRIES["cpu"]) + _head_gradient(policy),
    }
    return {name: value / GIB for name, value in parts.items()}


def _head_gradient(policy: Policy) -> int:
    """Bytes of the head's gradient of one micro-batch, before it joins the others."""
    weight = policy.head.weight
    return weight.numel() * weight.element_size() if weight.requires_grad else 0


def together(models: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Two models in one process: each keeps its weights, teachers and optimizer, and they take their turns with the rest."""
    found: dict[str, float] = {}
    for name, value in (part for model in models for part in model.items()):
        found[name] = max(found.get(name, 0.0), value) if name in TRANSIENT else found.get(name, 0.0) + value
    return found


@contextmanager
def explain_out_of_memory(settings: Settings) -> Iterator[None]:
    """Out of memory becomes one ValueError with the knobs that help, the most effective first."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise ValueError(_knobs(settings.model_dump())) from error


def _knobs(settings: Mapping) -> str:
    model = settings["model"]
    knobs = [f"lower tokens_per_batch ({settings['tokens_per_batch']})", f"or sampling.batch_size ({settings['sampling']['batch_size']})"]
    knobs += [] if model["gradient_checkpointing"] else ["set model.gradient_checkpointing = true"]
    knobs += [] if model["lora"] else ["train with [model.lora]"]
    knobs += [] if model["teacher_offload"] else ["set model.teacher_offload = true"]
    return "out of memory: " + ", ".join(knobs)
