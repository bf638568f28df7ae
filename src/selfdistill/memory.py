"""How much memory a step will take, said before it starts, and what to turn when it was too much."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from selfdistill.config import Settings
from selfdistill.contexts import student_messages
from selfdistill.devices import allowed
from selfdistill.errors import out_of_memory
from selfdistill.kernels.fused import SLAB_ENTRIES
from selfdistill.models import Policy
from selfdistill.reading import Readers
from selfdistill.teachers import evaluating
from selfdistill.types import Problem

GIB = 2**30
PROBED = 32, 64
"""Tokens of two passes; what the longer one keeps for backward beyond the shorter is theirs, and not the weights'."""
TRANSIENT = ("activations", "scoring")
"""What a model needs only while its own micro-batches run."""
SCORED_COPIES = 3
"""Tensors of [slab vocab] alive at once while a slab is scored: the student's logits, a view's, and about as much of their blocks."""


def estimate(policy: Policy, readers: Readers, settings: Settings, problems: Iterable[Problem]) -> dict[str, float]:
    """GiB by part: weights, teacher copies, optimizer with gradients, activations of the largest micro-batch, scoring.

    The largest micro-batch is a full one, or every rollout at its longest beside the longest of the given prompts where those are fewer tokens.
    """
    weights = sum(p.numel() * p.element_size() for p in policy.parameters())
    trained = sum(p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad)
    copies = [copy for reader in set(readers.values()) if isinstance(copy := getattr(reader, "teacher", None), Policy)]
    longest = max((len(policy.chat.encode(student_messages(p))) for p in problems), default=0) + settings.sampling.max_completion_length
    tokens = min(settings.tokens_per_batch, settings.prompts_per_step * settings.sampling.num_generations * longest)
    parts = {
        "weights": weights,
        "teachers": sum(p.numel() * p.element_size() for copy in copies for p in copy.parameters()),
        "optimizer": 3 * trained,
        "activations": tokens * kept_a_token(policy),
        "scoring": SCORED_COPIES * 4 * min(allowed(SLAB_ENTRIES, policy.device), tokens * policy.vocab_size) + _head_gradient(policy),
    }
    return {name: value / GIB for name, value in parts.items()}


def kept_a_token(policy: Policy) -> float:
    """Bytes that a pass keeps for backward of every token, measured on two short ones; with checkpoints what one layer makes again is added.

    Attention that keeps its scores (eager) takes more over longer sequences.
    """
    with _mode(policy, training=True):
        kept = _slope(policy)
    if getattr(policy.base.base_model, "gradient_checkpointing", False):
        with _mode(policy, training=False):
            kept += _slope(policy) / policy.base.config.get_text_config().num_hidden_layers
    return kept


def _slope(policy: Policy) -> float:
    few, many = (_kept(policy, tokens) for tokens in PROBED)
    return (many - few) / (PROBED[1] - PROBED[0])


def _kept(policy: Policy, tokens: int) -> int:
    """Bytes of all storage that a pass over so many tokens keeps for backward, parameters left out."""
    own, sizes = {p.untyped_storage().data_ptr() for p in policy.parameters()}, dict[int, int]()

    def pack(kept: Tensor) -> Tensor:
        storage = kept.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return kept

    ids = torch.zeros(1, tokens, dtype=torch.long, device=policy.device)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept), policy.autocast():
        # what is kept lives as long as the states do, so that no address counts for two tensors
        states = policy.base.base_model(ids, use_cache=False).last_hidden_state
    del states
    return sum(sizes.values())


@contextmanager
def _mode(policy: Policy, *, training: bool) -> Iterator[None]:
    """With gradient and without a trace in the random stream, then the mode it was in."""
    devices = [policy.device] if policy.device.type == "cuda" else []
    with evaluating(policy), torch.enable_grad(), torch.random.fork_rng(devices=devices):
        policy.train(training)
        yield


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
