"""Right rollouts to branches: where the teacher hesitates, its likeliest tokens are forced on the student, which then writes on by itself."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy
import torch
from jaxtyping import Float, Int
from torch import Tensor

from selfdistill.api import Assembled
from selfdistill.diagnostics.readings import TokenReading, token_readings
from selfdistill.diagnostics.viability import Branch
from selfdistill.divergences import ForwardKL
from selfdistill.heads import Head
from selfdistill.packing import batch_of, cut
from selfdistill.reading import room_for
from selfdistill.samples import training_samples
from selfdistill.scoring import CHUNK_ENTRIES
from selfdistill.types import Group, Rollout

CHILDREN, DRAWS, POSITIONS, SURE = 3, 6, 8, 0.9
"""Alternatives a position, continuations each (paper); positions a rollout, the top-1 probability below which a teacher hesitates ([open])."""


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a rollout branches."""

    reading: TokenReading
    index: int
    """Among the trained tokens."""
    margin: float
    tokens: tuple[int, ...]

    @property
    def position(self) -> int:
        return int(self.reading.position[self.index])


def branches(parts: Assembled, groups: Sequence[Group], *, rollouts: int, budget: int) -> list[Branch]:
    """At most `rollouts` right rollouts a group, and POSITIONS places in each, spread over those at which the teacher hesitates.

    [open] Alternatives are the teacher's likeliest tokens that do not end the text, at temperature 1; each text may be as long as a
    rollout of the run. Raises ValueError where no rollout is right.
    """
    right = right_rollouts(groups, rollouts)
    plain = replace(parts.method, loss_temperature=1.0, divergence=ForwardKL())
    readings = token_readings(right, policy=parts.policy, readers=parts.trainer.readers, method=plain, budget=budget)
    best = _best(parts, right, budget)
    places = [place for reading in readings for place in _places(reading, *best[id(reading.rollout)], silent=parts.policy.chat.special_ids)]
    asked = [(place, start) for place in places for start in (*((token,) for token in place.tokens), *[()] * CHILDREN)]
    viable = iter(_viabilities(parts, asked))
    return [_branch(place, [next(viable) for _ in range(2 * CHILDREN)]) for place in places]


def right_rollouts(groups: Sequence[Group], count: int) -> list[Group]:
    """Groups with at most `count` right rollouts each. Raises ValueError where none is right."""
    right = [replace(g, rollouts=[r for r in g.rollouts if r.reward is not None and r.reward >= 1][:count]) for g in groups]
    if not any(g.rollouts for g in right):
        raise ValueError(f"none of the rollouts of {len(groups)} problems is right, so there is nothing to branch from; choose other --steps")
    return [g for g in right if g.rollouts]


def _best(parts: Assembled, groups: Sequence[Group], budget: int) -> dict[int, tuple[Tensor, Tensor]]:
    """Probabilities and ids of the teacher's likeliest tokens at each trained token, by rollout; of several teachers, the first."""
    taught = replace(parts.method, distill_coef=1.0, policy_coef=0.0, label_coef=0.0, reference_coef=0.0)
    every = [s for s in training_samples(groups, taught, encode=parts.policy.chat.encode) if s.views]
    samples = list({id(s.rollout): s for s in reversed(every)}.values())
    width = min(CHILDREN + len(parts.policy.chat.special_ids), parts.policy.vocab_size)

    def likeliest(hidden: Float[Tensor, "tokens hidden"], head: Head) -> tuple[Float[Tensor, "tokens best"], Int[Tensor, "tokens best"]]:
        size = max(CHUNK_ENTRIES["cpu"] // head.vocab_size, 1)
        tops = [head(part).softmax(-1).topk(width) for part in hidden.split(size)]
        return torch.cat([top.values for top in tops]), torch.cat([top.indices for top in tops])

    found: dict[int, tuple[Tensor, Tensor]] = {}
    for part in cut(samples, budget, room_for(parts.policy, parts.trainer.readers)):
        batch = batch_of(part)
        with parts.trainer.readers[batch.weights["teacher"]].reading() as teacher:
            columns = teacher(likeliest, batch.to(parts.policy.device).views["teacher"])
        sizes = [len(s.rollout.positions) for s in part]
        values, ids = (column.cpu().split(sizes) for column in columns)
        found |= {id(s.rollout): (best, token) for s, best, token in zip(part, values, ids, strict=True)}
    return found


def _places(reading: TokenReading, values: Float[Tensor, "tokens best"], ids: Int[Tensor, "tokens best"], *, silent: frozenset[int]) -> list[_Place]:
    unsure = [i for i, top in enumerate(values[:, 0].tolist()) if top < SURE]
    chosen = [unsure[k] for k in numpy.unique(numpy.linspace(0, len(unsure) - 1, POSITIONS).round().astype(int))] if unsure else []
    found = []
    for i in chosen:
        tokens = tuple(token for token in ids[i].tolist() if token not in silent)[:CHILDREN]
        found.append(_Place(reading=reading, index=i, margin=float(values[i, 0] - values[i, 1]), tokens=tokens))
    return [place for place in found if len(place.tokens) == CHILDREN]


def _viabilities(parts: Assembled, asked: Sequence[tuple[_Place, tuple[int, ...]]]) -> list[float]:
    """Share of right texts among DRAWS that begin with the rollout up to the place and the given tokens."""
    limit = parts.settings.sampling.max_completion_length
    of_length: dict[int, list[int]] = defaultdict(list)
    for i, (place, start) in enumerate(asked):
        of_length[place.position + len(start)].append(i)
    found = [0.0] * len(asked)
    for length, members in sorted(of_length.items()):
        # a rollout that fills the limit leaves room for one token
        sampler = parts.sampler.decoding(temperature=parts.settings.sampling.temperature, max_completion_length=max(limit - length, 1))
        begun = [(i, asked[i][0], [*asked[i][0].reading.rollout.completion_ids[: asked[i][0].position], *asked[i][1]]) for i in members for _ in range(DRAWS)]
        written = sampler.complete([[*place.reading.rollout.prompt_ids, *prefix] for _, place, prefix in begun])
        texts = [_whole(place, prefix, rollout, parts) for (_, place, prefix), rollout in zip(begun, written, strict=True)]
        parts.trainer.grade(texts)
        for (i, _, _), text in zip(begun, texts, strict=True):
            found[i] += float((text.rollouts[0].reward or 0) >= 1) / DRAWS
    return found


def _whole(place: _Place, prefix: list[int], written: Rollout, parts: Assembled) -> Group:
    ids = prefix + written.completion_ids
    rollout = replace(written, prompt_ids=place.reading.rollout.prompt_ids, completion_ids=ids, text=parts.policy.chat.decode(ids))
    return Group(problem=place.reading.group.problem, rollouts=[rollout])


def _branch(place: _Place, viable: Sequence[float]) -> Branch:
    reading, i = place.reading, place.index
    length = len(reading.rollout.completion_ids)
    return Branch(
        problem=reading.problem,
        position=(place.position + 0.5) / length,
        remaining=length - place.position,
        teacher_entropy=float(reading.target_entropy[i]),
        margin=place.margin,
        student_entropy=float(reading.entropy[i]),
        kl=float(reading.divergence[i]),
        draws=DRAWS,
        forced=tuple(viable[:CHILDREN]),
        unforced=tuple(viable[CHILDREN:]),
    )
