"""TOPD's feedback stage: scored groups in, short continuations of student and teacher compared by transport, the ones worth repairing out.

Which tokens count as high is a statistic over the whole step, so it is taken here and not in a token weight.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from selfdistill.tools import Scored, Tools
from selfdistill.transport import ExactTransport, Transport, cosine_cost
from selfdistill.types import Group, Rollout
from selfdistill.writers import decoding_with

Lesson = Callable[[Rollout, Rollout, Float[Tensor, "n m"]], Rollout]
"""(the student's window of n tokens, the teacher's of m, their plan) -> the window that the label term reads."""


@dataclass(frozen=True)
class Transported:
    """The student's own window; label i is row i of the plan, renormalised to sum 1, over the teacher's tokens (TOPD)."""

    def __call__(self, student: Rollout, teacher: Rollout, plan: Float[Tensor, "n m"]) -> Rollout:
        rows = (plan / plan.sum(1, keepdim=True)).tolist()
        return replace(student, labels=tuple(_merged(row, teacher.completion_ids) for row in rows))


@dataclass(frozen=True)
class TeacherWindow:
    """Control without transport: plain cross-entropy on the teacher's window after the student's prefix."""

    def __call__(self, student: Rollout, teacher: Rollout, plan: Float[Tensor, "n m"]) -> Rollout:
        return replace(teacher, prompt_ids=student.prompt_ids)


@dataclass(frozen=True, kw_only=True)
class TransportWindows:
    """Where loss and transport distance are both high, writes a window onto the rollout (TOPD, 2606.00305).

    Probes are the `share` of the step's positions with the highest divergence, of the `control_share` with the lowest at most `controls`
    drawn at random, and as many of all positions for comparison. At each, student and teacher write `length` tokens from y_<t;
    D_OT = <gamma, C> with C_ij = 1 - cos of the student's input embeddings. A high-loss probe is kept where its D_OT exceeds the
    `quantile` of those of low loss. [open] what low-loss and random probes are; at least one of each; equal divergences go to the longer
    rollout. Reports the medians of D_OT, Pearson's r of divergence and D_OT over all probes, the share of high-loss probes not kept
    (false alarms), the number kept.
    Raises ValueError where shares or length leave no window.
    """

    length: int = 50
    """K in tokens; a window ends early with its text."""
    share: float = 0.0225
    control_share: float = 0.0225
    controls: int = 64
    """Low-loss and random probes at most, each: a quartile and a median need no more, and every probe costs two windows."""
    quantile: float = 0.75
    temperature: float = 1.0
    transport: Transport = ExactTransport()
    lesson: Lesson = Transported()

    def __post_init__(self) -> None:
        if not (0 < self.share <= 1 and 0 < self.control_share <= 1 and min(self.length, self.controls) >= 1):
            raise ValueError(
                f"windows need shares in (0, 1] of the step's positions, at least 1 token and 1 control, not share={self.share}, "
                f"control_share={self.control_share}, window={self.length}, controls={self.controls}"
            )

    @property
    def room(self) -> int:
        """Tokens that a window may write behind a whole completion."""
        return self.length

    def __call__(self, groups: list[Group], tools: Tools) -> None:
        found = self.probed(groups, tools)
        if not found:
            return
        distance = torch.tensor([p.distance for p in found], dtype=torch.float64)
        kinds = {kind: torch.tensor([p.kind == kind for p in found]) for kind in ("high", "random", "low")}
        kept = kinds["high"] & (distance > distance[kinds["low"]].quantile(self.quantile))
        for i in kept.nonzero()[:, 0].tolist():
            rollout = found[i].rollout
            # the loss divides logits by one temperature, that of the step's rollouts
            rollout.windows.append(replace(self.lesson(found[i].student, found[i].teacher, found[i].plan), temperature=rollout.temperature))
        tools.metrics.update({f"ot_{kind}": float(distance[mask].quantile(0.5)) for kind, mask in kinds.items()})
        tools.metrics["ot_loss_pearson"] = _pearson(torch.tensor([p.divergence for p in found], dtype=distance.dtype), distance)
        tools.metrics["false_alarm_share"] = 1 - float(kept.sum() / kinds["high"].sum())
        tools.metrics["windows"] = float(kept.sum())

    def probed(self, groups: list[Group], tools: Tools) -> list["Probed"]:
        """Every probe with both windows and their transport."""
        probes = self._probes(tools.score(groups))
        pairs = self._written(probes, tools) if probes else []
        costs = [cosine_cost(*(tools.policy.embed(w.completion_ids) for w in pair)).cpu() for pair in pairs]
        plans = [self.transport(cost) for cost in costs]
        return [
            Probed(p.scored.rollout, p.position, p.divergence, p.kind, *pair, plan, float((plan * cost).sum()))
            for p, pair, plan, cost in zip(probes, pairs, plans, costs, strict=True)
        ]

    def _probes(self, scored: Sequence[Scored]) -> list["_Probe"]:
        """Positions of high, random and low divergence over the whole step."""
        at = [(s, t, d) for s in scored for t, d in zip(s.rollout.positions, s.divergence.tolist(), strict=True)]
        high, control = (max(round(share * len(at)), 1) for share in (self.share, self.control_share))
        order = sorted(range(len(at)), key=lambda i: -at[i][2])
        few, low = min(control, self.controls), order[-control:]
        if few < control:
            low = [low[i] for i in torch.randperm(control)[:few].tolist()]
        chosen = {"high": order[:high], "random": torch.randperm(len(at))[:few].tolist(), "low": low}
        return [_Probe(scored=at[i][0], position=at[i][1], divergence=at[i][2], kind=kind) for kind, indices in chosen.items() for i in indices]

    def _written(self, probes: Sequence["_Probe"], tools: Tools) -> list[tuple[Rollout, Rollout]]:
        """The student's and the teacher's window of every probe."""
        student = tools.sampler.decoding(temperature=self.temperature, max_completion_length=self.length)
        by_student = student.complete([[*p.scored.rollout.prompt_ids, *p.prefix] for p in probes])
        views, version = [p.scored.views["teacher"] for p in probes], probes[0].scored.rollout.policy_version
        with tools.readers[views[0].weights].reading() as policy:
            teacher = decoding_with(policy, tools, temperature=self.temperature, max_completion_length=self.length, version=version)
            by_teacher = teacher.complete([[*(v.prompt_ids or ()), *p.prefix] for v, p in zip(views, probes, strict=True)])
        return list(zip(by_student, by_teacher, strict=True))


class Probed(NamedTuple):
    """A probe after both have written."""

    rollout: Rollout
    position: int
    divergence: float
    """In nats."""
    kind: str
    """high, random or low."""
    student: Rollout
    teacher: Rollout
    plan: Float[Tensor, "n m"]
    distance: float
    """D_OT, from 0 to 2."""


class _Probe(NamedTuple):
    """A position of a rollout from which both write on."""

    scored: Scored
    position: int
    divergence: float
    kind: str

    @property
    def prefix(self) -> list[int]:
        """y_<t."""
        return self.scored.rollout.completion_ids[: self.position]


def _merged(shares: Sequence[float], tokens: Sequence[int]) -> dict[int, float]:
    """Probability by token id; a token that occurs twice has the sum."""
    label: dict[int, float] = {}
    for share, token in zip(shares, tokens, strict=True):
        if share:
            label[token] = label.get(token, 0.0) + share
    return label


def _pearson(one: Float[Tensor, " n"], other: Float[Tensor, " n"]) -> float:
    """Correlation; 0 where one of them is constant."""
    one, other = one - one.mean(), other - other.mean()
    norm = float(one.norm() * other.norm())
    return float(one @ other) / norm if norm else 0.0
