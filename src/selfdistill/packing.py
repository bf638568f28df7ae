"""Training samples to micro-batches of flat token rows. After this module nobody sees text, prompts or padding.

Samples without any scale cost nothing: they are not packed. Samples of one rollout stay together and share its student row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil
from typing import Any

import torch

from selfdistill.budget import Load
from selfdistill.types import Batch, Packed, Rollout, TrainingSample, Weights


def pack(samples: Sequence[TrainingSample], budget: int, *, reads_once: bool = False) -> list[Batch]:
    """Micro-batches of at most `budget` tokens over all views, padding to the longest included; the longest rollouts come first.

    So a shortage of memory shows early. Where what rows begin with is read once (Policy.reads_once), rollouts of a prompt follow one another, and a prompt
    counts once, and again what its keys and values take for each of them. Raises ValueError where one rollout alone exceeds the budget.
    """
    batches, current, load = [], list[_Lesson](), _Loads(reads_once)
    for lesson in _lessons(samples, reads_once):
        load.add(lesson)
        if load.size > budget and current:
            batches.append(current)
            current, load = [], _Loads(reads_once)
            load.add(lesson)
        if load.size > budget:
            raise ValueError(
                f"a rollout with its teacher prompts needs {ceil(load.size)} tokens, above tokens_per_batch = {budget}; "
                f"raise tokens_per_batch or lower sampling.max_completion_length"
            )
        current.append(lesson)
    return [_batch(lessons) for lessons in [*batches, current] if lessons]


def packed_order(samples: Sequence[TrainingSample], *, reads_once: bool = False) -> list[TrainingSample]:
    """The samples that `pack` packs, in the order in which its micro-batches hold them."""
    return [s for lesson in _lessons(samples, reads_once) for s in lesson.samples]


@dataclass(frozen=True, kw_only=True)
class _Lesson:
    """All samples of one rollout."""

    rollout: Rollout
    samples: tuple[TrainingSample, ...]

    @property
    def teacher_prompts(self) -> list[Sequence[int]]:
        """Of all its views. KL to the initial weights reads the student's row a second time, but not in the same pass."""
        return [v.prompt_ids or () for s in self.samples for v in s.views.values()]

    @property
    def longest(self) -> int:
        """Tokens of its longest row."""
        return max(map(len, [self.rollout.prompt_ids, *self.teacher_prompts])) + len(self.rollout.completion_ids)


class _Loads:
    """What the student's pass takes and what those of its teachers take."""

    def __init__(self, reads_once: bool) -> None:
        self.student, self.teachers = Load(reads_once=reads_once), Load(reads_once=reads_once)

    def add(self, lesson: _Lesson) -> None:
        completion = lesson.rollout.completion_ids
        self.student.add(lesson.rollout.prompt_ids, completion)
        for prompt in lesson.teacher_prompts:
            self.teachers.add(prompt, completion)

    @property
    def size(self) -> float:
        return self.student.size + self.teachers.size


def _lessons(samples: Sequence[TrainingSample], by_prompt: bool) -> list[_Lesson]:
    """Longest first; by prompt, those of one behind the longest of them."""
    by_rollout: dict[int, list[TrainingSample]] = {}
    for sample in samples:
        if sample.distill_scale or sample.policy_scale or sample.label_scale or sample.reference_scale:
            by_rollout.setdefault(id(sample.rollout), []).append(sample)
    lessons = [_Lesson(rollout=group[0].rollout, samples=tuple(group)) for group in by_rollout.values()]
    lessons.sort(key=lambda lesson: lesson.longest, reverse=True)
    if not by_prompt:
        return lessons
    families: dict[tuple[int, ...], list[_Lesson]] = {}
    for lesson in lessons:
        families.setdefault(tuple(lesson.rollout.prompt_ids), []).append(lesson)
    return list(chain.from_iterable(families.values()))


def _batch(lessons: Sequence[_Lesson]) -> Batch:
    samples = [s for lesson in lessons for s in lesson.samples]
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
