"""Training samples to micro-batches of flat token rows. After this module nobody sees text, prompts or padding.

Samples without any scale cost nothing: they are not packed. Samples of one rollout stay together and share its student row.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import ceil
from typing import Any

import numpy as np
import torch

from selfdistill.layouts import SAVED_SHARE
from selfdistill.types import Batch, Packed, Rollout, TrainingSample, Weights

Room = Callable[[Weights | None, Sequence[np.ndarray]], float]
"""Tokens that a pass of some weights over sequences takes; None: the student's own pass."""


def whole_rows(weights: Weights | None, sequences: Sequence[np.ndarray]) -> float:
    """Each sequence read for itself, padded to the longest."""
    return len(sequences) * max(map(len, sequences), default=0)


def pack(samples: Sequence[TrainingSample], budget: int, room: Room = whole_rows) -> list[Batch]:
    """The micro-batches of `cut`."""
    return [batch_of(part) for part in cut(samples, budget, room)]


def cut(samples: Sequence[TrainingSample], budget: int, room: Room = whole_rows) -> list[list[TrainingSample]]:
    """The samples of each micro-batch, in their order: as many as take at most `budget` tokens over all passes.

    The longest rollouts come first, so that a shortage of memory shows early; where what rollouts of a prompt begin with is read once, those of its prompt
    with each. Raises ValueError where one rollout alone exceeds the budget.
    """
    lessons, parts, size = _ordered(_lessons(samples), budget, room), list[list[TrainingSample]](), 1
    while lessons:
        size = _fitting(lessons, budget, room, guess=size)
        parts.append([s for lesson in lessons[:size] for s in lesson.samples])
        lessons = lessons[size:]
    return parts


def packed_order(samples: Sequence[TrainingSample]) -> list[TrainingSample]:
    """The samples that cost anything, those of the longest rollouts first."""
    return [s for lesson in _lessons(samples) for s in lesson.samples]


@dataclass(frozen=True, kw_only=True)
class _Lesson:
    """All samples of one rollout."""

    rollout: Rollout
    samples: tuple[TrainingSample, ...]

    @cached_property
    def sequences(self) -> list[tuple[Weights | None, np.ndarray]]:
        """Every row this rollout needs, over all its views, by the weights that read it."""
        # KL to the initial weights reads the student's row a second time, but not in the same pass
        views = [(v.weights, v.prompt_ids or ()) for s in self.samples for v in s.views.values()]
        completion = list(self.rollout.completion_ids)
        return [(weights, np.array([*prompt, *completion])) for weights, prompt in [(None, self.rollout.prompt_ids), *views]]

    @property
    def longest(self) -> int:
        return max(len(ids) for _, ids in self.sequences)


def _lessons(samples: Sequence[TrainingSample]) -> list[_Lesson]:
    """Of the samples with a scale, longest first."""
    costing = [s for s in samples if s.distill_scale or s.policy_scale or s.label_scale or s.reference_scale]
    return sorted(_by_rollout(costing), key=lambda lesson: lesson.longest, reverse=True)


def _by_rollout(samples: Sequence[TrainingSample]) -> list[_Lesson]:
    found: dict[int, list[TrainingSample]] = {}
    for sample in samples:
        found.setdefault(id(sample.rollout), []).append(sample)
    return [_Lesson(rollout=group[0].rollout, samples=tuple(group)) for group in found.values()]


def _ordered(lessons: list[_Lesson], budget: int, room: Room) -> list[_Lesson]:
    """Those of a prompt behind the longest of them, where several micro-batches are needed and reading their prompt once saves enough."""
    own = [lesson.sequences[0][1] for lesson in lessons]
    if _size(lessons, whole_rows) <= budget or room(None, own) > (1 - SAVED_SHARE) * sum(map(len, own)):
        return lessons
    families: dict[tuple[int, ...], list[_Lesson]] = {}
    for lesson in lessons:
        families.setdefault(tuple(lesson.rollout.prompt_ids), []).append(lesson)
    return list(chain.from_iterable(families.values()))


def _fitting(lessons: Sequence[_Lesson], budget: int, room: Room, *, guess: int) -> int:
    """How many of the first lessons fit into a budget together; looked for from a guess on."""

    def fits(count: int) -> bool:
        return _size(lessons[:count], whole_rows) <= budget or _size(lessons[:count], room) <= budget

    if not fits(1):
        raise ValueError(
            f"a rollout with its teacher prompts needs {ceil(_size(lessons[:1], room))} tokens, above tokens_per_batch = {budget}; "
            f"raise tokens_per_batch or lower sampling.max_completion_length"
        )
    low, high = 1, min(2 * guess, len(lessons))
    while fits(high):
        if high == len(lessons):
            return high
        low, high = high, min(2 * high, len(lessons))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _size(lessons: Sequence[_Lesson], room: Room) -> float:
    """What all passes over these take."""
    passes: dict[Weights | None, list[np.ndarray]] = {}
    for weights, ids in chain.from_iterable(lesson.sequences for lesson in lessons):
        passes.setdefault(weights, []).append(ids)
    return sum(room(weights, sequences) for weights, sequences in passes.items())


def batch_of(samples: Sequence[TrainingSample]) -> Batch:
    """One micro-batch of these samples, those of a rollout behind one another. Raises ValueError where their teachers have other roles or weights."""
    lessons = _by_rollout(samples)
    taught = [s for s in samples if s.views]
    lengths = [len(s.rollout.positions) for s in samples]
    scalars: dict[str, Any] = {name: _floats(getattr(s, name) for s in samples) for name in _SAMPLE_SCALARS}
    roles: dict[str, Weights] = {role: view.weights for s in taught for role, view in s.views.items()}
    for sample in taught:
        if (found := {role: view.weights for role, view in sample.views.items()}) != roles:
            raise ValueError(f"all teachers of a step must have the same roles and weights, not {found} beside {roles}; make one context give them all")
    return Batch(
        student=_lay((s.rollout.prompt_ids, s.rollout) for s in (lesson.samples[0] for lesson in lessons)),
        views={role: _lay((s.views[role].prompt_ids or (), s.rollout) for s in taught) for role in roles},
        weights=roles,
        reads_initial=any(s.reference_scale for s in samples),
        student_token=_ints(_student_tokens(lessons)),
        sample=torch.repeat_interleave(torch.arange(len(samples)), _ints(lengths)),
        length=_ints(len(s.rollout.completion_ids) for s in samples),
        trained=_ints(lengths),
        taught=torch.tensor([bool(s.views) for s in samples]),
        reward=_floats(float(s.rollout.reward or 0) for s in samples),
        proximal_logp=None,
        **_token_columns(samples),
        **scalars,
        temperature=_common_temperature(samples),
    )


_SAMPLE_SCALARS = ("advantage", "distill_scale", "policy_scale", "label_scale", "reference_scale")


def _token_columns(samples: Sequence[TrainingSample]) -> dict[str, Any]:
    """What a batch knows of every trained token."""
    at = [(s.rollout, t) for s in samples for t in s.rollout.positions]
    names = sorted({name for s in samples for name in s.rollout.annotations})
    return {
        "token": _ints(r.completion_ids[t] for r, t in at),
        "position": _ints(t for _, t in at),
        "behavior_logp": _floats(r.behavior_logp[t] for r, t in at),
        "annotations": {name: _floats(r.annotations.get(name, (0.0,) * (t + 1))[t] for r, t in at) for name in names},
    } | _label_columns(at)


def _label_columns(at: Sequence[tuple[Rollout, int]]) -> dict[str, Any]:
    """The label of every trained token: probabilities by token id, in rows as wide as the widest label."""
    rows = [((r.completion_ids[t], 1.0),) if r.labels is None else tuple(r.labels[t].items()) for r, t in at]
    width = max(1, *map(len, rows))
    padded = [row + ((0, 0.0),) * (width - len(row)) for row in rows]
    return {
        "label_token": _ints(i for row in padded for i, _ in row).view(-1, width),
        "label_share": _floats(p for row in padded for _, p in row).view(-1, width),
    }


def _student_tokens(lessons: Sequence[_Lesson]) -> list[int]:
    """For every sample's tokens, their place among the tokens of the unique rollouts."""
    index, start = [], 0
    for lesson in lessons:
        count = len(lesson.rollout.positions)
        index += list(range(start, start + count)) * len(lesson.samples)
        start += count
    return index


def _lay(sequences: Iterable[tuple[Sequence[int], Rollout]]) -> Packed:
    """Prompts and completions end to end; the state before a completion token predicts it."""
    rows = list(sequences)
    lengths = [len(prompt) + len(rollout.completion_ids) for prompt, rollout in rows]
    starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    return Packed(
        input_ids=_ints(chain.from_iterable(chain(prompt, rollout.completion_ids) for prompt, rollout in rows)),
        positions=_ints(chain.from_iterable(range(n) for n in lengths)),
        lengths=tuple(lengths),
        predicts=_ints(start + len(prompt) - 1 + t for start, (prompt, rollout) in zip(starts, rows, strict=False) for t in rollout.positions),
    )


def _common_temperature(samples: Sequence[TrainingSample]) -> float:
    temperatures = {s.rollout.temperature for s in samples}
    assert len(temperatures) == 1, f"one step samples at one temperature, not {temperatures}"
    return temperatures.pop()


def _ints(values: Iterable[int]) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.long)


def _floats(values: Iterable[float]) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.float32)
