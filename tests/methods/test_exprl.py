"""ExpRL: the judge's score as outcome reward, and its changes from step to step as credit of the step's tokens."""

import math
from dataclasses import dataclass

import pytest
import torch
from scene import Scene, advantages, kl, policy_term, with_proximal
from stepping import JUDGED, prepared, tools_of
from tiny_models import tiny_policy
from torch import Tensor

from selfdistill.judges import StepJudge
from selfdistill.methods import exprl, exprl_process
from selfdistill.packing import pack
from selfdistill.samples import training_samples
from selfdistill.types import Rollout


@dataclass(frozen=True)
class Scripted:
    """A judge whose scores are written down, in the order in which attempts come."""

    scores: tuple[float | None, ...]

    def __call__(self, attempts, tools):
        assert len(attempts) == len(self.scores)
        return list(self.scores)


def held(rollout: Rollout, upto: int | None = None) -> float:
    """The share of the first words that are even: what the test's task holds against a completion."""
    words = rollout.text.split()[:upto]
    return sum(int(w[1:]) % 2 == 0 for w in words) / len(words)


def near_start(scene: Scene, rollout: Rollout, t: int) -> Tensor:
    return kl(scene.student(rollout)[t], scene.initial(rollout)[t])


def test_outcome_equation():
    """(1/G) sum_i (1/|o_i|) sum_t [-min(rho A, clip(rho, .8, 1.28) A) + coef KL(pi || pi_0)], A of the judge's scores over the group."""
    scene = Scene(exprl(judge=StepJudge(), reference_coef=0.3))
    prepared(scene.method, scene.groups, scene.policy)
    per_rollout = []
    for group in scene.groups:
        assert [r.reward for r in group.rollouts] == [held(r) for r in group.rollouts]
        for rollout, advantage in zip(group.rollouts, advantages(group), strict=True):
            logp, length = scene.student(rollout), len(rollout.completion_ids)
            policy = [policy_term(logp[t, y], rollout.behavior_logp[t], advantage, high=0.28) for t, y in enumerate(rollout.completion_ids)]
            per_rollout.append(sum(0.3 * near_start(scene, rollout, t) - policy[t] for t in range(length)) / length)
    scene.check(torch.stack(per_rollout).mean())


def test_process_equation():
    """A_t = s_t - s_(t-1), A_1 = s_1 - s_T, one word a step; no group in it, no normalisation; clip .2 / .26."""
    scene = Scene(exprl_process(**JUDGED["exprl_process"], reference_coef=0.3))
    prepared(scene.method, scene.groups, scene.policy)
    per_rollout = []
    for rollout, _ in scene.rollouts():
        logp, length = scene.student(rollout), len(rollout.completion_ids)
        total = 0
        for t, y in enumerate(rollout.completion_ids):
            before = held(rollout) if t == 0 else held(rollout, t)
            credit = 0.0 if length == 1 else held(rollout, t + 1) - before
            total = total + 0.3 * near_start(scene, rollout, t) - policy_term(logp[t, y], rollout.behavior_logp[t], credit, high=0.26)
        per_rollout.append(total / length)
    scene.check(torch.stack(per_rollout).mean())


@pytest.mark.parametrize("make, high", [(exprl, 0.28), (exprl_process, 0.26)])
def test_later_updates_clip_against_the_first(make, high):
    scene = Scene(make(**JUDGED[make.__name__], reference_coef=0.0))
    prepared(scene.method, scene.groups, scene.policy)
    proximal = {tuple(r.completion_ids): [float(x) - 0.4 * (-1) ** t for t, x in enumerate(r.behavior_logp)] for r, _ in scene.rollouts()}
    per_rollout = []
    for group in scene.groups:
        for rollout, advantage in zip(group.rollouts, advantages(group), strict=True):
            length, logp, old = len(rollout.completion_ids), scene.student(rollout), proximal[tuple(rollout.completion_ids)]
            credits = [advantage] * length if make is exprl else rollout.annotations["step_delta"]
            mine = [policy_term(logp[t, y], rollout.behavior_logp[t], credits[t], high=high, proximal=old[t]) for t, y in enumerate(rollout.completion_ids)]
            per_rollout.append(-torch.stack(mine).mean())
    (batch,) = scene.batches()
    sums = scene.check(torch.stack(per_rollout).mean(), [with_proximal(batch, proximal)])
    assert sums["clipped"] > 0


def annotated(method, *, scores=None, truncated=()) -> Scene:
    scene = Scene(method)
    for rollout, _ in scene.rollouts():
        rollout.truncated = rollout.index in truncated
    prepared(scene.method, scene.groups, scene.policy)
    return scene


def test_credits_of_a_rollout_sum_to_zero_over_its_steps_and_tokens_share_them():
    method = exprl_process(judge=StepJudge(), steps=JUDGED["exprl_process"]["steps"])
    for rollout, _ in annotated(method).rollouts():
        credit = rollout.annotations["step_delta"]
        assert len(credit) == len(rollout.completion_ids) and math.isclose(sum(credit), 0, abs_tol=1e-9)
    assert any(any(r.annotations["step_delta"]) for r, _ in annotated(method).rollouts())


def test_over_length_is_no_reward_and_no_credit_and_is_not_judged():
    for rollout, _ in annotated(exprl(judge=StepJudge()), truncated=(0, 2)).rollouts():
        assert rollout.reward == (0.0 if rollout.index in (0, 2) else held(rollout))
    scene = annotated(exprl_process(**JUDGED["exprl_process"], reference_coef=0.0), truncated=(0, 1, 2, 3))
    assert all(not any(r.annotations["step_delta"]) for r, _ in scene.rollouts())
    assert scene.batches() == [], "no credit, no pass"
    asked = []
    annotated(exprl(judge=lambda attempts, tools: asked.extend(attempts) or [1.0] * len(attempts)), truncated=(0,))
    assert len(asked) == 6 and all(a.rollout.index for a in asked)


def test_one_step_has_no_credit_and_a_run_of_such_is_told(caplog):
    scene = annotated(exprl_process(judge=StepJudge(), reference_coef=0.0))
    assert scene.batches() == [] and "`steps`" in caplog.text


def test_an_unparsable_judgement_takes_the_rollout_out_of_loss_and_counts():
    outcome = annotated(exprl(judge=Scripted((None, 1.0, 0.0, 0.5, None, None, None, None))))
    assert [r.reward for r, _ in outcome.rollouts()] == [None, 1.0, 0.0, 0.5, None, None, None, None]
    assert len(training_samples(outcome.groups, outcome.method, encode=outcome.policy.chat.encode)) == 3

    class Unsure(StepJudge):
        def __call__(self, attempts, tools):
            return [None if a.rollout.index == 2 and a.ends else s for a, s in zip(attempts, super().__call__(attempts, tools), strict=True)]

    process = annotated(exprl_process(judge=Unsure(), steps=JUDGED["exprl_process"]["steps"]))
    assert [r.positions == () for r in process.groups[0].rollouts] == [False, False, True, False]
    samples = training_samples(process.groups, process.method, encode=process.policy.chat.encode)
    assert {s.rollout.index for s in samples} == {0, 1, 3}
    assert sum(s.reference_scale * len(s.rollout.completion_ids) for s in samples) == pytest.approx(0.001)


def test_only_rollouts_with_credit_are_packed_without_the_reference_term():
    """A rollout whose annotation is zero everywhere, or that has none, costs no pass."""
    scene = annotated(exprl_process(**JUDGED["exprl_process"], reference_coef=0.0))
    group = scene.groups[0]
    group.rollouts[0].annotations = {}
    group.rollouts[2].annotations = {"step_delta": (0.0,) * len(group.rollouts[2].completion_ids)}
    packed = sum(len(b.student.lengths) for b in pack(training_samples([group], scene.method, encode=scene.policy.chat.encode), 10**6))
    assert packed == 1, "of the others, the one of a single word has no credit either"


def test_the_policy_never_sees_the_reference_and_the_verifiers_reward_is_left_to_the_process():
    scene = annotated(exprl_process(**JUDGED["exprl_process"]))
    assert not scene.method.reads_teacher and all(r.reward == float(r.index % 2) for r, _ in scene.rollouts())
    assert tools_of(tiny_policy(), exprl()).readers.keys() == {"student", "initial"}
