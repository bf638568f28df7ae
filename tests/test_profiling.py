"""Where time goes: work counted by formula is what torch's counter sees, and a watched run is the run that nobody watched, with a folder more."""

import gzip
import json

import pytest
import torch
from test_resume import LORA, base, settings  # noqa: F401
from tiny_models import tiny_groups, tiny_model, tiny_policy, tiny_tokenizer
from torch.utils.flop_counter import FlopCounterMode

from selfdistill import profiling
from selfdistill.flops import Cost, step_flops
from selfdistill.kernels import products
from selfdistill.loading import Lora, load_policy
from selfdistill.methods import hsd
from selfdistill.models import Policy
from selfdistill.profiling import LEARNING, WRITTEN_PASSES
from selfdistill.reading import start_readers
from selfdistill.runner import execute
from selfdistill.samples import training_samples
from selfdistill.trainer import PHASES

LENGTH = 24


def counted(policy: Policy) -> tuple[int, int]:
    """(forward, backward) of one sequence through layers and head, attention as plain products."""
    policy.base.set_attn_implementation("eager")
    ids = torch.randint(6, 56, (1, LENGTH))
    with FlopCounterMode(display=False) as forward:
        logits = policy.head(policy.base.base_model(ids).last_hidden_state[0])
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.fixture
def adapted(tmp_path) -> Policy:
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return load_policy(str(tmp_path), lora=Lora(r=4, alpha=8))


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma2", "phi"])
def test_the_formula_is_what_torch_counts(family):
    policy = tiny_policy(family)
    cost = Cost.of(policy)
    forward, backward = counted(policy)
    # torch counts every pair of a query and a key, the formula those that a causal model looks at
    unseen = cost.attention * LENGTH**2 / 2
    assert forward == cost.forward(LENGTH) + cost.logits(LENGTH) + unseen
    assert backward == cost.backward(LENGTH) + 2 * cost.logits(LENGTH) + 2 * unseen


def test_an_adapter_spares_the_gradient_of_what_is_frozen(adapted):
    cost = Cost.of(adapted)
    assert cost.trained < 0.2 * cost.weights and not cost.head_trained
    forward, backward = counted(adapted)
    unseen = cost.attention * LENGTH**2 / 2
    assert forward == cost.forward(LENGTH) + cost.logits(LENGTH) + unseen
    # no gradient flows below the first layer, which the formula does not know
    attention = adapted.base.base_model.layers[0].self_attn
    first = sum(m.base_layer.weight.numel() + m.lora_A["default"].weight.numel() for m in (attention.q_proj, attention.k_proj, attention.v_proj))
    assert backward == cost.backward(LENGTH) + cost.logits(LENGTH) + 2 * unseen - 2 * first * LENGTH


def test_a_step_works_once_on_every_row():
    policy, method = tiny_policy(), hsd()
    groups, cost = tiny_groups(policy), Cost.of(policy)
    samples = training_samples(groups, method, encode=policy.chat.encode)
    found = step_flops(groups, samples, policy=policy, readers=start_readers(method, policy), updates=2)
    lengths = [len(r.prompt_ids) + len(r.completion_ids) for g in groups for r in g.rollouts]
    assert found["student forward"] == pytest.approx(2 * sum(map(cost.forward, lengths)))
    assert found["student backward"] == pytest.approx(2 * found["student forward"])
    views = [len(s.views[role].prompt_ids) + len(s.rollout.completion_ids) for s in samples for role in s.views]
    assert found["teachers"] == pytest.approx(2 * sum(map(cost.forward, [*views, *lengths])))
    once = [cost.forward(len(g.rollouts[0].prompt_ids)) for g in groups]
    again = sum(map(cost.forward, lengths)) - sum(n * len(g.rollouts) for n, g in zip(once, groups, strict=True))
    written = sum(len(r.completion_ids) for g in groups for r in g.rollouts)
    assert found["sampling"] == pytest.approx(sum(once) + again + cost.logits(written))


@pytest.mark.parametrize("changes", [{}, LORA, {"updates_per_step": 2}, {"sampling.max_completion_length": WRITTEN_PASSES + 16}], ids=str)
def test_a_watched_run_learns_the_same_and_leaves_traces(base, tmp_path, capsys, changes):  # noqa: F811
    plain = execute(settings(base, tmp_path, output_dir=str(tmp_path / "plain"), **changes))
    capsys.readouterr()
    watched = execute(settings(base, tmp_path, profile=True, **changes))
    said = capsys.readouterr().out
    assert not (plain / "profile").exists()
    for one, other in zip(*((run / "metrics.jsonl").read_text().splitlines() for run in (plain, watched)), strict=True):
        assert json.loads(one)["loss"] == json.loads(other)["loss"]

    found = json.loads((watched / "profile" / "profile.json").read_text())
    assert found["step"] == 2 and list(found["phases"]) == list(PHASES)
    phases, work = found["phases"], found["work"]
    parts = sum(work[name]["seconds"] for name in ("teachers", "student forward", "scoring", "student backward"))
    assert all(w["seconds"] > 0 and w["flops"] > 0 and 0 < w["utilisation"] < 1.5 for w in work.values())
    assert parts == pytest.approx(sum(phases[name] for name in LEARNING), rel=0.25)
    assert all(phase in said for phase in PHASES) and "GFLOP/s" in said and "aten::" in said

    ranges = {which: names_of(watched / "profile" / f"step_000003_{which}.json.gz") for which in ("sampling", "annotating", "learning")}
    assert ranges["sampling"] == {"sample"} and ranges["annotating"] == {"grade", "annotate"}
    assert ranges["learning"] == {*PHASES[PHASES.index("teach") :], "teachers", "student forward"}


def names_of(path) -> set[str]:
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return {e["name"] for e in events if e.get("cat") == "user_annotation" and not e["name"].startswith(("PyTorch", "Optimizer."))}


@pytest.mark.parametrize("steps", [1, 2])
def test_a_short_run_is_watched_at_its_last_step(base, tmp_path, steps):  # noqa: F811
    run = execute(settings(base, tmp_path, profile=True, steps=steps))
    assert json.loads((run / "profile" / "profile.json").read_text())["step"] == steps
    assert (run / "profile" / f"step_{steps:06d}_learning.json.gz").is_file()


def test_two_models_are_refused_before_anything_is_written(base, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="one model"):
        execute(settings(base, tmp_path, profile=True, peer=str(base)))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch was built without oneDNN")
def test_products_by_onednn_are_among_the_operators(monkeypatch):
    monkeypatch.setattr(products, "AVAILABLE", True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        products.linear(torch.randn(512, 64), torch.randn(128, 64))
    table = profiling._operators(recorded, "learning")
    assert table is not None and "mkldnn::_linear_pointwise" in list(table.columns[0].cells)
