"""One student pass for K teachers: products counted by torch over a whole `learn`, and not a second measured."""

from dataclasses import dataclass
from math import prod

import pytest
import torch
from stepping import ScriptedSampler, Words
from tiny_models import tiny_groups, tiny_policy, tiny_problems
from torch.utils.flop_counter import FlopCounterMode

from selfdistill.config import make_settings
from selfdistill.divergences import ForwardKL
from selfdistill.method import Method
from selfdistill.targets import PMI, TeacherDistribution
from selfdistill.teachers import Live
from selfdistill.trainer import Trainer
from selfdistill.types import Teaching, View

PROMPT, COMPLETION, VOCABULARY, WIDTH = 40, 7, 56, 32
LAYERS, HEADS, KEY_HEADS, HEAD_WIDTH, INNER = 2, 4, 2, 8, 48


@dataclass(frozen=True)
class Teachers:
    """K teachers, each with a prompt of its own under every role."""

    count: int
    roles: tuple[str, ...]

    def __call__(self, rollout, group):
        return [Teaching(views={r: View(messages=(), prompt_ids=(6 + k + i,) * PROMPT) for i, r in enumerate(self.roles)}) for k in range(self.count)]


def layers(length: int, *, behind: int = 0) -> int:
    """FLOPs of a row through the layers, behind tokens that were read before: q, k, v, o, the three of the gated MLP, and scores and values over all pairs."""
    attention = 2 * HEADS * HEAD_WIDTH + 2 * KEY_HEADS * HEAD_WIDTH
    return LAYERS * (2 * length * WIDTH * (attention + 3 * INNER) + 4 * HEADS * HEAD_WIDTH * length * (behind + length))


def head(tokens: int) -> int:
    return 2 * tokens * WIDTH * VOCABULARY


def learned(count: int, roles: tuple[str, ...], *, shares: bool = False) -> tuple[int, int]:
    """(FLOPs of one `learn`, rollouts): rows of equal length, so that nothing is padded."""
    policy = tiny_policy()
    policy.shares_prefixes = shares
    policy.base.set_attn_implementation("eager")
    groups = tiny_groups(policy, problems=1)
    for rollout in groups[0].rollouts:
        rollout.completion_ids, rollout.behavior_logp = [6 + rollout.index] * COMPLETION, [-1.0] * COMPLETION
    target = PMI() if len(roles) > 1 else TeacherDistribution()
    method = Method(context=Teachers(count, roles), teacher=Live(), target=target, divergence=ForwardKL())
    trainer = Trainer(
        policy=policy,
        method=method,
        problems=tiny_problems(),
        sampler=ScriptedSampler(),
        grade=lambda groups: None,
        task=Words(),
        settings=make_settings({"steps": 1, "optimizer": {"lr": 1e-4}}, {}),
    )
    # torch's counter knows neither sums in place nor oneDNN
    products = {torch.ops.aten.addmm_: lambda own, a, b, **rest: 2 * a[0] * a[1] * b[1]}
    products[torch.ops.mkldnn._linear_pointwise] = lambda a, b, *rest, **kwargs: 2 * prod(a) * b[0]
    with FlopCounterMode(display=False, custom_mapping=products) as counter:
        trainer.learn(groups)
    return counter.get_total_flops(), len(groups[0].rollouts)


@pytest.mark.parametrize("roles", [("teacher",), ("teacher", "reference", "base")], ids=len)
def test_the_student_is_read_and_multiplied_by_its_head_once_however_many_teach(roles):
    found = {count: learned(count, roles) for count in (1, 2, 4)}
    (one, rollouts) = found[1]
    teacher = rollouts * len(roles) * (layers(PROMPT + COMPLETION) + head(COMPLETION))
    for count, (flops, _) in found.items():
        assert flops - one == (count - 1) * teacher
    prompt = len(tiny_groups(tiny_policy(), problems=1)[0].rollouts[0].prompt_ids)
    # forward, and backward for states and weights
    assert one - teacher == rollouts * 3 * (layers(prompt + COMPLETION) + head(COMPLETION))


def test_a_prompt_is_read_once_for_all_rollouts_by_every_teacher():
    (one, rollouts), (four, _), (whole, _) = (learned(count, ("teacher",), shares=shares) for count, shares in ((1, True), (4, True), (1, False)))
    assert four - one == 3 * (layers(PROMPT) + rollouts * (layers(COMPLETION, behind=PROMPT) + head(COMPLETION)))
    assert one < whole
