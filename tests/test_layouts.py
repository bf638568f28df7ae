"""How rows are cut into passes, and what holds for a model whose passes go on from others."""

import random
from itertools import pairwise

import pytest
import torch
from test_models import alone, laid
from tiny_models import tiny_policy, tiny_tokenizer
from transformers import AutoModelForCausalLM, GPT2Config

from selfdistill.layouts import _Behind, row_groups, shared_tree
from selfdistill.models import Policy, check_layout


def cost(groups: list[list[int]], lengths: list[int], each: float) -> float:
    return sum(len(rows) * max(lengths[i] for i in rows) + each for rows in groups)


def test_row_groups_hold_every_sequence_once_and_cost_least():
    rng = random.Random(0)
    lengths = [rng.choice([rng.randrange(1, 40), rng.randrange(400, 3000)]) for _ in range(300)]
    groups = row_groups(lengths, each=512)
    assert sorted(i for rows in groups for i in rows) == list(range(300))
    assert all(lengths[rows[0]] == max(lengths[i] for i in rows) for rows in groups)
    for _ in range(20):
        few, each = [rng.randrange(1, 60) for _ in range(8)], rng.randrange(1, 100)
        order = sorted(range(8), key=lambda i: -few[i])
        cuts = [[0, *(k for k in range(1, 8) if chosen >> k & 1), 8] for chosen in range(0, 256, 2)]
        every = [[order[i:j] for i, j in pairwise(cut)] for cut in cuts]
        assert cost(row_groups(few, each=each), few, each) == min(cost(groups, few, each) for groups in every)
    assert row_groups([7] * 50, each=1) == [list(range(50))]


def test_a_model_whose_cached_passes_deviate_reads_every_sequence_whole(monkeypatch):
    """Whatever a pass costs on the device: sharing is tried before the run starts, and given up where it is off."""
    monkeypatch.setattr("selfdistill.layouts.PASS_TOKENS", {"cpu": 2048})
    policy = tiny_policy()
    assert check_layout(policy) < 1e-4 and policy.shares_prefixes
    forward = policy.base.base_model.forward
    monkeypatch.setattr(policy.base.base_model, "forward", lambda ids, **given: forward(ids, **{k: v for k, v in given.items() if k != "position_ids"}))
    assert check_layout(policy) < 1e-4 and not policy.shares_prefixes


def test_padding_stays_within_the_positions_of_a_model():
    """A short end behind a long beginning shares a pass with a long end behind a short one; each fits, their sum would not."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=64, vocab_size=56))
    policy = Policy(model.eval(), tiny_tokenizer())
    long, short, generator = torch.full((60,), 7), torch.full((20,), 9), torch.Generator().manual_seed(0)
    parts = [torch.cat([long, torch.tensor([10 + k])]) for k in range(4)]
    parts += [torch.cat([short, torch.randint(6, 56, (40,), generator=generator)]) for _ in range(4)]
    batch = laid(parts)
    assert shared_tree(batch).depth == 2
    torch.testing.assert_close(policy.hidden(batch), alone(policy, batch), atol=2e-5, rtol=1e-5)


def test_only_what_others_go_on_from_is_kept():
    """Two levels below the prompt, the first of which has ends that nobody goes on from; keys and values of those, and of padding, are let go."""
    policy, generator = tiny_policy(), torch.Generator().manual_seed(0)
    prompt, long = torch.full((64,), 7), torch.full((80,), 9)
    parts = [torch.cat([prompt, long, torch.randint(6, 56, (20,), generator=generator)]) for _ in range(4)]
    parts += [torch.cat([prompt, torch.randint(6, 56, (90,), generator=generator)]) for _ in range(6)]
    batch, given = laid(parts), []
    tree = shared_tree(batch)
    parents = {branch.parent for branch in tree.branches} - {None}
    assert tree.depth == 3 and len(parents) == 2
    update = _Behind.update

    def seen(self, *args):
        given.append(0 if self.known is None else len(self.known[0]))
        return update(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Behind, "update", seen)
        states = policy.hidden(batch)
    assert max(given) == sum(tree.branches[i].length for i in parents) < tree.tokens / 4
    torch.testing.assert_close(states, alone(policy, batch), atol=2e-5, rtol=1e-5)
