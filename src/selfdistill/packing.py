"""Training samples to micro-batches of flat token rows. After this module nobody sees text, prompts or padding.

Samples without any scale cost nothing: they are not packed. Samples of one rollout stay together and share its student row.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from math import ceil
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

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
        completion = _array(self.rollout.completion_ids)
        return [(weights, np.concatenate([_array(prompt), completion])) for weights, prompt in [(None, self.rollout.prompt_ids), *views]]

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
    lengths = [len(_places(s.rollout)) for s in samples]
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
        student_token=_student_tokens(lessons),
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
    rollouts = [s.rollout for s in samples]
    names = sorted({name for r in rollouts for name in r.annotations})
    token = _flat([_array(r.completion_ids)[_places(r)] for r in rollouts], torch.long)
    return {
        "token": token,
        "position": _flat([_places(r) for r in rollouts], torch.long),
        "behavior_logp": _flat([np.asarray(r.behavior_logp)[_places(r)] for r in rollouts], torch.float32),
        "annotations": {name: _flat([_annotated(r, name) for r in rollouts], torch.float32) for name in names},
    } | _label_columns(rollouts, token)


def _places(rollout: Rollout) -> Int[np.ndarray, " trained"]:
    """`rollout.positions`."""
    return np.arange(len(rollout.completion_ids)) if rollout.trained is None else _array(rollout.trained)


def _annotated(rollout: Rollout, name: str) -> Float[np.ndarray, " trained"]:
    """0 where a rollout has none of that name."""
    noted = rollout.annotations.get(name)
    places = _places(rollout)
    return np.zeros(len(places)) if noted is None else np.asarray(noted)[places]


def _label_columns(rollouts: Sequence[Rollout], token: Int[torch.Tensor, " tokens"]) -> dict[str, Any]:
    """The label of every trained token: probabilities by token id, in rows as wide as the widest label."""
    if all(r.labels is None for r in rollouts):
        return {"label_token": token[:, None].clone(), "label_share": torch.ones(len(token), 1)}
    rows = [((r.completion_ids[t], 1.0),) if r.labels is None else tuple(r.labels[t].items()) for r in rollouts for t in r.positions]
    width = max(1, *map(len, rows))
    padded = [row + ((0, 0.0),) * (width - len(row)) for row in rows]
    return {
        "label_token": _ints(i for row in padded for i, _ in row).view(-1, width),
        "label_share": _floats(p for row in padded for _, p in row).view(-1, width),
    }


def _student_tokens(lessons: Sequence[_Lesson]) -> Int[torch.Tensor, " tokens"]:
    """For every sample's tokens, their place among the tokens of the unique rollouts."""
    index, start = [], 0
    for lesson in lessons:
        end = start + len(_places(lesson.rollout))
        index += [np.arange(start, end)] * len(lesson.samples)
        start = end
    return _flat(index, torch.long)


def _lay(sequences: Iterable[tuple[Sequence[int], Rollout]]) -> Packed:
    """Prompts and completions end to end; the state before a completion token predicts it."""
    rows = list(sequences)
    lengths = [len(prompt) + len(rollout.completion_ids) for prompt, rollout in rows]
    starts = [0, *accumulate(lengths)]
    return Packed(
        input_ids=_flat([_array(ids) for prompt, rollout in rows for ids in (prompt, rollout.completion_ids)], torch.long),
        positions=_flat([np.arange(n) for n in lengths], torch.long),
        lengths=tuple(lengths),
        predicts=_flat([start + len(prompt) - 1 + _places(rollout) for start, (prompt, rollout) in zip(starts, rows, strict=False)], torch.long),
    )


def _common_temperature(samples: Sequence[TrainingSample]) -> float:
    temperatures = {s.rollout.temperature for s in samples}
    assert len(temperatures) == 1, f"one step samples at one temperature, not {temperatures}"
    return temperatures.pop()


def _array(ids: Sequence[int]) -> Int[np.ndarray, " ids"]:
    return np.asarray(ids, dtype=np.int64)


def _flat(parts: Sequence[np.ndarray], dtype: torch.dtype) -> torch.Tensor:
    """Arrays end to end."""
    return torch.from_numpy(np.concatenate(parts)).to(dtype) if parts else torch.empty(0, dtype=dtype)


def _ints(values: Iterable[int]) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.long)


def _floats(values: Iterable[float]) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.float32)
