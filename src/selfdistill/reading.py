"""A batch through the weights that read it: teacher views without gradient, then the student with, to TokenSignals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import TypeVar

import numpy as np
import torch

from selfdistill.heads import Head
from selfdistill.kernels.fused import Learned, learn
from selfdistill.method import Method
from selfdistill.models import Policy
from selfdistill.packing import Room, batch_of, cut, packed_order
from selfdistill.samples import training_samples
from selfdistill.scoring import Reading, score
from selfdistill.teachers import Frozen, Live, Reader, evaluating
from selfdistill.tools import Scored
from selfdistill.types import Batch, Group, Packed, TokenSignals, TrainingSample, Weights

Readers = Mapping[Weights, Reader]
T = TypeVar("T")


def start_readers(method: Method, policy: Policy, *, offload: bool = False) -> dict[Weights, Reader]:
    """The weights a method's views may name, as they stand at the start of a run.

    pi_0 is read where the method is held near it, and shares the copy of a frozen teacher.
    """
    readers: dict[Weights, Reader] = {"student": Live().start(policy)}
    if method.reads_teacher:
        readers["teacher"] = method.teacher.start(policy, offload=offload)
    if method.reference_coef:
        shared = method.reads_teacher and method.teacher == Frozen()
        readers["initial"] = readers["teacher"] if shared else Frozen().start(policy, offload=offload)
    return readers


def room_for(policy: Policy, readers: Readers) -> Room:
    """What passes over sequences take of `tokens_per_batch`: each weights' own pass, by what its model reads once."""

    def room(weights: Weights | None, sequences: Sequence[np.ndarray]) -> float:
        # a reader of other weights than the student's has a model of its own
        model = policy if weights is None else getattr(readers.get(weights), "teacher", policy)
        return model.room(sequences, policy.device)

    return room


def read(policy: Policy, readers: Readers, method: Method, batch: Batch, *, chunk: int | None = None) -> TokenSignals:
    """Every view under its own weights, all roles of one teacher in one pass; then the student's pass, scored inside its forward."""
    return policy(partial(_apply, score, method, batch, *_read_views(readers, batch), chunk=chunk), batch.student)


def learn_from(policy: Policy, readers: Readers, method: Method, batch: Batch, **sizes: int | None) -> Learned:
    """The same readings, and the loss with its gradient taken inside the student's forward; sizes: `slab` and `block` of `learn`."""
    return policy(partial(_apply, learn, method, batch, *_read_views(readers, batch), **sizes), batch.student)


@torch.no_grad()
def policy_logp(policy: Policy, method: Method, batch: Batch) -> torch.Tensor:
    """log pi(y_t) of every token under the student as it is, without a teacher: what later updates on a batch clip against."""
    return policy(partial(_apply, score, method, batch, {}, None), batch.student).policy_logp


def _apply(
    fn: Callable[..., T],
    method: Method,
    batch: Batch,
    readings: Mapping[str, Reading],
    initial: Reading | None,
    hidden: torch.Tensor,
    head: Head,
    **sizes: int | None,
) -> T:
    return fn(method, batch, hidden=hidden, head=head, readings=readings, initial=initial, **sizes)


def _read_views(readers: Readers, batch: Batch) -> tuple[dict[str, Reading], Reading | None]:
    """Views by role, and pi_0's reading of the student's own prompts where the loss wants it."""
    readings: dict[str, Reading] = {}
    for weights in sorted(set(batch.weights.values())):
        roles = [role for role in batch.views if batch.weights[role] == weights]
        readings |= _read_roles(readers, weights, roles, [batch.views[role] for role in roles])
    return readings, _read_roles(readers, "initial", ["initial"], [batch.student])["initial"] if batch.reads_initial else None


Taught = tuple[TrainingSample, list[torch.Tensor]]
"""A rollout under one of its teachers, and a tensor [trained] for each signal that was asked for."""


def read_taught(
    groups: Sequence[Group],
    names: Sequence[str],
    *,
    policy: Policy,
    readers: Readers,
    method: Method,
    budget: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[int, list[Taught]]:
    """The named TokenSignals of every taught rollout under each of its teachers, without gradient, on the CPU; by the rollout's id, longest first.

    `on_progress` is called with (micro-batches read, all of them) after each.
    """
    samples = [s for s in training_samples(groups, method, encode=policy.chat.encode) if s.views]
    parts, found = cut(samples, budget, room_for(policy, readers)), dict[int, list[torch.Tensor]]()
    with evaluating(policy):
        for i, part in enumerate(parts):
            signals = read(policy, readers, method, batch_of(part).to(policy.device))
            sizes = [len(s.rollout.positions) for s in part]
            columns = [getattr(signals, name).cpu().split(sizes) for name in names]
            found |= {id(sample): list(values) for sample, *values in zip(part, *columns, strict=True)}
            if on_progress:
                on_progress(i + 1, len(parts))
    by_rollout: dict[int, list[Taught]] = {}
    for sample in packed_order(samples):
        by_rollout.setdefault(id(sample.rollout), []).append((sample, found[id(sample)]))
    return by_rollout


def score_groups(groups: Sequence[Group], *, policy: Policy, readers: Readers, method: Method, budget: int) -> list[Scored]:
    """The divergence that the step's loss would see on every taught rollout, longest first: what a feedback stage may choose tokens by."""
    alone = replace(method, distill_coef=1.0, label_coef=0.0, reference_coef=0.0)
    taught = read_taught(groups, ("divergence",), policy=policy, readers=readers, method=alone, budget=budget)
    return [_averaged(teachers) for teachers in taught.values()]


def _averaged(teachers: Sequence[Taught]) -> Scored:
    scales = [sample.distill_scale for sample, _ in teachers]
    first, (nothing,) = teachers[scales.index(max(scales))]
    mean = sum((scale / sum(scales) * values for scale, (_, (values,)) in zip(scales, teachers, strict=True)), torch.zeros_like(nothing))
    return Scored(rollout=first.rollout, views=first.views, divergence=mean)


def _read_roles(readers: Readers, weights: Weights, roles: Sequence[str], views: Sequence[Packed]) -> dict[str, Reading]:
    if weights not in readers:
        raise ValueError(f"a view asks for the {weights!r} weights, which this run did not keep; it has {sorted(readers)}")
    with readers[weights].reading() as policy:
        # detached heads stay usable after an offloaded teacher has left the device
        hidden, head = policy(lambda hidden, head: (hidden, head.detach()), join(views))
    parts = hidden.split([len(view.predicts) for view in views])
    return {role: Reading(hidden=part, head=head) for role, part in zip(roles, parts, strict=True)}


def join(views: Sequence[Packed]) -> Packed:
    """Several packed views as one, end to end."""
    if len(views) == 1:
        return views[0]
    starts = [0, *accumulate(sum(v.lengths) for v in views[:-1])]
    return Packed(
        input_ids=torch.cat([v.input_ids for v in views]),
        positions=torch.cat([v.positions for v in views]),
        lengths=tuple(n for v in views for n in v.lengths),
        predicts=torch.cat([v.predicts + start for v, start in zip(views, starts, strict=True)]),
        kept_ids=torch.cat([v.host_ids for v in views]),
    )
