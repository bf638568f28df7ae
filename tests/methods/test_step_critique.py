"""Step-aligned critique: the frozen teacher reads this very rollout, mended from its first error on."""

import math
from dataclasses import replace

import pytest
import torch
from scene import Scene
from stepping import prepared, tools_of

from selfdistill.critics import TaskChecker
from selfdistill.divergences import ForwardKL
from selfdistill.methods import opsd, shuffled_context, step_critique


@pytest.mark.parametrize(("clip", "temperature"), [(math.inf, 1.0), (0.05, 1.1)])
def test_equation(clip, temperature):
    """mean_t KL(T_0(. | q, critique, y_<t) || S(. | q, y_<t)) over all tokens of the step, by itself and under OPSD's clip and temperature."""
    scene = Scene(step_critique(critic=TaskChecker(), clip=clip, loss_temperature=temperature))
    prepared(scene.method, scene.groups, scene.policy)
    terms = []
    for rollout, group in scene.rollouts():
        student, teacher = scene.student(rollout, temperature), scene.view(rollout, group, "teacher", temperature).detach()
        terms += [(t.exp() * (t - s)).clamp(max=clip).sum() for s, t in zip(student, teacher, strict=True)]
    scene.check(torch.stack(terms).mean())


def test_each_rollout_is_shown_its_own_critique_and_only_that():
    scene = Scene(step_critique(critic=TaskChecker()))
    prepared(scene.method, scene.groups, scene.policy)
    for rollout, group in scene.rollouts():
        ((said,),) = [t.views["teacher"].messages for t in scene.method.context(rollout, group)]
        critique = scene_task(scene).critique(group.problem, rollout.text)
        assert said["content"] == f"{group.problem.prompt} w48 {critique}"


def scene_task(scene: Scene):
    return tools_of(scene.policy, scene.method).task


def test_a_rollout_without_a_critique_is_untaught_and_costs_nothing():
    scene = Scene(step_critique(critic=lambda pairs, tools: ["w3" if i % 2 else None for i in range(len(pairs))]))
    prepared(scene.method, scene.groups, scene.policy)
    taught = [bool(scene.method.context(r, g)) for r, g in scene.rollouts()]
    assert taught == [False, True] * 4
    assert sum(len(b.student.lengths) for b in scene.batches()) == 4


def test_the_shuffled_control_reads_another_problems_critique():
    scene = Scene(shuffled_context(step_critique(critic=TaskChecker())))
    prepared(scene.method, scene.groups, scene.policy)
    own, other = scene.groups
    shown = scene.method.context(own.rollouts[0], own)[0].views["teacher"].messages[-1]["content"]
    assert shown == f"{own.problem.prompt} w48 {other.rollouts[0].feedback['critique']}"


def test_where_the_paper_is_silent_it_is_opsd():
    written = step_critique(clip=0.2)
    assert replace(written, feedback=(), context=opsd().context) == opsd(clip=0.2)
    assert step_critique(clip=math.inf, loss_temperature=1.0).divergence == ForwardKL()
