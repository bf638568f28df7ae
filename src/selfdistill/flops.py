"""Floating-point operations that a step cannot do without, by formula, and the rate of matrix products that a machine reaches.

Model FLOPs, after PaLM (2204.02311, appendix B): a product of n rows with a weight of N entries is 2 N n, its backward 2 N n for the rows and as much
again for a trained weight. Padding, prompts that are read again and logits or layers that backward computes again are time, not work. Counted by formula
and not by `torch.utils.flop_counter`, since that runs a step under another dispatch, sees all of these, and knows no attention kernel of a CPU.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import nn

from selfdistill.devices import allowed
from selfdistill.kernels.products import linear
from selfdistill.models import Policy
from selfdistill.packing import packed_order
from selfdistill.reading import Readers
from selfdistill.types import Group, TrainingSample

PEAK_SIZE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the square matrices whose product is timed."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model's passes cost, in FLOPs."""

    weights: float
    """Entries that a token is multiplied with in the layers; of experts, those that a token is sent to."""
    trained: float
    """Those of them that learn."""
    attention: int
    """FLOPs of scores and values for one query and one key, over all layers."""
    head: int
    """Entries of the head."""
    head_trained: bool

    @classmethod
    def of(cls, policy: Policy) -> "Cost":
        config, layers = policy.base.config.get_text_config(), policy.base.base_model
        embeddings = {id(p) for m in layers.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        used = getattr(config, "num_experts_per_tok", 1)
        # adapters of teachers lie in the same layers and are read in the student's place
        named = [(n, p) for n, p in layers.named_parameters() if p.ndim > 1 and id(p) not in embeddings and ("lora_" not in n or ".default." in n)]
        counts = [(p.numel() if p.ndim == 2 else p.numel() * used / len(p), p.requires_grad) for _, p in named]
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            weights=sum(n for n, _ in counts),
            trained=sum(n for n, trained in counts if trained),
            attention=4 * config.num_hidden_layers * config.num_attention_heads * width,
            head=policy.head.weight.numel(),
            head_trained=policy.head.weight.requires_grad,
        )

    def forward(self, length: int) -> float:
        """A sequence through the layers; a query meets half of the keys on average."""
        return 2 * self.weights * length + self.attention * length * length / 2

    def backward(self, length: int) -> float:
        return 2 * (self.weights + self.trained) * length + self.attention * length * length

    def logits(self, tokens: int, *, backward: bool = False) -> float:
        """The head's product for that many tokens, with its gradients where asked for."""
        return 2 * self.head * tokens * (1 + (1 + self.head_trained) * backward)


def step_flops(groups: Sequence[Group], samples: Sequence[TrainingSample], *, policy: Policy, readers: Readers, updates: int) -> dict[str, float]:
    """By part of a step; what feedback stages write or read besides is not among them."""
    own, packed = Cost.of(policy), packed_order(samples)
    costs = {weights: Cost.of(copy) if isinstance(copy := getattr(reader, "teacher", None), Policy) else own for weights, reader in readers.items()}
    rollouts = list({id(s.rollout): s.rollout for s in packed}.values())
    lengths = [len(r.prompt_ids) + len(r.completion_ids) for r in rollouts]
    views = [(costs[v.weights], len(v.prompt_ids or ()) + len(s.rollout.completion_ids), len(s.rollout.positions)) for s in packed for v in s.views.values()]
    if any(s.reference_scale for s in packed):
        views += [(costs["initial"], n, len(r.positions)) for n, r in zip(lengths, rollouts, strict=True)]
    return {
        "sampling": _sampling(own, groups),
        "teachers": updates * sum(cost.forward(n) for cost, n, _ in views),
        "student forward": updates * sum(map(own.forward, lengths)),
        "scoring": updates * (own.logits(sum(len(r.positions) for r in rollouts), backward=True) + sum(cost.logits(n) for cost, _, n in views)),
        "student backward": updates * sum(map(own.backward, lengths)),
    }


def _sampling(cost: Cost, groups: Iterable[Group]) -> float:
    """Every token once through the layers, a prompt once a group; a completion's tokens through the head."""
    rollouts = sorted((r.prompt_ids, len(r.completion_ids)) for g in groups for r in g.rollouts)
    total = 0.0
    for prompt, same in groupby(rollouts, key=lambda pair: pair[0]):
        total += cost.forward(len(prompt))
        total += sum(cost.forward(len(prompt) + n) - cost.forward(len(prompt)) + cost.logits(n) for _, n in same)
    return total


def matmul_peak(device: torch.device, dtype: torch.dtype, *, seconds: float = 1.0) -> float:
    """FLOPs a second of the fastest square matrix product that the machine did within that time, under its present threads."""
    size = allowed(PEAK_SIZE, device)
    # a generator of its own: the run's random numbers are not touched
    generator = torch.Generator(device).manual_seed(0)
    one, other = (torch.randn(size, size, generator=generator, device=device, dtype=dtype) for _ in range(2))
    start, fastest = time.perf_counter(), float("inf")
    while time.perf_counter() - start < seconds:
        begun = time.perf_counter()
        linear(one, other)
        if device.type == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - begun)
    return 2 * size**3 / fastest
