"""The embedded engine: its log-probs are those of a teacher-forced pass, its completions end where they should."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import FAMILIES, full_logp, reference_logp, tiny_model, tiny_policy, tiny_problems, tiny_tokenizer

from selfdistill.models import Policy
from selfdistill.sampling.transformers import TransformersSampler


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decoding", [{}, {"temperature": 0.7, "top_p": 0.9, "top_k": 5}], ids=["plain", "truncated"])
def test_log_probs_are_the_policys_before_top_p_and_top_k(family, decoding):
    policy = tiny_policy(family)
    sampler = TransformersSampler(policy=policy, max_completion_length=20, batch_size=5, **decoding)
    temperature = decoding.get("temperature", 1.0)
    ended = []
    for group in sampler.sample(tiny_problems(3), 4):
        for rollout in group.rollouts:
            logp = full_logp(policy, rollout.prompt_ids, rollout.completion_ids, temperature)
            expected = logp.gather(-1, torch.tensor(rollout.completion_ids)[:, None])[:, 0].detach()
            torch.testing.assert_close(torch.tensor(rollout.behavior_logp), expected, atol=2e-4, rtol=1e-4)
            ended.append(rollout.completion_ids[-1] == policy.tokenizer.eos_token_id)
            assert rollout.truncated is not ended[-1] and rollout.temperature == temperature
            assert policy.tokenizer.eos_token_id not in rollout.completion_ids[:-1]
            assert len(rollout.completion_ids) == len(rollout.behavior_logp) and (ended[-1] or len(rollout.completion_ids) == 20)
    if not decoding:
        assert any(ended) and not all(ended), "both ways to end are looked at"


def test_tokens_follow_the_policys_distribution():
    """Counts of 6,000 first tokens against the policy's probabilities (chi-square, p about 0.001)."""
    from scipy.stats import chisquare

    policy = tiny_policy()
    sampler = TransformersSampler(policy=policy, max_completion_length=1, batch_size=6000)
    (group,) = sampler.sample(tiny_problems(1), 6000)
    probabilities = full_logp(policy, group.rollouts[0].prompt_ids, [7])[0].exp().detach()
    counts = torch.bincount(torch.tensor([r.completion_ids[0] for r in group.rollouts]), minlength=len(probabilities))
    likely = probabilities * 6000 > 5
    observed = torch.cat([counts[likely], counts[~likely].sum()[None]]).double()
    expected = torch.cat([probabilities[likely], probabilities[~likely].sum()[None]]).double() * 6000
    assert chisquare(observed.numpy(), (expected * observed.sum() / expected.sum()).numpy()).pvalue > 0.001


def test_prompts_of_ids_are_completed_in_their_order_and_by_whom_is_asked():
    """As a window is written: half a rollout continued, by the student and by another model, each with its own log-probs."""
    policy, teacher = tiny_policy(), tiny_policy(seed=5)
    sampler = TransformersSampler(policy=policy, max_completion_length=20, batch_size=2, version=3)
    prompts = [[2, *range(6, 6 + n)] for n in (9, 2, 5, 2)]
    writer = sampler.decoding(temperature=1.0, max_completion_length=4)
    for model in (policy, teacher):
        writer.sync(model, 3)
        written = writer.complete(prompts)
        assert [w.prompt_ids for w in written] == prompts and max(len(w.completion_ids) for w in written) == 4
        for rollout in written:
            assert rollout.policy_version == 3
            assert rollout.behavior_logp == pytest.approx(reference_logp(model, rollout.prompt_ids, rollout.completion_ids), abs=2e-4)
    assert sampler.policy is policy and sampler.max_completion_length == 20 and sampler.complete([]) == []
    with pytest.raises(ValueError, match="256 positions"):
        writer.complete([[7] * 253])


def test_greedy_decoding_takes_the_likeliest_token():
    policy = tiny_policy()
    sampler = TransformersSampler(policy=policy, max_completion_length=6, temperature=0.0)
    (group,) = sampler.sample(tiny_problems(1), 2)
    rollout = group.rollouts[0]
    assert rollout.completion_ids == group.rollouts[1].completion_ids
    assert full_logp(policy, rollout.prompt_ids, rollout.completion_ids).argmax(-1).tolist() == rollout.completion_ids


def test_tokens_beyond_the_tokenizer_are_never_sampled():
    policy = tiny_policy("llama", vocab=64)
    with torch.no_grad():
        policy.base.lm_head.weight[56:] = policy.base.lm_head.weight[:8] * 3
    sampler = TransformersSampler(policy=policy, max_completion_length=12)
    rollouts = [r for g in sampler.sample(tiny_problems(2), 20) for r in g.rollouts]
    assert max(i for r in rollouts for i in r.completion_ids) < len(policy.tokenizer)
    torch.testing.assert_close(rollouts[0].behavior_logp, reference_logp(policy, rollouts[0].prompt_ids, rollouts[0].completion_ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("limits, knob", [({"max_prompt_length": 3}, "max_prompt_length = 3"), ({"max_completion_length": 250}, "256 positions")])
def test_prompts_without_room_name_the_knob(limits, knob):
    with pytest.raises(ValueError, match=knob):
        TransformersSampler(policy=tiny_policy(), **({"max_completion_length": 8} | limits)).sample(tiny_problems(1), 1)


def test_same_seed_same_rollouts():
    texts = []
    for _ in range(2):
        torch.manual_seed(3)
        texts.append([r.text for g in TransformersSampler(policy=tiny_policy(), max_completion_length=8).sample(tiny_problems(2), 3) for r in g.rollouts])
    assert texts[0] == texts[1] and len(set(texts[0])) > 1


def worst_gap(policy, groups) -> float:
    """Largest distance of a behaviour log-prob from the policy's own reading of the token."""
    rollouts = [r for g in groups for r in g.rollouts]
    return max(abs(a - b) for r in rollouts for a, b in zip(r.behavior_logp, reference_logp(policy, r.prompt_ids, r.completion_ids), strict=True))


def test_groups_keep_the_order_of_problems_across_batches():
    policy, problems, done = tiny_policy(), tiny_problems(5), []
    sampler = TransformersSampler(policy=policy, max_completion_length=4, batch_size=7, on_progress=lambda n, of: done.append((n, of)))
    groups = sampler.sample(list(reversed(problems)), 3)
    for problem, group in zip(reversed(problems), groups, strict=True):
        assert group.problem is problem and [r.index for r in group.rollouts] == [0, 1, 2]
        expected = policy.chat.encode([{"role": "user", "content": problem.prompt}])
        assert all(r.prompt_ids == expected and r.text == policy.chat.decode(r.completion_ids) for r in group.rollouts)
    assert done == [(7, 15), (14, 15), (15, 15)]


def test_the_models_own_generation_settings_do_not_bend_the_distribution():
    """Published models ship penalties and cut-offs (Qwen2.5: repetition_penalty 1.05) that the trainer knows nothing of."""
    policy = tiny_policy()
    plain = TransformersSampler(policy=policy, max_completion_length=16)
    torch.manual_seed(1)
    expected = plain.sample(tiny_problems(2), 8)
    settings = policy.base.generation_config
    settings.repetition_penalty, settings.min_p, settings.top_k, settings.temperature, settings.min_new_tokens = 2.0, 0.3, 2, 0.3, 10
    torch.manual_seed(1)
    groups = plain.sample(tiny_problems(2), 8)
    assert [r.completion_ids for g in groups for r in g.rollouts] == [r.completion_ids for g in expected for r in g.rollouts]
    assert worst_gap(policy, groups) < 1e-4
    assert policy.base.generation_config is settings and settings.repetition_penalty == 2.0, "a saved model keeps them"


def test_an_adapter_takes_part():
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    policy = Policy(get_peft_model(tiny_model(), config), tiny_tokenizer())
    policy.train()
    groups = TransformersSampler(policy=policy, max_completion_length=8).sample(tiny_problems(2), 4)
    assert policy.training and worst_gap(policy, groups) < 1e-4
    with policy.adapters_off():
        assert worst_gap(policy, groups) > 0.1


def test_gradient_checkpointing_does_not_disturb_the_cache():
    policy = tiny_policy()
    policy.base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy.train()
    assert worst_gap(policy, TransformersSampler(policy=policy, max_completion_length=8).sample(tiny_problems(2), 4)) < 1e-4


def test_a_sample_does_not_depend_on_longer_ones_before_it():
    """A run that is resumed has not made the calls of the run it continues, and must sample the same bits."""
    policy = tiny_policy()
    drawn = []
    for earlier in (None, 200):
        if earlier:
            TransformersSampler(policy=policy, max_completion_length=earlier).sample(tiny_problems(1), 2)
        torch.manual_seed(2)
        groups = TransformersSampler(policy=policy, max_completion_length=24).sample(tiny_problems(2), 4)
        drawn.append([r.behavior_logp for g in groups for r in g.rollouts])
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("where", ["tokenizer", "generation settings", "template"])
def test_every_way_to_end_ends(where):
    """The model writes w7 w8 at most; w8 ends the completion whoever calls it the end."""
    policy = tiny_policy("phi")
    seven, eight = policy.tokenizer.convert_tokens_to_ids(["w7", "w8"])
    with torch.no_grad():
        policy.base.lm_head.weight.zero_()
        policy.base.lm_head.bias.fill_(-100.0)[[seven, eight]] = 0.0
    if where == "tokenizer":
        policy.tokenizer.eos_token = "w8"
    elif where == "generation settings":
        policy.base.generation_config.eos_token_id = [1, eight]
    else:
        policy.tokenizer.add_tokens(["w8"], special_tokens=True)
        policy.tokenizer.chat_template = policy.tokenizer.chat_template.replace("<end>", "w8")
    (group,) = TransformersSampler(policy=policy, max_completion_length=30).sample(tiny_problems(1), 8)
    assert {tuple(r.completion_ids[:-1]) for r in group.rollouts} <= {(seven,) * n for n in range(30)}
    assert all(r.completion_ids[-1] == eight and not r.truncated for r in group.rollouts)
    torch.testing.assert_close(torch.tensor(group.rollouts[0].behavior_logp).exp(), torch.full((len(group.rollouts[0].completion_ids),), 0.5))


def test_a_given_text_is_a_rollout_that_ends_by_itself():
    policy = tiny_policy()
    (problem,) = tiny_problems(1)
    rollout = TransformersSampler(policy=policy, max_completion_length=8, version=3).write(problem, "w4 w5")
    assert policy.tokenizer.convert_ids_to_tokens(rollout.completion_ids) == ["w4", "w5", "<end>"]
    assert rollout.text == "w4 w5" and rollout.behavior_logp == [0.0] * 3 and not rollout.truncated and rollout.policy_version == 3


def test_sync_samples_from_the_new_weights_and_says_so():
    sampler = TransformersSampler(policy=tiny_policy(), max_completion_length=6)
    other = tiny_policy(seed=5)
    sampler.sync(other, 7)
    groups = sampler.sample(tiny_problems(1), 4)
    assert worst_gap(other, groups) < 1e-4 and {r.policy_version for g in groups for r in g.rollouts} == {7}


def test_autocast_samples_what_it_trains():
    policy = tiny_policy()
    policy.autocast_dtype = torch.bfloat16
    seen = set()
    policy.base.model.layers[0].mlp.down_proj.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    (group,) = TransformersSampler(policy=policy, max_completion_length=8).sample(tiny_problems(1), 4)
    assert seen == {torch.bfloat16}
    with policy.autocast():
        for rollout in group.rollouts:
            expected = full_logp(policy, rollout.prompt_ids, rollout.completion_ids).gather(-1, torch.tensor(rollout.completion_ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(rollout.behavior_logp), expected.detach(), atol=0.15, rtol=0)
