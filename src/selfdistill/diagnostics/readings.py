"""Groups read by a method's teachers, to a number a trained token of each rollout: what any method would say, without its loss."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy
from jaxtyping import Float, Int

from selfdistill.contexts import Answer, Demonstration, Privileged, Solution, SuccessfulPeer, TextSource, Written
from selfdistill.method import Method
from selfdistill.models import Policy
from selfdistill.reading import Readers, Taught, read_taught
from selfdistill.teachers import Live
from selfdistill.types import Group, Rollout

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


def token_readings(
    groups: Sequence[Group], *, policy: Policy, readers: Readers, method: Method, budget: int, on_progress: Callable[[int, int], None] | None = None
) -> list[TokenReading]:
    """Every taught rollout; `on_progress` is called with (micro-batches read, all of them). Raises ValueError where none is taught."""
    alone = replace(method, distill_coef=1.0, policy_coef=0.0, label_coef=0.0, reference_coef=0.0)
    taught = read_taught(groups, SIGNALS, policy=policy, readers=readers, method=alone, budget=budget, on_progress=on_progress)
    if not taught:
        count = sum(len(g.rollouts) for g in groups)
        raise ValueError(f"none of the {count} rollouts is taught by this method, so there is nothing to read; choose another --method, --context or --steps")
    return [_averaged(g, taught[id(r)]) for g in groups for r in g.rollouts if id(r) in taught]


def _averaged(group: Group, teachers: Sequence[Taught]) -> TokenReading:
    total = sum(sample.distill_scale for sample, _ in teachers)
    rollout = teachers[0][0].rollout
    nothing = numpy.zeros(len(rollout.positions))
    means = [sum((s.distill_scale / total * values[i].double().numpy() for s, values in teachers), nothing) for i in range(len(SIGNALS))]
    return TokenReading(rollout=rollout, group=group, position=numpy.array(rollout.positions), **dict(zip(SIGNALS, means, strict=True)))
