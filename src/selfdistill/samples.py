"""Groups to training samples: who teaches each rollout, with which share of the loss. The last place that sees text.

Every scale is fixed here from counts over the whole step, so micro-batches and ranks add up without further care.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from selfdistill.advantages import Credit
from selfdistill.method import Method
from selfdistill.types import Group, Message, Rollout, Teaching, TrainingSample, View

Encode = Callable[[Sequence[Message], bool | None], list[int]]
"""(chat, thinking) -> token ids, the assistant's header included."""


def training_samples(groups: Sequence[Group], method: Method, *, encode: Encode) -> list[TrainingSample]:
    """One sample per rollout and teacher; rollouts without trained tokens, or without a reward that the loss reads, are left out everywhere.

    A teacher of weight 0 says nothing. Raises ValueError where weights are no shares, or the roles of one rollout's teachers differ.
    """
    taught = [(r, a, _teachings(method, r, g)) for g in groups for r, a in _graded(g, method)]
    counts = _counts([(r, bool(teachings)) for r, _, teachings in taught])
    samples = []
    for rollout, advantage, teachings in taught:
        total = sum(t.weight for t in teachings)
        shares = [(t.views, t.weight / total) for t in teachings] or [({}, 1.0)]
        for views, share in shares:
            encoded = {role: _encoded(view, encode) for role, view in views.items()}
            samples.append(_scaled(method, rollout, encoded, advantage, share, counts))
    return samples + _labelled(groups, method)


def _labelled(groups: Sequence[Group], method: Method) -> list[TrainingSample]:
    """What the label term reads beside the step's own rollouts; no other term and no count sees it."""
    if method.labels is None or not method.label_coef:
        return []
    return [TrainingSample(rollout=r, views={}, advantage=0.0, label_scale=method.label_coef * factor) for r, factor in method.labels(groups)]


def _graded(group: Group, method: Method) -> list[tuple[Rollout, float]]:
    """The rollouts that count, with their advantages."""
    reads_rewards = bool(method.policy_coef) and method.credit.reads_advantage
    rollouts = [r for r in group.rollouts if r.positions and not (reads_rewards and r.reward is None)]
    if not reads_rewards:
        return [(r, 0.0) for r in rollouts]
    rewards = torch.tensor([float(r.reward or 0) + r.shaping for r in rollouts])
    return list(zip(rollouts, method.advantage(rewards).tolist(), strict=True)) if rollouts else []


def _teachings(method: Method, rollout: Rollout, group: Group) -> list[Teaching]:
    given = method.context(rollout, group) if method.reads_teacher else []
    if given and (min(t.weight for t in given) < 0 or not any(t.weight for t in given)):
        raise ValueError(f"teachers' weights are their shares, >= 0 and not all 0, not {[t.weight for t in given]}; a signed gate is a token_weight")
    teachings = [t for t in given if t.weight]
    if len({frozenset(t.views) for t in teachings}) > 1:
        raise ValueError(f"the teachers of one rollout must have the same roles, not {[sorted(t.views) for t in teachings]}")
    return teachings


@dataclass(frozen=True, kw_only=True)
class _Counts:
    """Trained tokens and rollouts of the step: what the terms of the loss are averaged over."""

    everything: tuple[int, int]
    taught: tuple[int, int]


def _counts(rollouts: Sequence[tuple[Rollout, bool]]) -> _Counts:
    lengths = [len(r.positions) for r, _ in rollouts]
    taught = [len(r.positions) for r, is_taught in rollouts if is_taught]
    return _Counts(everything=(sum(lengths), len(lengths)), taught=(sum(taught), len(taught)))


def _encoded(view: View, encode: Encode) -> View:
    return view if view.prompt_ids is not None else replace(view, prompt_ids=tuple(encode(view.messages, view.thinking)))


def _scaled(method: Method, rollout: Rollout, views: dict[str, View], advantage: float, share: float, counts: _Counts) -> TrainingSample:
    length = len(rollout.positions)
    over_all = share * method.reduction(length, *counts.everything)
    distilled = counts.taught if method.reduction.over == "taught" else counts.everything
    distill_scale = share * method.distill_coef * method.reduction(length, *distilled) if views else 0.0
    return TrainingSample(
        rollout=rollout,
        views=views,
        advantage=advantage,
        distill_scale=distill_scale,
        policy_scale=method.policy_coef * over_all if _has_credit(method.credit, rollout, advantage, views) else 0.0,
        label_scale=method.label_coef * over_all if method.labels is None else 0.0,
        reference_scale=method.reference_coef * over_all,
    )


def _has_credit(credit: Credit, rollout: Rollout, advantage: float, views: dict[str, View]) -> bool:
    """Whether anything that the credit reads is there; without it every token's credit is 0, and so is a product with an advantage of 0."""
    if getattr(credit, "scales_advantage", False) and advantage == 0:
        return False
    noted = rollout.annotations.get(getattr(credit, "reads_annotation", ""), ())
    annotated = bool(noted) and any(noted[t] for t in rollout.positions)
    return annotated or (credit.reads_advantage and advantage != 0) or (credit.reads_teacher and bool(views))
