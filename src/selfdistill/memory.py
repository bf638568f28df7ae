"""How much memory a step will take, said before it starts, and what to turn when it was too much."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from selfdistill.config import Settings
from selfdistill.errors import out_of_memory
from selfdistill.method import Method
from selfdistill.models import Policy
from selfdistill.scoring import CHUNK_ENTRIES
from selfdistill.teachers import EMA, External, Frozen

GIB = 2**30
LAYER_ACTIVATIONS = 34
"""Numbers of hidden width a token that a transformer layer keeps for backward (2205.05198, section 4.1, without attention scores)."""
CHECKPOINTED_ACTIVATIONS = 1
SCORED_COPIES = 6
"""Tensors of [chunk vocab] alive at once while a chunk is scored."""


def estimate(policy: Policy, method: Method, settings: Settings) -> dict[str, float]:
    """GiB by part: weights, teacher copies, optimizer with gradients, activations of a full micro-batch, scoring."""
    weights = sum(p.numel() * p.element_size() for p in policy.parameters())
    trained = sum(p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad)
    copied = method.reads_teacher and isinstance(method.teacher, EMA | External | Frozen) and not policy.lora
    config = policy.base.config.get_text_config()
    kept = CHECKPOINTED_ACTIVATIONS if settings.model.gradient_checkpointing else LAYER_ACTIVATIONS
    width = torch.finfo(policy.dtype).bits // 8
    activations = settings.tokens_per_batch * config.hidden_size * width * (kept * config.num_hidden_layers + LAYER_ACTIVATIONS)
    parts = {
        "weights": weights,
        "teachers": weights * (copied + bool(method.reference_coef and not policy.lora and method.teacher != Frozen())),
        "optimizer": 3 * trained,
        "activations": activations,
        "scoring": SCORED_COPIES * 4 * CHUNK_ENTRIES.get(policy.device.type, CHUNK_ENTRIES["cpu"]),
    }
    return {name: value / GIB for name, value in parts.items()}


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
