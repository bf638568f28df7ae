"""The loop that writes rollouts: the tokens of `generate`, the log-probs of a full pass, and no dependence on who leaves when."""

import copy
import random

import pytest
import torch
from tiny_models import FAMILIES, reference_logp, tiny_policy
from writing import FULL, PROMPTS, policy_of, written

from selfdistill.sampling import cache, generate, loop, sharing
from selfdistill.sampling.cache import ROOM
from selfdistill.sampling.choosing import Choice
from selfdistill.sampling.transformers import TransformersSampler

ATTENTIONS = [(f, a) for f in (*FAMILIES, "mistral", "gemma3") for a in ("sdpa", "eager") if (f, a) != ("gemma2", "sdpa")]


@pytest.mark.parametrize("family, attention", ATTENTIONS)
def test_greedy_tokens_are_those_of_generate(family, attention):
    policy = policy_of(family, attention)
    assert loop.writable(policy)
    ours, theirs = (written(policy, engine=engine, temperature=0.0) for engine in (loop, generate))
    assert [line.ids for line in ours] == [line.ids for line in theirs]
    assert [line.ended for line in ours] == [line.ended for line in theirs]
    assert len({len(line.ids) for line in ours}) > 1, "rows leave at different times"


@pytest.mark.parametrize("family, attention", ATTENTIONS)
def test_log_probs_are_those_of_a_full_pass(family, attention):
    policy = policy_of(family, attention)
    for seed in range(2):
        for prompt, line in zip(PROMPTS, written(policy, seed=seed), strict=True):
            torch.testing.assert_close(torch.tensor(line.logp), torch.tensor(reference_logp(policy, prompt, line.ids)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family, rows", [("qwen3", 1), ("mistral", 1), ("gemma3", 1), ("qwen3", 4), ("llama", 4)])
def test_completions_may_outgrow_the_room_that_storage_begins_with(family, rows, monkeypatch):
    policy, shared = policy_of(family), sharing_of(monkeypatch)
    policy.base.config.max_position_embeddings = 512
    prompts, limit = [p for p in ([5, 6, 7], [*range(30, 50)]) for _ in range(rows)], 2 * ROOM + 50
    for prompt, line in zip(prompts, loop.write(policy, prompts, choice=Choice(), limit=limit, stops=[]), strict=True):
        assert len(line.ids) == limit and not line.ended
        torch.testing.assert_close(torch.tensor(line.logp), torch.tensor(reference_logp(policy, prompt, line.ids)), atol=2e-5, rtol=2e-5)
    assert bool(shared) == (rows > 1)


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_a_row_does_not_depend_on_when_others_leave(family, monkeypatch):
    policy, rng = policy_of(family), random.Random(0)
    prompts = [[rng.randrange(6, 56) for _ in range(rng.randrange(1, 14))] for _ in range(24)]
    found = []
    for one_in in (1, 2, 8, 1000):
        monkeypatch.setattr(loop, "LEAVING", one_in)
        found.append(written(policy, prompts=prompts, limit=60))
    for other in found[1:]:
        assert [line.ids for line in other] == [line.ids for line in found[0]]
        for a, b in zip(other, found[0], strict=True):
            assert a.logp == pytest.approx(b.logp, abs=1e-5)


def test_a_prompt_is_read_once_and_who_has_finished_no_more():
    policy, passes = policy_of("qwen3"), []
    policy.base.model.layers[0].register_forward_pre_hook(lambda module, inputs, **kw: passes.append(tuple(inputs[0].shape[:2])))
    prompts = [p for p in PROMPTS for _ in range(8)]
    lines = written(policy, prompts=prompts, limit=60)
    assert passes[0] == (4, 12), "four different prompts, the longest of 12 tokens"
    rows = [n for n, width in passes[1:] if width == 1]
    assert len(rows) == len(passes) - 1 and rows[0] == 48 and rows[-1] < 12 and rows == sorted(rows, reverse=True)
    needed = sum(len(line.ids) - 1 for line in lines)
    assert sum(rows) < 1.7 * needed < 0.8 * 48 * len(rows), "most of what is computed is kept, and much of what was not is spared"


GROUPS = [p for p in ([5, 6, 7], [*range(9, 21)], [7] * 6) for _ in range(5)] + [[30]]


def sharing_of(monkeypatch) -> list[int]:
    """The rows of every pass that read shared prompts."""
    rows, real = [], sharing.Prompts.attend
    monkeypatch.setattr(sharing.Prompts, "attend", lambda self, query, *rest: rows.append(len(query)) or real(self, query, *rest))
    return rows


EVEN = [[9, 10, 11]] * 6 + [[5, 6, 7, 8]] * 6


@pytest.mark.parametrize("prompts", [GROUPS, [[9, 10, 11]] * 12, EVEN, EVEN[::6] * 6], ids=["ragged", "one", "in order", "in turns"])
@pytest.mark.parametrize("family", FULL)
def test_rows_read_the_prompt_they_share_as_if_it_were_their_own(family, prompts, monkeypatch):
    policy, rows = policy_of(family), sharing_of(monkeypatch)
    lines = written(policy, prompts=prompts, limit=60)
    assert rows[0] == len(prompts) and rows[-1] < rows[0], "rows leave in between"
    assert policy.base.config._attn_implementation == "sdpa"
    for prompt, line in zip(prompts, lines, strict=True):
        torch.testing.assert_close(torch.tensor(line.logp), torch.tensor(reference_logp(policy, prompt, line.ids)), atol=1e-5, rtol=1e-5)
    greedy = [written(policy, prompts=prompts, engine=engine, temperature=0.0) for engine in (loop, generate)]
    assert [line.ids for line in greedy[0]] == [line.ids for line in greedy[1]]


def test_sharing_changes_no_token(monkeypatch):
    policy, found = policy_of("qwen3"), []
    for rows in (sharing.ROWS, 10**9):
        monkeypatch.setattr(sharing, "ROWS", rows)
        found.append(written(policy, prompts=GROUPS, limit=60))
    assert [line.ids for line in found[0]] == [line.ids for line in found[1]]


def test_what_storage_holds_before_it_is_written_changes_nothing():
    policy = policy_of("qwen3")
    expected = written(policy, prompts=GROUPS, limit=60)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan().all(), "memory that is not written holds NaN now"
        found = written(policy, prompts=GROUPS, limit=60)
    finally:
        torch.use_deterministic_algorithms(False)
    assert [line.ids for line in found] == [line.ids for line in expected]


UNEVEN = [[9, 10]] * 40 + [[5, 6, i] for i in range(7, 16)]


@pytest.mark.parametrize(
    "family, attention, prompts", [("qwen3", "eager", GROUPS), ("mistral", "sdpa", GROUPS), ("qwen3", "sdpa", PROMPTS), ("qwen3", "sdpa", UNEVEN)]
)
def test_prompts_are_not_shared_where_attention_is_another_or_their_rows_are_few_or_uneven(family, attention, prompts, monkeypatch):
    rows = sharing_of(monkeypatch)
    written(policy_of(family, attention), prompts=prompts)
    assert not rows


def test_sums_in_bf16_round_as_those_of_the_pass_that_trains(monkeypatch):
    policy, rows = policy_of("qwen3"), sharing_of(monkeypatch)
    policy.autocast_dtype = torch.bfloat16
    written(policy, prompts=GROUPS)
    assert not rows


def test_a_model_that_copies_its_keys_is_written_without_sharing(monkeypatch):
    policy, expected = policy_of("qwen3"), written(policy_of("qwen3"), prompts=GROUPS)
    monkeypatch.setattr(cache, "attach", lambda prompts, *columns: None)
    found = written(policy, prompts=GROUPS)
    assert [line.ids for line in found] == [line.ids for line in expected]
    for prompt, line in zip(GROUPS, found, strict=True):
        torch.testing.assert_close(torch.tensor(line.logp), torch.tensor(reference_logp(policy, prompt, line.ids)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["diffllama", "doge", "falcon"])
def test_a_model_that_bends_values_or_scores_on_their_way_is_written_without_sharing(family, monkeypatch):
    policy, rows = policy_of(family), sharing_of(monkeypatch)
    for prompt, line in zip(GROUPS, written(policy, prompts=GROUPS), strict=True):
        torch.testing.assert_close(torch.tensor(line.logp), torch.tensor(reference_logp(policy, prompt, line.ids)), atol=1e-5, rtol=1e-5)
    assert not rows


def test_other_parts_of_a_model_keep_their_attention(monkeypatch):
    policy, rows = policy_of("qwen3"), sharing_of(monkeypatch)
    text = copy.copy(policy.base.config)
    policy.base.config._attn_implementation = "eager"
    monkeypatch.setattr(type(text), "get_text_config", lambda self, **kwargs: text)
    written(policy, prompts=GROUPS)
    assert (policy.base.config._attn_implementation, text._attn_implementation) == ("eager", "sdpa") and not rows


def test_attention_is_what_it_was_also_after_an_interrupt(monkeypatch):
    policy = policy_of("qwen3")

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(sharing.Prompts, "attend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        written(policy, prompts=GROUPS)
    assert policy.base.config._attn_implementation == "sdpa"


def test_a_batch_takes_one_number_of_the_global_stream_however_long_it_gets():
    policy, after = policy_of("qwen3"), []
    for limit in (1, 40):
        written(policy, limit=limit)
        after.append(float(torch.rand(())))
    assert after[0] == after[1]
    short, long = written(policy, limit=1), written(policy, limit=40)
    assert [line.ids for line in short] == [line.ids[:1] for line in long]


def test_rows_of_one_length_are_written_without_a_mask():
    policy, masks = policy_of("qwen3"), []
    policy.base.model.layers[0].register_forward_pre_hook(lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True)
    written(policy, prompts=[[5, 6, 7], [8, 9, 10]])
    assert len(masks) > 1 and all(mask is None for mask in masks)


@pytest.mark.parametrize("family", ["mamba", "lfm2", "qwen3_next"])
def test_models_that_keep_more_than_keys_and_values_are_written_by_generate(family):
    policy = policy_of(family)
    assert not loop.writable(policy)
    rollouts = TransformersSampler(policy=policy, max_completion_length=8).complete([[9, 10, 11, 12]] * 2 + [[5, 6]])
    for rollout in rollouts:
        assert rollout.behavior_logp == pytest.approx(reference_logp(policy, rollout.prompt_ids, rollout.completion_ids), abs=2e-4)


@pytest.mark.parametrize("what, value", [("attention", "flex_attention"), ("alibi", True)])
def test_models_whose_masks_are_their_own_are_written_by_generate(what, value):
    policy = tiny_policy()
    setattr(policy.base.config, "_attn_implementation" if what == "attention" else what, value)
    assert not loop.writable(policy)


def test_weights_that_are_no_numbers_are_told():
    policy = policy_of("llama")
    with torch.no_grad():
        policy.base.lm_head.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="not numbers"):
        written(policy)
