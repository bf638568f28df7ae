"""Step-aligned critique: the frozen teacher reads this very rollout, mended from its first error on."""

from dataclasses import replace

import torch
from scene import Scene, kl
from stepping import prepared, tools_of

from selfdistill.critics import TaskChecker
from selfdistill.method import diff
from selfdistill.methods import opsd, shuffled_context, step_critique


def test_equation():
    """mean_t KL(T_0(. | q, critique, y_<t) || S(. | q, y_<t)) over all tokens of the step, no clip, temperature 1."""
    scene = Scene(step_critique(critic=TaskChecker()))
    prepared(scene.method, scene.groups, scene.policy)
    terms = []
    for rollout, group in scene.rollouts():
        student, teacher = scene.student(rollout), scene.view(rollout, group, "teacher").detach()
        terms += [kl(teacher[t], student[t]) for t in range(len(rollout.completion_ids))]
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


def test_it_differs_from_opsd_in_what_is_read_and_in_the_clip():
    assert set(diff(step_critique(), replace(opsd(), loss_temperature=1.0))) == {"feedback", "context", "divergence"}
