"""The embedded engine: its log-probs are those of a teacher-forced pass, its completions end where they should."""

import pytest
import torch
from tiny_models import FAMILIES, full_logp, tiny_policy, tiny_problems

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
    ids = [i for g in sampler.sample(tiny_problems(2), 20) for r in g.rollouts for i in r.completion_ids]
    assert max(ids) < len(policy.tokenizer)


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
