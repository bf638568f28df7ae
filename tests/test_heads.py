"""The head as a value: it says what the model itself says, for every kind of head that families have."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import FAMILIES, tiny_model, tiny_policy

from selfdistill.heads import Head

IDS = torch.tensor([[6, 9, 17, 40, 8, 55]])


def states(model) -> torch.Tensor:
    return model.base_model(IDS).last_hidden_state[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_head_value_is_the_models_own_logits(family):
    model = tiny_model(family)
    torch.testing.assert_close(Head.of(model)(states(model)), model(IDS).logits[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family, without", [("gemma2", {"softcap": None}), ("cohere", {"scale": 1.0}), ("granite", {"scale": 1.0}), ("phi", {"bias": None})])
def test_what_a_family_adds_to_the_product_matters(family, without):
    """A head has it, and one that forgot it would be far from the model's logits."""
    model = tiny_model(family)
    head, logits = Head.of(model), model(IDS).logits[0]
    assert (head(states(model)) - logits).abs().max() < 1e-5
    assert (replace(head, **without)(states(model)) - logits).abs().max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_models_own_logits(family):
    model = tiny_model(family)
    weights = torch.randn(IDS.shape[1], 56)
    gradients = []
    for logits in (lambda: Head.of(model)(states(model)), lambda: model(IDS).logits[0]):
        model.zero_grad()
        (logits() * weights).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-4, rtol=1e-4, msg=name)


def test_a_tied_head_is_the_embedding_itself():
    model = tiny_model("qwen3")
    head = Head.of(model, vocab_size=56)
    assert head.weight is model.get_input_embeddings().weight
    head(torch.randn(3, 32)).sum().backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_padded_rows_take_no_probability(family):
    policy = tiny_policy(family, vocab=64)
    with torch.no_grad():
        policy.base.lm_head.weight[56:] = 3 * policy.base.lm_head.weight[:8]
    hidden = states(policy.base)
    assert policy.vocab_size == 56
    torch.testing.assert_close(policy.head(hidden), policy.base(IDS).logits[0, :, :56], atol=1e-6, rtol=1e-6)
    assert policy.base(IDS).logits[0].softmax(-1)[:, 56:].sum(-1).max() > 0.1, "the padding would have mattered"
    torch.testing.assert_close(policy.head(hidden).softmax(-1).sum(-1), torch.ones(6))


def test_a_detached_head_sends_no_gradient():
    for family in ("llama", "phi"):
        head = Head.of(tiny_model(family)).detach()
        assert not head(torch.randn(2, 32)).requires_grad


def test_logits_are_fp32_whatever_the_weights_are():
    model = tiny_model("gemma2", dtype=torch.bfloat16)
    logits = Head.of(model)(states(model))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model(IDS).logits[0].float(), atol=0.03, rtol=0.02)


def test_adapters_below_the_head_are_read():
    model = tiny_model("llama")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    base = adapted.get_base_model()
    torch.testing.assert_close(Head.of(base)(states(base)), adapted(IDS).logits[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"target_modules": ["q_proj", "lm_head"]}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}])
def test_an_adapter_on_the_head_is_refused(options):
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=4, **options))
    with pytest.raises(ValueError, match=r"leave lm_head out of model\.lora\.target_modules"):
        Head.of(adapted.get_base_model())
