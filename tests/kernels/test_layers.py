"""Layers in fewer passes: the numbers of transformers' own, the same files, and no layer taken for what it is not."""

import copy
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import FAMILIES, tiny_model
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm, apply_rotary_pos_emb
from transformers.models.seed_oss.modeling_seed_oss import SeedOssMLP

from selfdistill.kernels import layers
from selfdistill.kernels.rotary import rotary, where_it_suits


def gradients(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    states = model.base_model(ids).last_hidden_state if hasattr(model, "base_model") else model(ids)
    (states * states.detach().cos()).sum().backward()
    return {"states": states.detach()} | {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def quick_and_plain(family: str) -> tuple[nn.Module, nn.Module]:
    plain = tiny_model(family)
    quick = copy.deepcopy(plain)
    layers.quicken(quick)
    return quick, plain


@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_every_gradient_are_the_models_own(family):
    quick, plain = quick_and_plain(family)
    ids = torch.randint(6, 50, (4, 20), generator=torch.Generator().manual_seed(0))
    ours, theirs = gradients(quick, ids), gradients(plain, ids)
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5 * max(1.0, float(value.abs().max())), msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family, norms", [("qwen3", True), ("llama", True), ("granite", True), ("gemma2", False), ("cohere", False), ("phi", False)])
def test_a_layer_is_known_by_what_it_computes(family, norms):
    quick, plain = quick_and_plain(family)
    swapped = {type(m).__name__ for m in quick.modules() if getattr(m, "quickened", False)}
    assert any("RMSNorm" in name for name in swapped) == norms
    assert [type(m).__name__ for m in quick.modules()] == [type(m).__name__ for m in plain.modules()], "transformers goes by names"
    assert quick.state_dict().keys() == plain.state_dict().keys()
    layers.quicken(quick)
    assert {type(m).__name__ for m in quick.modules() if getattr(m, "quickened", False)} == swapped, "a second time changes nothing"


def test_a_norm_that_only_looks_like_one_is_left_alone():
    class ShiftedRMSNorm(Qwen3RMSNorm):
        def forward(self, hidden_states):
            return super().forward(hidden_states) + 0.01

    model = nn.ModuleList([ShiftedRMSNorm(8), GemmaRMSNorm(8), Qwen3RMSNorm(8)])
    layers.quicken(model)
    assert [getattr(m, "quickened", False) for m in model] == [False, False, True]


def mlp(kind: type[nn.Module], **settings: object) -> nn.Module:
    torch.manual_seed(0)
    return kind(SimpleNamespace(hidden_size=16, intermediate_size=24, mlp_bias=False, **{"hidden_act": "silu", "residual_dropout": 0.1} | settings))


class Limited(Qwen3MLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x).clamp(-7, 7))


class Scaled(Qwen3MLP):
    def __init__(self, config):
        super().__init__(config)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return super().forward(x) * self.scale


class LimitedMLP(Limited):
    """A limit that small states never meet."""


class ScaledMLP(Scaled):
    """A scale that begins at 1."""


@pytest.mark.parametrize(
    "made, known",
    [
        (lambda: mlp(Qwen3MLP), True),
        (lambda: mlp(Qwen3MLP, hidden_act="gelu"), False),
        (lambda: mlp(Qwen3MLP, hidden_act="gelu").bfloat16(), False),
        (lambda: mlp(LimitedMLP), False),
        (lambda: mlp(ScaledMLP), False),
        (lambda: mlp(SeedOssMLP), False),
    ],
    ids=["plain", "gelu", "gelu in bf16", "limited", "scaled", "dropout"],
)
@pytest.mark.parametrize("zero", [False, True])
def test_an_mlp_is_known_by_its_parts_and_values_whatever_its_weights(made, known, zero):
    model = made()
    if zero:
        nn.init.zeros_(model.down_proj.weight)
    layers.quicken(model)
    assert getattr(model, "quickened", False) == known


def test_adapters_with_dropout_move_no_random_number():
    model = get_peft_model(tiny_model("qwen3"), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False)).train()
    torch.manual_seed(3)
    layers.quicken(model)
    assert sum(getattr(m, "quickened", False) and "MLP" in type(m).__name__ for m in model.modules()) == 2
    drawn = torch.rand(())
    torch.manual_seed(3)
    assert torch.rand(()) == drawn


def test_one_row_without_a_batch():
    x, weight = torch.randn(8, requires_grad=True), torch.ones(8, requires_grad=True)
    layers.rms_norm(x, weight, 1e-6).sum().backward()
    assert x.grad is not None and weight.grad is not None and weight.grad.shape == (8,)


@pytest.mark.parametrize("family, rotates", [("qwen3", True), ("llama", True), ("granite", True), ("phi", True), ("gemma2", True), ("cohere", False)])
def test_rotary_positions_of_two_halves_are_known(family, rotates):
    """Cohere rotates neighbours."""
    quick, _ = quick_and_plain(family)
    found = [getattr(m, "quickened", False) for m in quick.modules() if type(m).__name__.endswith("Attention")]
    assert found and all(x == rotates for x in found)


def test_a_rotation_is_that_of_transformers_and_its_gradient_exact():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, generator=draw)
    cos, sin = (torch.randn(2, 5, 8, dtype=torch.float64, generator=draw) for _ in range(2))
    for given in (x, x.transpose(1, 2).contiguous().transpose(1, 2), x.repeat(1, 1, 1, 2)[..., 4:12]):
        made = rotary(given, cos[:, None], sin[:, None])
        torch.testing.assert_close(made, apply_rotary_pos_emb(given, given, cos, sin)[0])
    assert torch.autograd.gradcheck(lambda x: rotary(x, cos[:, None], sin[:, None]), x.requires_grad_())


def test_positions_that_are_trained_or_of_another_type_take_the_models_own_rotation():
    turn = where_it_suits(apply_rotary_pos_emb)
    q = torch.randn(1, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    cos, sin = torch.randn(1, 3, 8, requires_grad=True), torch.randn(1, 3, 8)
    turn(q, q, cos, sin)[0].sum().backward()
    assert cos.grad is not None and bool(cos.grad.any())
    for given in ((q.bfloat16(), q.bfloat16(), cos, sin), (q, q, cos[0, None], sin, 1)):
        assert torch.equal(turn(*given)[0], apply_rotary_pos_emb(*given)[0])


def test_a_norms_gradient_is_exact():
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    weight = torch.linspace(0.5, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: layers.rms_norm(a, b, 1e-6), (x, weight))
    assert torch.autograd.gradcheck(layers.gated, (x, (x.detach() * 0.3).requires_grad_()))
    down = torch.randn(4, 8, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(layers.gated_linear, (x, (x.detach() * 0.3).requires_grad_(), down))


def test_who_listens_to_the_last_product_of_an_mlp_hears_it():
    quick, _ = quick_and_plain("qwen3")
    down = quick.model.layers[0].mlp.down_proj
    ids, heard = torch.randint(6, 50, (2, 12), generator=torch.Generator().manual_seed(0)), []
    alone = gradients(quick, ids)
    down.register_forward_hook(lambda layer, given, made: heard.append(given[0].shape[-1]))
    with_hook = gradients(quick, ids)
    assert heard == [down.in_features]
    assert all(torch.equal(alone[name], with_hook[name]) for name in alone), "made again, the product is the same to the last bit"


def test_an_mlp_calls_its_last_product_where_somebody_has_put_another_in_its_place():
    quick, plain = quick_and_plain("qwen3")
    ids, heard = torch.randint(6, 50, (2, 12), generator=torch.Generator().manual_seed(0)), []
    for model in (quick, plain):
        down = model.model.layers[0].mlp.down_proj
        down.forward = lambda x, layer=down: heard.append(1) or nn.functional.linear(x, 2 * layer.weight)
    ours, theirs = gradients(quick, ids), gradients(plain, ids)
    assert len(heard) == 2
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5 * max(1.0, float(value.abs().max())))
    with torch.nn.modules.module.register_module_forward_hook(lambda module, *_: heard.append(module)):
        gradients(quick, ids)
    assert quick.model.layers[1].mlp.down_proj in heard


COMPILED = """
import copy, torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from selfdistill.kernels.layers import quicken
torch.manual_seed(0)
sizes = {"vocab_size": 56, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
plain = Qwen3ForCausalLM(Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=2))
quick, ids = copy.deepcopy(plain), torch.randint(56, (2, 12))
quicken(quick)
assert type(quick.model.layers[0].self_attn) is not type(plain.model.layers[0].self_attn)
compiled = torch.compile(quick, backend="aot_eager", fullgraph=True)
torch.testing.assert_close(compiled(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-5)
compiled(ids).logits.square().sum().backward(), plain(ids).logits.square().sum().backward()
for one, other in zip(quick.parameters(), plain.parameters(), strict=True):
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)
"""


def test_a_compiled_model_takes_its_own_layers():
    """Fewer heads of keys than of queries. Apart from here, where shapes are checked, which no compiler reads."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_less_is_kept_for_backward():
    quick, plain = quick_and_plain("qwen3")
    ids = torch.randint(6, 50, (4, 20), generator=torch.Generator().manual_seed(0))

    def kept(model: nn.Module) -> int:
        storages: dict[int, int] = {}
        parameters = {p.data_ptr() for p in model.parameters()}

        def pack(t: torch.Tensor) -> torch.Tensor:
            if t.data_ptr() not in parameters:
                storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            states = model.base_model(ids).last_hidden_state
        assert states.requires_grad
        return sum(storages.values())

    assert kept(quick) < 0.68 * kept(plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_other_types_and_autocast_are_the_models_own_to_the_last_bit(dtype):
    quick, plain = (m.to(dtype) for m in quick_and_plain("qwen3"))
    ids = torch.randint(6, 50, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.float32), torch.no_grad():
        assert torch.equal(quick(ids).logits, plain(ids).logits)


def test_adapters_go_inside_and_merge():
    quick, plain = quick_and_plain("qwen3")
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    ids, made = torch.randint(6, 50, (2, 12), generator=torch.Generator().manual_seed(0)), []
    for model in (quick, plain):
        torch.manual_seed(0)
        adapted = get_peft_model(model, config)
        layers.quicken(adapted) if model is quick else None
        with torch.no_grad():
            made.append([adapted(ids).logits, adapted.merge_and_unload()(ids).logits])
    for ours, theirs in zip(*made, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_model_is_saved_as_it_was(tmp_path):
    quick, plain = quick_and_plain("qwen3")
    for name, model in (("quick", quick), ("plain", plain)):
        model.save_pretrained(tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "quick" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()


def test_a_model_can_be_pickled():
    quick, _ = quick_and_plain("qwen3")
    ids = torch.randint(6, 50, (2, 12), generator=torch.Generator().manual_seed(0))
    again = pickle.loads(pickle.dumps(quick))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, quick(ids).logits)
