"""Flat rows: nothing is cut, padded or mixed up, whatever the lengths, and rollouts keep together."""

from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from tiny_models import tiny_groups, tiny_policy

from selfdistill.layouts import pass_tokens, row_groups, shared_tree
from selfdistill.methods import hsd, opsd, purified_opsd, sdpo_trust_region
from selfdistill.packing import pack, packed_order
from selfdistill.reading import join
from selfdistill.samples import training_samples
from selfdistill.types import Rollout, Teaching, TrainingSample, View


def rollout(ids: list[int], *, prompt: tuple[int, ...] = (90,), **given) -> Rollout:
    return Rollout(prompt_ids=list(prompt), completion_ids=ids, behavior_logp=[-float(i) for i in ids], text="", **given)


def sample(of: Rollout, *prompts: tuple[int, ...], **scales: float) -> TrainingSample:
    views = {f"role{i}": View(messages=(), prompt_ids=p) for i, p in enumerate(prompts)}
    return TrainingSample(rollout=of, views=views, advantage=0.5, **(scales or {"distill_scale": 1.0}))


def sequences(packed) -> list[list[int]]:
    return [part.tolist() for part in packed.input_ids.split(packed.lengths)]


def test_every_view_lies_end_to_end_and_the_state_before_a_token_predicts_it():
    one, other = rollout([1, 2, 3]), rollout([4], prompt=(91, 92))
    (batch,) = pack([sample(one, (70, 71)), sample(other, (72,))], 100)
    assert sequences(batch.student) == [[90, 1, 2, 3], [91, 92, 4]]
    assert sequences(batch.views["role0"]) == [[70, 71, 1, 2, 3], [72, 4]]
    assert batch.views["role0"].positions.tolist() == [0, 1, 2, 3, 4, 0, 1]
    for packed in (batch.student, *batch.views.values()):
        following = packed.input_ids[packed.predicts + 1]
        assert following.tolist() == batch.token.tolist() == [1, 2, 3, 4]
    assert batch.behavior_logp.tolist() == [-1.0, -2.0, -3.0, -4.0]
    assert batch.sample.tolist() == [0, 0, 0, 1] and batch.position.tolist() == [0, 1, 2, 0]


def test_trained_positions_select_tokens_everywhere():
    part = rollout([5, 6, 7, 8], trained=(1, 3), annotations={"delta": (0.1, 0.2, 0.3, 0.4)})
    plain = rollout([9])
    (batch,) = pack([sample(part, (70,)), sample(plain, (71,))], 100)
    assert batch.token.tolist() == [6, 8, 9] and batch.position.tolist() == [1, 3, 0]
    assert batch.student.input_ids[batch.student.predicts + 1].tolist() == [6, 8, 9]
    assert batch.length.tolist() == [4, 1] and batch.trained.tolist() == [2, 1]
    assert batch.annotations["delta"].tolist() == pytest.approx([0.2, 0.4, 0.0])
    assert sequences(batch.student)[0] == [90, 5, 6, 7, 8], "untrained tokens are still read"


def test_several_teachers_share_one_student_row():
    twice, once = rollout([1, 2]), rollout([3])
    (batch,) = pack([sample(twice, (70,)), sample(once, (72,)), sample(twice, (71,))], 100)
    assert sequences(batch.student) == [[90, 1, 2], [90, 3]]
    assert sequences(batch.views["role0"]) == [[70, 1, 2], [71, 1, 2], [72, 3]]
    assert batch.student_token.tolist() == [0, 1, 0, 1, 2] and batch.token.tolist() == [1, 2, 1, 2, 3]


def test_equal_rollouts_are_still_two():
    """Two rollouts that happen to say the same are two rows: identity, not equality."""
    (batch,) = pack([sample(rollout([1, 2]), (70,)), sample(rollout([1, 2]), (70,))], 100)
    assert len(batch.student.lengths) == 2 and batch.student_token.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("make", [opsd, hsd, purified_opsd, sdpo_trust_region], ids=lambda f: f.__name__)
@pytest.mark.parametrize("budget", [140, 200, 10**6])
def test_micro_batches_hold_each_sample_once_within_the_budget(make, budget):
    policy = tiny_policy()
    samples = training_samples(tiny_groups(policy, problems=5, n=4), make(), encode=policy.chat.encode)
    batches = pack(samples, budget)
    packed = sorted(tuple(b.token[b.sample == s].tolist()) for b in batches for s in range(len(b.length)))
    assert packed == sorted(tuple(s.rollout.completion_ids) for s in samples if s.distill_scale or s.reference_scale)
    for batch in batches:
        teachers = [n for packed in batch.views.values() for n in packed.lengths]
        assert sum(len(rows) * max(rows) for rows in (batch.student.lengths, teachers)) <= budget, "the student's pass and its teachers', padding included"
    assert (len(batches) == 1) == (budget == 10**6)


def shared_prompts(*, prompts: int, rollouts: int, length: int, seed: int = 0) -> list[TrainingSample]:
    """Samples whose teacher's prompt is half as long again as the student's; both are their group's."""
    draw = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(0, 50, (count,), generator=draw).tolist()

    samples = []
    for _ in range(prompts):
        own, teachers = tuple(ids(length)), tuple(ids(length + length // 2))
        samples += [sample(rollout(ids(int(torch.randint(4, 30, (), generator=draw))), prompt=own), teachers) for _ in range(rollouts)]
    return samples


def test_a_prompt_that_is_read_once_counts_once():
    samples = shared_prompts(prompts=2, rollouts=8, length=400)
    assert len(pack(samples, 6000)) == 4, "whole rows of up to 430 and 630 tokens, 16 of each"
    (batch,) = pack(samples, 6000, reads_once=True)
    assert sum(batch.student.lengths) + sum(batch.views["role0"].lengths) > 2 * 6000
    assert len(pack(samples, 4500, reads_once=True)) == 2, "the keys and values of each prompt are held for all of its rows"


@pytest.mark.parametrize("budget", [1500, 3000, 6000])
def test_no_pass_reads_more_than_the_budget(budget):
    """Padding included, whatever is shared."""
    for seed, (prompts, rollouts, length) in enumerate(product((1, 5), (1, 6), (30, 300))):
        for batch in pack(shared_prompts(prompts=prompts, rollouts=rollouts, length=length, seed=seed), budget, reads_once=True):
            read = 0
            for packed in (batch.student, *batch.views.values()):
                tree = shared_tree(packed)
                for level in tree.levels:
                    lengths = [tree.branches[i].length for i in level]
                    read += sum(len(rows) * max(lengths[i] for i in rows) for rows in row_groups(lengths, each=pass_tokens(tree.tokens, torch.device("cpu"))))
            assert read <= budget


def test_rollouts_of_a_prompt_stay_together():
    samples = shared_prompts(prompts=6, rollouts=4, length=200)
    batches = pack(samples, 2000, reads_once=True)
    of_batch = [{tuple(ids[:200]) for ids in sequences(b.student)} for b in batches]
    assert len(batches) == 4 and sum(map(len, of_batch)) <= 6 + 3, "a prompt is read again where a micro-batch ends among its rollouts, and nowhere else"
    held = [ids for b in batches for ids in sequences(b.student)]
    assert held == [[*s.rollout.prompt_ids, *s.rollout.completion_ids] for s in packed_order(samples, reads_once=True)]


def test_scales_survive_packing():
    policy = tiny_policy()
    samples = training_samples(tiny_groups(policy), hsd(), encode=policy.chat.encode)
    batches = pack(samples, 130)
    assert sum(float((b.distill_scale[b.sample]).sum()) for b in batches) == pytest.approx(1.0), "the scales of all taught tokens sum to one"


def test_rows_without_any_scale_are_not_packed():
    silent = sample(rollout([1, 2, 3]), (70,), distill_scale=0.0)
    assert pack([silent], 10) == []
    (batch,) = pack([silent, sample(rollout([4]), (71,))], 10)
    assert sequences(batch.student) == [[90, 4]]


def test_samples_that_name_different_weights_for_a_role_are_refused():
    """One pass reads a role: reading half of its rows with the wrong weights would go unnoticed."""
    mine = [sample(rollout([i]), (70,)) for i in (1, 2)]
    views = {"role0": replace(mine[1].views["role0"], weights="initial")}
    with pytest.raises(ValueError, match="weights"):
        pack([mine[0], replace(mine[1], views=views)], 100)


@dataclass(frozen=True)
class OneOrTwoRoles:
    def __call__(self, rollout, group):
        view = View(messages=(), prompt_ids=(7,))
        return [Teaching(views={"teacher": view} | ({"live": view} if rollout.index == 0 else {}))]


def test_rollouts_whose_teachers_have_different_roles_are_refused():
    policy = tiny_policy()
    samples = training_samples(tiny_groups(policy), replace(opsd(), context=OneOrTwoRoles()), encode=policy.chat.encode)
    with pytest.raises(ValueError, match="same roles"):
        pack(samples, 10**6)


def test_joined_views_read_as_they_did_apart():
    policy = tiny_policy()
    (batch,) = pack(training_samples(tiny_groups(policy), purified_opsd(), encode=policy.chat.encode), 10**6)
    views = [batch.views[role] for role in ("teacher", "reference", "base")]
    joined = join(views)
    assert sequences(joined) == [s for view in views for s in sequences(view)]
    with torch.no_grad():
        apart = torch.cat([policy.hidden(view) for view in views])
        torch.testing.assert_close(policy.hidden(joined), apart, atol=2e-6, rtol=1e-5)


def test_one_sampling_temperature_a_step():
    with pytest.raises(AssertionError, match="one temperature"):
        pack([sample(rollout([1]), (7,)), sample(rollout([2], temperature=0.7), (7,))], 100)
