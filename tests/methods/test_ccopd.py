"""CCOPD: told over turns, the student follows the frozen model's reading of its last reply under the full prompt."""

import pytest
import torch
from scene import Scene, kl
from stepping import request_for, step
from tiny_models import TEMPLATES, full_logp, tiny_policy

from selfdistill.conversations import Conversation, Full, Placeholder, RawSharded
from selfdistill.methods import ccopd
from selfdistill.sampling.transformers import TransformersSampler
from selfdistill.types import Problem

PROBLEMS = [
    Problem(prompt="w1 w2 w3 w4", id="three", columns={"shards": ("w1 w2", "w3", "w4")}, templates=TEMPLATES),
    Problem(prompt="w5 w6", id="two", columns={"shards": ["w5", "w6"]}, templates=TEMPLATES),
]


def scene_of(conversation: Conversation) -> Scene:
    scene = Scene(ccopd(conversation=conversation))
    sampler = TransformersSampler(policy=scene.policy, max_completion_length=9)
    torch.manual_seed(0)
    scene.groups = scene.method.source(request_for(sampler, PROBLEMS, 3))
    return scene


@pytest.mark.parametrize("conversation", [RawSharded(), Placeholder("w30")], ids=str)
def test_equation(conversation):
    """mean over all tokens of the last replies of KL(S(. | sharded chat) || T(. | full prompt)), T the weights before training."""
    scene, values = scene_of(conversation), []
    encode = scene.policy.chat.encode
    for rollout, group in scene.rollouts():
        sharded, full = encode(rollout.prompt), encode([{"role": "user", "content": group.problem.prompt}])
        assert len(sharded) > len(full)
        with scene.readers["teacher"].reading() as frozen:
            teacher = full_logp(frozen, full, rollout.completion_ids).detach()
        student = full_logp(scene.policy, sharded, rollout.completion_ids)
        values += [kl(s, t) for s, t in zip(student, teacher, strict=True)]
    scene.check(torch.stack(values).mean())


def test_the_teacher_is_told_at_once_whatever_the_student_heard():
    scene = scene_of(RawSharded())
    for rollout, group in scene.rollouts():
        (teaching,) = scene.method.context(rollout, group)
        assert teaching.views["teacher"].messages == ({"role": "user", "content": group.problem.prompt},)
        assert len(rollout.prompt) == 2 * len(group.problem.columns["shards"]) - 1


def test_told_at_once_the_student_has_nothing_to_learn():
    """conversation=Full() with untouched weights: both sides read one prompt by one set of weights."""
    policy, method = tiny_policy(), ccopd(conversation=Full())
    groups = method.source(request_for(TransformersSampler(policy=policy, max_completion_length=9), PROBLEMS, 3))
    loss, gradient, _ = step(method, policy, groups)
    assert loss == pytest.approx(0, abs=1e-7) and gradient.abs().max() < 1e-6
