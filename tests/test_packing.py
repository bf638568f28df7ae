"""Flat rows: nothing is cut, padded or mixed up, whatever the lengths, and rollouts keep together."""

from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from tiny_models import tiny_groups, tiny_policy

from selfdistill import layouts
from selfdistill.methods import hsd, opsd, purified_opsd, sdpo_trust_region
from selfdistill.models import Policy
from selfdistill.packing import cut, pack, packed_order
from selfdistill.reading import join, room_for, start_readers
from selfdistill.samples import training_samples
from selfdistill.types import Packed, Rollout, Teaching, TrainingSample, View


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


def shared_prompts(*, prompts: int, rollouts: int, length: int, seed: int = 0, weights: tuple[str, ...] = ("teacher",)) -> list[TrainingSample]:
    """Samples whose teachers' prompt is half as long again as the student's; all are their group's."""
    draw = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(0, 50, (count,), generator=draw).tolist()

    samples = []
    for _ in range(prompts):
        own, teachers = tuple(ids(length)), tuple(ids(length + length // 2))
        samples += [sample(rollout(ids(int(torch.randint(4, 30, (), generator=draw))), prompt=own), *[teachers] * len(weights)) for _ in range(rollouts)]
    return [replace(s, views={role: replace(v, weights=w) for (role, v), w in zip(s.views.items(), weights, strict=True)}) for s in samples]


def read_tokens(packed: Packed, policy: Policy) -> int:
    """What the model is given, padding included."""
    given: list[int] = []
    handle = policy.base.base_model.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].numel()))
    policy.hidden(packed)
    handle.remove()
    return sum(given)


def test_a_prompt_that_is_read_once_counts_once():
    samples, policy = shared_prompts(prompts=2, rollouts=8, length=140), tiny_policy().train()
    room = room_for(policy, start_readers(opsd(), policy))
    assert len(cut(samples, 4500)) == 2, "whole rows of up to 170 and 240 tokens, 16 of each"
    (batch,) = pack(samples, 4500, room)
    assert sum(batch.student.lengths) + sum(batch.views["role0"].lengths) > 6000
    assert read_tokens(batch.student, policy) + read_tokens(batch.views["role0"], policy) < 2000
    assert len(cut(samples, 2500, room)) == 2, "the keys and values of each prompt are held for all of its rows"


@pytest.mark.parametrize("overhead", [{}, {"cpu": 700}], ids=["cheap passes", "launched passes"])
@pytest.mark.parametrize("weights", [("teacher", "teacher"), ("teacher", "student")])
def test_no_pass_reads_more_than_the_budget(overhead, weights, monkeypatch):
    """Padding included, whatever is shared, and however teachers are read: those of one weights together."""
    for device, tokens in overhead.items():
        monkeypatch.setitem(layouts.PASS_TOKENS, device, tokens)
    policy = tiny_policy().train()
    readers = start_readers(opsd(), policy)
    for seed, (prompts, rollouts, length) in enumerate(product((1, 5), (2, 6), (7, 30, 140))):
        samples = shared_prompts(prompts=prompts, rollouts=rollouts, length=length, seed=seed, weights=weights)
        for batch in pack(samples, 1500, room_for(policy, readers)):
            views = [[batch.views[role] for role in batch.views if batch.weights[role] == w] for w in set(weights)]
            assert sum(read_tokens(packed, policy) for packed in (batch.student, *map(join, views))) <= 1500


def test_a_teacher_that_reads_whole_sequences_is_counted_so():
    samples, policy = shared_prompts(prompts=1, rollouts=8, length=140), tiny_policy().train()
    readers = start_readers(opsd(), policy)
    assert len(cut(samples, 2000, room_for(policy, readers))) == 1
    readers["teacher"].teacher.shares_prefixes = False
    assert len(cut(samples, 2000, room_for(policy, readers))) == 2
    (batch,) = pack(samples, 2700, room_for(policy, readers))
    assert 2000 < read_tokens(batch.student, policy) + read_tokens(batch.views["role0"], readers["teacher"].teacher) <= 2700


def test_rollouts_of_a_prompt_stay_together_where_that_spares_their_prompt():
    policy = tiny_policy()
    room, long = room_for(policy, {}), shared_prompts(prompts=6, rollouts=4, length=200)
    of_batch = [{tuple(s.rollout.prompt_ids) for s in part} for part in cut(long, 2000, room)]
    assert len(of_batch) > 3 and sum(map(len, of_batch)) <= 6 + len(of_batch) - 1, "read again only where a micro-batch ends among a prompt's rollouts"
    short = shared_prompts(prompts=6, rollouts=4, length=4)
    assert [s for part in cut(short, 200, room) for s in part] == packed_order(short), "longest first"


def test_ragged_rollouts_fill_micro_batches():
    """Rows are padded to those of like length that they are read with, and so they are counted."""
    draw, policy = torch.Generator().manual_seed(0), tiny_policy()
    lengths = torch.rand(64, generator=draw).mul(3.2).add(3).exp().int().tolist()
    samples = [sample(rollout([1 + i % 40] * n, prompt=(i % 30, 5, i)), (6, i)) for i, n in enumerate(lengths)]
    parts = cut(samples, 2000, room_for(policy, {}))
    assert sum(2 * n + 5 for n in lengths) / 2000 > 0.75 * len(parts)


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
