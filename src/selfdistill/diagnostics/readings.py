"""Groups read by a method's teachers, to a number a trained token of each rollout: what any method would say, without its loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy
import torch
from jaxtyping import Float, Int

from selfdistill.contexts import Answer, Demonstration, Privileged, Solution, SuccessfulPeer, TextSource, Written
from selfdistill.method import Method
from selfdistill.models import Policy
from selfdistill.packing import pack, packed_order
from selfdistill.reading import Readers, read
from selfdistill.samples import training_samples
from selfdistill.teachers import Live, evaluating
from selfdistill.types import Group, Rollout, TrainingSample

Array = numpy.ndarray
SIGNALS = ("log_ratio", "target_logp", "divergence", "entropy", "target_entropy")
CONTEXTS: Mapping[str, TextSource] = {s.kind: s for s in (Answer(), Solution(), SuccessfulPeer(), Demonstration(), Written())}
"""Contexts by the kind of their words, for readings that no method gives."""


@dataclass(frozen=True, kw_only=True)
class TokenReading:
    """One rollout, and what its teachers say of each trained token, averaged by their shares."""

    rollout: Rollout
    group: Group
    position: Int[Array, " trained"]
    """Place in the completion, from 0."""
    log_ratio: Float[Array, " trained"]
    """Delta_t = log T(y_t) - log S(y_t) in nats."""
    target_logp: Float[Array, " trained"]
    """log T(y_t)."""
    divergence: Float[Array, " trained"]
    """The method's D in nats, before token weights."""
    entropy: Float[Array, " trained"]
    target_entropy: Float[Array, " trained"]

    @property
    def problem(self) -> str:
        """What rollouts of one problem share."""
        return self.group.problem.id or str(self.group.problem.prompt)


def under(kind: str) -> Method:
    """The student itself, shown the text of one kind beside the question. Raises ValueError on a kind that is not in CONTEXTS."""
    if kind not in CONTEXTS:
        raise ValueError(f"there is no context {kind!r}; contexts are {', '.join(CONTEXTS)}")
    return Method(context=Privileged((CONTEXTS[kind],)), teacher=Live())


def token_readings(groups: Sequence[Group], *, policy: Policy, readers: Readers, method: Method, budget: int) -> list[TokenReading]:
    """Every taught rollout. Raises ValueError where there is none."""
    alone = replace(method, distill_coef=1.0, policy_coef=0.0, label_coef=0.0, reference_coef=0.0)
    samples = [s for s in training_samples(groups, alone, encode=policy.chat.encode) if s.views]
    if not samples:
        count = sum(len(g.rollouts) for g in groups)
        raise ValueError(f"none of the {count} rollouts is taught by this method, so there is nothing to read; choose another --method, --context or --steps")
    with evaluating(policy):
        signals = [read(policy, readers, alone, batch.to(policy.device)) for batch in pack(samples, budget)]
    ordered = packed_order(samples)
    sizes = [len(s.rollout.positions) for s in ordered]
    columns = [torch.cat([getattr(s, name).detach().cpu() for s in signals]).double().split(sizes) for name in SIGNALS]
    of_rollout: dict[int, list[tuple[TrainingSample, list[torch.Tensor]]]] = {}
    for sample, *values in zip(ordered, *columns, strict=True):
        of_rollout.setdefault(id(sample.rollout), []).append((sample, values))
    found = [(g, of_rollout[id(r)]) for g in groups for r in g.rollouts if id(r) in of_rollout]
    return [_averaged(group, teachers) for group, teachers in found]


def _averaged(group: Group, teachers: Sequence[tuple[TrainingSample, list[torch.Tensor]]]) -> TokenReading:
    total = sum(sample.distill_scale for sample, _ in teachers)
    rollout = teachers[0][0].rollout
    nothing = numpy.zeros(len(rollout.positions))
    means = [sum((s.distill_scale / total * values[i].numpy() for s, values in teachers), nothing) for i in range(len(SIGNALS))]
    return TokenReading(rollout=rollout, group=group, position=numpy.array(rollout.positions), **dict(zip(SIGNALS, means, strict=True)))
