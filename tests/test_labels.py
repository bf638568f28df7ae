"""The label term: a token as its own label, soft labels, and further texts that a labels part brings in."""

from dataclasses import replace

import pytest
import torch
from scene import Scene
from tiny_models import full_logp

from selfdistill.labels import WindowMean
from selfdistill.methods import grpo, opsd, sft
from selfdistill.samples import training_samples
from selfdistill.types import Group, Rollout

SOFT = ({7: 0.5, 9: 0.25, 11: 0.25}, {}, {8: 1.0})
"""A spread label, none at all, and a certain one."""


def with_soft_labels(scene: Scene) -> None:
    for i, (rollout, _) in enumerate(scene.rollouts()):
        if i % 2 == 0:
            rollout.labels = tuple(SOFT[t % 3] for t in range(len(rollout.completion_ids)))


def test_soft_labels_are_a_divergence_from_the_student_to_them():
    """mean over the step's tokens of KL(q_t || S_t), -log S(y_t) where a rollout has no labels, 0 where a label is empty."""
    scene = Scene(sft())
    with_soft_labels(scene)
    total, tokens = torch.zeros(()), 0
    for rollout, _ in scene.rollouts():
        logp = scene.student(rollout)
        for t, token in enumerate(rollout.completion_ids):
            label = rollout.labels[t] if rollout.labels else {token: 1.0}
            for v, p in label.items():
                total = total + p * (torch.tensor(p).log() - logp[t, v])
            tokens += 1
    scene.check(total / tokens)


def test_labels_follow_the_trained_positions():
    scene = Scene(sft())
    with_soft_labels(scene)
    for rollout, _ in scene.rollouts():
        rollout.trained = tuple(range(0, len(rollout.completion_ids), 2))
    (batch,) = scene.batches()
    soft = [(r, t) for r, _ in scene.rollouts() if r.labels for t in r.positions]
    expected = sorted(sorted(r.labels[t].items()) for r, t in soft)
    mass = [
        sorted((v, p) for v, p in zip(row, shares, strict=True) if p)
        for row, shares in zip(batch.label_token.tolist(), batch.label_share.tolist(), strict=True)
    ]
    hard = sum(len(r.positions) for r, _ in scene.rollouts() if not r.labels)
    assert batch.label_token.shape == (len(soft) + hard, 3) and all(row in mass for row in expected)
    assert sum(len(row) == 1 and row[0][1] == 1.0 for row in mass) >= hard


def test_without_soft_labels_one_column_holds_the_tokens():
    (batch,) = Scene(opsd()).batches()
    assert torch.equal(batch.label_token, batch.token[:, None]) and torch.equal(batch.label_share, torch.ones(len(batch.token), 1))


def test_a_labels_part_replaces_the_rollouts_in_the_label_term_alone():
    """Windows are averaged by themselves; the policy term, its counts and its advantages are those of a step without them."""
    method = replace(grpo(), label_coef=0.3, labels=WindowMean(5))
    scene = Scene(method)
    first, second = scene.groups[0].rollouts[0], scene.groups[1].rollouts[2]
    for rollout, ids in ((first, [7, 8, 9, 10, 11]), (first, [12]), (second, [13, 14])):
        rollout.windows.append(Rollout(prompt_ids=[*rollout.prompt_ids, 6], completion_ids=ids, behavior_logp=[-9.0] * len(ids), text=""))
    plain = Scene(grpo())
    wanted, gradient, wanted_sums = plain.found()
    expected = torch.zeros(())
    for window in first.windows + second.windows:
        logp = full_logp(scene.policy, window.prompt_ids, window.completion_ids)
        expected = expected - 0.3 * sum(logp[t, v] for t, v in enumerate(window.completion_ids)) / 5 / 3
    scene.policy.zero_grad()
    expected.backward()
    by_windows = torch.cat([p.grad.flatten() for p in scene.policy.parameters()])
    for budget in (10**6, 100):
        loss, both, sums = scene.found(scene.batches(budget))
        assert loss == pytest.approx(wanted + float(expected.detach()), abs=2e-6)
        torch.testing.assert_close(both, gradient + by_windows, atol=3e-6, rtol=1e-3)
        assert {n: v for n, v in sums.items() if n != "loss_label"} == pytest.approx(wanted_sums, abs=1e-4)


def test_a_labels_part_without_texts_or_coefficient_adds_nothing():
    scene = Scene(grpo())
    encode = scene.policy.chat.encode
    before = training_samples(scene.groups, scene.method, encode=encode)
    assert training_samples(scene.groups, replace(scene.method, label_coef=1.0, labels=WindowMean(5)), encode=encode) == before
    scene.groups[0].rollouts[0].windows.append(Rollout(prompt_ids=[1], completion_ids=[7], behavior_logp=[0.0], text=""))
    assert training_samples(scene.groups, replace(scene.method, labels=WindowMean(5)), encode=encode) == before


def test_every_window_counts_the_same():
    windows = [Rollout(prompt_ids=[1], completion_ids=[7] * n, behavior_logp=[0.0] * n, text="") for n in (5, 2, 1)]
    scene = Scene(grpo())
    groups = [Group(problem=g.problem, rollouts=[replace(r, windows=[]) for r in g.rollouts]) for g in scene.groups]
    groups[0].rollouts[1].windows.append(windows[0])
    groups[1].rollouts[0].windows += windows[1:]
    assert [(w, factor) for w, factor in WindowMean(5)(groups)] == [(w, 1 / 15) for w in windows]
