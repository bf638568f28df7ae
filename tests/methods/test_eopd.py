"""EOPD adds a forward KL where the teacher is unsure; entropy_opd weighs a reverse KL by how sure it is."""

import math
from dataclasses import replace

import pytest
import torch
from scene import Scene, kl

from selfdistill.methods import entropy_opd, eopd, opd
from selfdistill.teachers import Frozen


def entropy(logp: torch.Tensor) -> float:
    return -float((logp.exp() * logp).sum())


@pytest.mark.parametrize("threshold", [0.8, 3.0])
def test_eopd_equation(threshold):
    """Policy gradient on Delta_t over all tokens, plus the teacher's top 16 renormalised against the whole student where H(T) is high."""
    scene = Scene(replace(eopd(threshold=threshold), teacher=Frozen()))
    values, gates = [], []
    for rollout, group in scene.rollouts():
        student, teacher = scene.student(rollout), scene.view(rollout, group, "teacher").detach()
        for t, token in enumerate(rollout.completion_ids):
            logp = student[t][token]
            engine = min(math.exp(float(logp.detach()) - rollout.behavior_logp[t]), 2.0)
            value = -engine * (logp - logp.detach()).exp() * (teacher[t][token] - logp).detach()
            gates.append(entropy(teacher[t]) > threshold)
            if gates[-1]:
                top = teacher[t].topk(16).indices
                kept = teacher[t][top] - teacher[t][top].logsumexp(0)
                value = value + sum(kept[i].exp() * (kept[i] - student[t][v]) for i, v in enumerate(top))
            values.append(value)
    assert threshold < 1 or 0 < sum(gates) < len(gates), "the gate must matter"
    scene.check(torch.stack(values).mean())


def test_eopd_is_opd_where_the_teacher_is_always_sure():
    sure, plain = Scene(replace(eopd(threshold=100.0), teacher=Frozen())), Scene(replace(opd(), teacher=Frozen()))
    (loss, gradient, _), (loss_opd, gradient_opd, _) = sure.found(), plain.found()
    assert loss == pytest.approx(loss_opd, abs=1e-6)
    torch.testing.assert_close(gradient, gradient_opd)


def test_entropy_opd_equation():
    scene = Scene(replace(entropy_opd(scale=2.0), teacher=Frozen()))
    values = []
    for rollout, group in scene.rollouts():
        student, teacher = scene.student(rollout), scene.view(rollout, group, "teacher").detach()
        values += [math.exp(-entropy(teacher[t]) / 2.0) * kl(student[t], teacher[t]) for t in range(len(rollout.completion_ids))]
    scene.check(torch.stack(values).mean())
