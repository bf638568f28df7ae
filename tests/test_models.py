"""Packed tokens to hidden states: however sequences lie together, each is read as if it were alone."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import FAMILIES, tiny_model, tiny_policy, tiny_tokenizer
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, Lfm2Config, MambaConfig, PreTrainedTokenizerFast

from selfdistill.layouts import plain_cache, row_groups, shared_tree
from selfdistill.models import Policy, check_head, check_layout
from selfdistill.types import Packed

LENGTHS = (5, 40, 1, 17, 40, 3, 90)
"""Beyond Gemma 2's sliding window of 8, with sequences of one token and more than one row group."""


def laid(parts, *, predicts=None) -> Packed:
    """Sequences end to end; every state predicts unless told."""
    lengths = tuple(map(len, parts))
    return Packed(
        input_ids=torch.cat(parts),
        positions=torch.cat([torch.arange(n) for n in lengths]),
        lengths=lengths,
        predicts=torch.arange(sum(lengths)) if predicts is None else predicts,
    )


def packed(lengths=LENGTHS, *, seed=0) -> Packed:
    """Random tokens; what is predicted is some of each sequence, not in order."""
    generator = torch.Generator().manual_seed(seed)
    length = sum(lengths)
    ids = torch.randint(6, 56, (length,), generator=generator)
    return laid(ids.split(list(lengths)), predicts=torch.randperm(length, generator=generator)[: length // 2])


def alone(policy: Policy, batch: Packed) -> torch.Tensor:
    """One forward pass a sequence, no mask, no padding."""
    parts = batch.input_ids.split(batch.lengths)
    return torch.cat([policy.base.base_model(ids[None]).last_hidden_state[0] for ids in parts])[batch.predicts]


def gradients(policy: Policy, states) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    hidden = states()
    (hidden * torch.linspace(-0.5, 1, hidden.numel()).view_as(hidden)).sum().backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def lora_policy(family="qwen3", *, dropout=0.0, random_factors=True) -> Policy:
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear", init_lora_weights=not random_factors)
    return Policy(get_peft_model(tiny_model(family), config), tiny_tokenizer())


def state_policy(config) -> Policy:
    """A model whose layers carry something along the sequence, with weights large enough to notice."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return Policy(model.eval(), tiny_tokenizer())


COMMON = {"vocab_size": 56, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
STATE = {
    "mamba": MambaConfig(**COMMON, state_size=4),
    "lfm2": Lfm2Config(**COMMON, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, layer_types=["conv", "full_attention"]),
}


@pytest.mark.parametrize("layout", ["rows", "packed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_sequence_is_read_as_if_alone(family, layout):
    policy, batch = tiny_policy(family), packed()
    policy.layout = layout
    torch.testing.assert_close(policy.hidden(batch), alone(policy, batch), atol=2e-5, rtol=1e-5)
    together, apart = (gradients(policy, states) for states in (lambda: policy.hidden(batch), lambda: alone(policy, batch)))
    assert together.keys() == apart.keys()
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, apart[name], atol=1e-4 * max(float(apart[name].abs().max()), 1.0), rtol=1e-4, msg=name)


def with_prompts(*, prompts=(30, 7, 30, 1), copies=3, longest=20, seed=0) -> Packed:
    """Sequences that begin with one of a few prompts, not side by side; their ends are ragged, and each begins one that the next has too."""
    generator = torch.Generator().manual_seed(seed)
    heads = [torch.randint(6, 56, (n,), generator=generator) for n in prompts]
    ends = [torch.randint(6, 56, (longest + 1,), generator=generator) for _ in prompts]
    parts = []
    for c in range(copies):
        for number, (head, end) in enumerate(zip(heads, ends, strict=True)):
            own = torch.randint(6, 56, (1 + (7 * c + 3 * number) % longest,), generator=generator)
            # every second one goes on as its prompt's others do, for a while
            parts.append(torch.cat([head, end[: len(own) // 2], own] if c % 2 else [head, own]))
    length = sum(map(len, parts))
    return laid(parts, predicts=torch.randperm(length, generator=generator)[: length // 2])


def repeated(batch: Packed) -> Packed:
    """The same sequences once more, and of each the first half."""
    parts = batch.input_ids.split(batch.lengths)
    return laid([*parts, *parts, *(part[: (len(part) + 1) // 2] for part in parts)])


def read_tokens(policy: Policy) -> list[int]:
    """Tokens, padding included, of every pass from now on."""
    seen: list[int] = []
    policy.base.get_input_embeddings().register_forward_hook(lambda module, given, out: seen.append(given[0].numel()))
    return seen


@pytest.mark.parametrize("again", [False, True], ids=["", "repeated"])
@pytest.mark.parametrize("copies", [3, 14], ids=["one group", "several"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_sequences_begin_with_is_read_once_and_nothing_else_changes(family, copies, again):
    """States and gradients, through several levels of what is common; a model with windows or states reads every sequence whole."""
    policy, batch = tiny_policy(family), with_prompts(copies=copies, longest=70)
    batch = repeated(batch) if again else batch
    assert shared_tree(batch).depth >= 2 + (copies > 3)
    seen = read_tokens(policy)
    found = policy.hidden(batch)
    assert (sum(seen) < sum(batch.lengths)) == policy.shares_prefixes == plain_cache(policy.base.config)
    torch.testing.assert_close(found, alone(policy, batch), atol=2e-5, rtol=1e-5)
    together, apart = (gradients(policy, states) for states in (lambda: policy.hidden(batch), lambda: alone(policy, batch)))
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, apart[name], atol=1e-4 * max(float(apart[name].abs().max()), 1.0), rtol=1e-4, msg=name)


def test_sequences_are_read_whole_where_sharing_saves_little_or_activations_are_checkpointed():
    assert all(shared_tree(batch).depth == 1 for batch in (with_prompts(prompts=(3,), copies=3, longest=90), packed()))
    policy, batch = tiny_policy(), with_prompts()
    assert shared_tree(batch).depth > 1
    seen = read_tokens(policy)
    policy.base.gradient_checkpointing_enable()
    policy.train()
    policy.hidden(batch)
    assert sum(seen) >= sum(batch.lengths)


@pytest.mark.parametrize("name", STATE)
def test_rows_are_exact_for_layers_with_a_state(name):
    policy, batch = state_policy(STATE[name]), packed((5, 20, 1, 17))
    torch.testing.assert_close(policy.hidden(batch), alone(policy, batch), atol=2e-5, rtol=1e-5)
    check_head(policy)
    check_layout(policy)


@pytest.mark.parametrize("name", STATE)
def test_a_state_that_leaks_between_packed_sequences_stops_the_run(name):
    policy = state_policy(STATE[name])
    policy.layout = "packed"
    with pytest.raises(ValueError, match=r'set model\.layout = "rows"'):
        check_layout(policy)


def test_the_token_behind_padding_changes_nothing():
    """The same sequence beside a longer one and beside none: equal states, so padding is never read."""
    policy = tiny_policy()
    short = packed((6,), seed=3)
    longer = packed((30,), seed=4)
    both = laid([short.input_ids, longer.input_ids], predicts=short.predicts)
    assert len(row_groups(both.lengths, each=64)) == 1
    torch.testing.assert_close(policy.hidden(both), policy.hidden(short), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [tiny_policy, lora_policy], ids=["whole", "lora"])
def test_gradient_checkpointing_changes_no_gradient(make):
    policy, batch = make(), packed()
    policy.train()
    plain = gradients(policy, lambda: policy.hidden(batch))
    policy.base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        policy.hidden(batch)
    again = gradients(policy, lambda: policy.hidden(batch))
    policy.base.gradient_checkpointing_disable()
    whole: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: whole.append(t.numel()) or t, lambda t: t):
        policy.hidden(batch)
    assert sum(kept) < 0.5 * sum(whole)
    assert plain.keys() == again.keys() and plain
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6 * max(float(gradient.abs().max()), 1.0), rtol=1e-5, msg=name)


def test_bf16_computes_near_fp32_and_trains_fp32_weights():
    fp32, batch = tiny_policy("llama"), packed()
    bf16 = Policy(fp32.model, fp32.tokenizer, autocast=torch.bfloat16)
    assert bf16.dtype == torch.bfloat16
    one, other = (policy(lambda hidden, head: head(hidden), batch) for policy in (fp32, bf16))
    assert other.dtype == torch.float32 and not torch.equal(one, other)
    assert (other - one).norm() < 0.04 * one.norm()
    other.sum().backward()
    assert {p.grad.dtype for p in bf16.parameters()} == {torch.float32}


def test_base_weights_are_untouched_under_an_adapter():
    base, adapted, batch = tiny_policy(), lora_policy(), packed()
    assert not torch.allclose(adapted.hidden(batch), base.hidden(batch), atol=1e-2)
    with adapted.adapters_off():
        assert torch.equal(adapted.hidden(batch), base.hidden(batch))
    assert [n for n, p in adapted.named_parameters() if p.requires_grad] and all("lora_" in n for n, p in adapted.named_parameters() if p.requires_grad)


def test_a_second_adapter_begins_at_the_students_in_fp32_and_goes_its_own_way():
    policy, batch = lora_policy(), packed()
    policy.to(torch.bfloat16)
    trainable = [n for n, p in policy.named_parameters() if p.requires_grad]
    policy.add_adapter("teacher")
    assert [n for n, p in policy.named_parameters() if p.requires_grad] == trainable, "only the student's is trained"
    student, teacher = policy.adapter_parameters("default"), policy.adapter_parameters("teacher")
    assert student.keys() == teacher.keys() and student
    assert all(torch.equal(teacher[n], student[n].float()) and teacher[n].dtype == torch.float32 for n in student)
    before = policy.hidden(batch)
    with torch.no_grad():
        for parameter in teacher.values():
            parameter.mul_(0.5)
    assert torch.equal(policy.hidden(batch), before), "the student does not read the teacher's factors"
    with policy.use_adapter("teacher"), torch.no_grad():
        assert not torch.allclose(policy.hidden(batch), before, atol=1e-2)
    assert torch.equal(policy.hidden(batch), before)
    assert [n for n, p in policy.named_parameters() if p.requires_grad] == trainable


def test_a_reader_that_raises_leaves_the_students_adapter_in_place():
    policy, batch = lora_policy(), packed((4, 3))
    before = policy.hidden(batch)
    policy.add_adapter("teacher")
    with torch.no_grad():
        next(iter(policy.adapter_parameters("teacher").values())).zero_()
    with pytest.raises(KeyboardInterrupt), policy.use_adapter("teacher"):
        raise KeyboardInterrupt
    assert torch.equal(policy.hidden(batch), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_supported_families_pass_the_checks(family):
    policy = tiny_policy(family, vocab=64)
    assert check_head(policy) < 1e-5 and check_layout(policy) < 1e-4


def test_a_head_that_is_not_the_models_is_refused():
    policy = tiny_policy("cohere")
    policy.base.config.logit_scale = 0.5
    with pytest.raises(ValueError, match="CohereForCausalLM is not supported"):
        check_head(policy)


def test_checks_do_not_mind_dropout_and_leave_the_mode_alone():
    policy = lora_policy(dropout=0.5)
    policy.train()
    check_head(policy)
    check_layout(policy)
    assert policy.training and policy.model.training


def test_a_vocabulary_with_holes_keeps_its_last_token():
    """Tokens may stand behind unused rows; counting them would cut the last ones off."""
    words = {"<unk>": 0, "<end>": 1, "w": 7, "last": 60}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")), eos_token="<end>")
    assert len(tokenizer) == 4
    assert Policy(tiny_model(vocab=64), tokenizer).vocab_size == 61


def test_embeddings_ask_for_no_gradient_under_gradient_checkpointing():
    policy = tiny_policy()
    plain = policy.embed([3, 1, 4])
    policy.base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with torch.no_grad():
        assert policy.base.get_input_embeddings()(torch.tensor([3])).requires_grad, "the hook that this is about"
    found = policy.embed([3, 1, 4])
    assert not found.requires_grad and torch.equal(found, plain)


def test_a_sequence_beyond_the_models_positions_is_refused():
    policy = tiny_policy()
    policy.base.config.max_position_embeddings = 80
    with pytest.raises(ValueError, match="has 90 tokens, above the model's 80 positions"):
        policy.hidden(packed())
