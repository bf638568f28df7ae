"""OPD: policy gradient on the teacher's log-ratio, which is never differentiated."""

import math
from dataclasses import replace

import torch
from scene import Scene

from selfdistill.methods import opd
from selfdistill.teachers import Frozen


def test_equation():
    scene = Scene(replace(opd(), teacher=Frozen()))
    values = []
    for rollout, group in scene.rollouts():
        student, teacher = scene.student(rollout), scene.view(rollout, group, "teacher")
        for t, token in enumerate(rollout.completion_ids):
            logp = student[t][token]
            credit = (teacher[t][token] - logp).detach()
            engine = min(math.exp(float(logp.detach()) - rollout.behavior_logp[t]), 2.0)
            values.append(-engine * (logp - logp.detach()).exp() * credit)
    scene.check(torch.stack(values).mean())
