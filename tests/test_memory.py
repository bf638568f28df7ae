"""What a run says of its memory: activations as torch's own allocator counts them, and nothing of the model touched by the counting."""

import pytest
import torch
from tiny_models import tiny_model, tiny_policy, tiny_tokenizer
from torch.profiler import ProfilerActivity, profile

from selfdistill.memory import kept_a_token
from selfdistill.models import Policy


def allocated_a_token(policy: Policy, *, few: int = 32, many: int = 64) -> float:
    """Bytes a token that a pass has taken and not given back, by torch's profiler."""
    held = []
    for tokens in (few, many):
        ids = torch.randint(6, 50, (1, tokens))
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen, policy.autocast():
            states = policy.base.base_model(ids, use_cache=False).last_hidden_state
        held.append(sum(event.self_cpu_memory_usage for event in seen.key_averages()))
        del states
    return (held[1] - held[0]) / (many - few)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "phi"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_activations_are_what_a_pass_keeps(family, autocast):
    policy = Policy(tiny_model(family), tiny_tokenizer(), autocast=autocast)
    assert kept_a_token(policy) == pytest.approx(allocated_a_token(policy.train()), rel=0.15)


def test_checkpoints_keep_what_enters_a_layer_and_make_one_layer_again():
    policy = tiny_policy()
    whole = kept_a_token(policy)
    policy.base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    held = allocated_a_token(policy.train())
    assert held < whole / 4
    assert kept_a_token(policy) == pytest.approx(held + whole / 2, rel=0.1)


def test_counting_leaves_mode_gradients_and_random_stream_alone():
    policy = tiny_policy().eval()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    kept_a_token(policy)
    assert torch.equal(torch.rand(2), expected)
    assert not policy.training and all(p.grad is None for p in policy.parameters())
