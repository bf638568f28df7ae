"""SFT: cross-entropy on the reference solution, through the same step as everything else."""

import torch
from scene import Scene
from stepping import request_for

from selfdistill.methods import sft
from selfdistill.sampling.transformers import TransformersSampler


def test_equation():
    scene = Scene(sft())
    sampler = TransformersSampler(policy=scene.policy, max_completion_length=16)
    scene.groups = scene.method.source(request_for(sampler, [g.problem for g in scene.groups], 4))
    values = []
    for rollout, group in scene.rollouts():
        assert rollout.text == group.problem.solution and rollout.completion_ids[-1] == scene.policy.tokenizer.eos_token_id
        student = scene.student(rollout)
        values += [-student[t][y] for t, y in enumerate(rollout.completion_ids)]
    scene.check(torch.stack(values).mean())
