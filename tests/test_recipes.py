"""Recipes on top of others, published decodings, and the testbed's recipe of every method."""

import inspect
import json
import math

import pytest

from selfdistill.config import load_settings, make_settings, read_settings, save_settings
from selfdistill.method import diff
from selfdistill.method_names import build_method, functions_of
from selfdistill.methods import METHODS, gspo, rlsd, sdpo_trust_region
from selfdistill.policy_losses import ClippedRatio
from selfdistill.recipes import read_recipe, shipped
from selfdistill.reductions import TokenMean

UNPUBLISHED = {"breaks_every", "control_share", "controls"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recipe_takes_the_rest_from_the_one_it_extends(here):
    (here / "sub").mkdir()
    (here / "sub" / "base.toml").write_text('extends = "quickstart"\nsteps = 7\n[method]\nname = "opsd"\nclip = 0.5\n[sampling]\ntop_k = 3\n')
    (here / "sub" / "own.toml").write_text('extends = "base.toml"\n[method]\nclip = 1.0\n[model]\ndtype = "bfloat16"\n[sampling]\ntop_p = 0.9\n')
    found = load_settings("sub/own.toml")
    assert (found.method.name, found.method.arguments, found.steps) == ("opsd", {"clip": 1.0}, 7)
    assert (found.sampling.top_k, found.sampling.top_p, found.sampling.num_generations) == (3, 0.9, 8)
    assert (found.model.path, found.model.dtype, found.optimizer.schedule) == ("tiny", "bfloat16", "linear")


def test_a_method_named_anew_takes_no_arguments_of_the_old_one(here):
    (here / "own.toml").write_text('extends = "testbed/opsd"\n[method]\nname = "hsd"\nfailed_only = true\n')
    assert load_settings("own.toml").method.arguments == {"failed_only": True}


def test_a_wrapper_around_the_recipes_own_method_keeps_its_arguments(here):
    """A null control of OPSD at clip 1 is not one of OPSD at its published clip."""
    for name in ("shuffled_context(opsd)", "grpo_plus(shuffled_context(opsd))"):
        assert load_settings("testbed/opsd", {"method": name}).method.arguments == {"clip": 1.0}
    (here / "own.toml").write_text('extends = "testbed/opsd"\nmethod = "no_clip(opsd)"\n')
    assert load_settings("own.toml").method.arguments == {"clip": 1.0}
    for other in ("pw_opsd", "shuffled_context(pw_opsd)", "opsd"):
        assert load_settings("testbed/opsd", {"method": other}).method.arguments == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('extends = "own.toml"', "extends itself, by way of own.toml"),
        ('extends = "quikstart"', "no recipe 'quikstart'.*did you mean 'quickstart'"),
        ("extends = 3", "extends = 3 must be the name of a recipe"),
        ('[eval]\ndecoding = "opds"', "eval.decoding = 'opds' is no published decoding; did you mean 'opsd'"),
    ],
)
def test_what_cannot_be_extended_is_a_sentence(here, text, said):
    (here / "own.toml").write_text(text)
    with pytest.raises(ValueError, match=said):
        load_settings("own.toml")


def test_a_runs_settings_are_a_recipe(here):
    settings = load_settings("testbed/rcsd", {"seed": 3, "eval.decoding": "hsd"})
    save_settings(settings, here / "settings.json")
    assert load_settings("settings.json") == settings
    (here / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"'broken.json' is not JSON"):
        read_recipe("broken.json")


def test_an_infinite_argument_is_kept(here):
    settings = load_settings("quickstart", {"method": "purified_opsd", "method.clip": math.inf})
    save_settings(settings, here / "settings.json")
    for again in (load_settings("settings.json"), read_settings(here / "settings.json"), make_settings(settings.model_dump(mode="json"), {})):
        assert again == settings and again.method.arguments == {"clip": math.inf}


def test_a_decoding_sets_what_is_not_given(here):
    """In a recipe, in Python, and on the command line over a run whose settings are all written out."""
    (here / "own.toml").write_text('[eval]\ndecoding = "opsd"\nnum_samples = 4\n')
    found = load_settings("own.toml").eval
    assert (found.num_samples, found.temperature, found.top_p, found.max_completion_length, found.thinking) == (4, 1.0, 0.95, 38912, True)
    assert make_settings({"eval": {"decoding": "hsd"}}, {}).eval.max_completion_length == 4096
    written = json.loads(load_settings("quickstart").model_dump_json())
    over = make_settings(written, {"eval.decoding": "opsd", "eval.temperature": 0.6}).eval
    assert (over.num_samples, over.temperature, over.top_p, over.num_problems) == (12, 0.6, 0.95, 250)
    kept = load_settings("opsd")
    assert kept.eval == make_settings({"eval": {"decoding": "opsd", "at_end": False, "batch_size": 16}}, {}).eval.model_copy(update={"decoding": None})


def method_of(settings):
    return build_method(settings.method.name, settings.method.arguments, max_completion_length=settings.sampling.max_completion_length)


def test_rlsd_holds_what_its_paper_ran():
    """2604.03128: 256 x 8 rollouts of 4096 tokens, lr 1e-6, clip 0.2 / 0.28, a mean over tokens, no KL to the start."""
    found = load_settings("rlsd")
    assert (found.prompts_per_step, found.sampling.num_generations, found.sampling.max_completion_length, found.optimizer.lr) == (256, 8, 4096, 1e-6)
    method = method_of(found)
    assert (method.policy_loss, method.reduction, method.reference_coef) == (ClippedRatio(0.2, 0.28), TokenMean(), 0.0)
    assert diff(method, rlsd()).keys() == {"policy_loss", "reduction"} and found.model.lora is None


def test_the_trust_region_is_sdpos_recipe_with_another_teacher():
    found, base = load_settings("sdpo_trust_region"), load_settings("sdpo")
    assert found.model_dump(exclude={"method", "output_dir"}) == base.model_dump(exclude={"method", "output_dir"})
    assert method_of(found) == sdpo_trust_region(mix=0.05)
    assert diff(method_of(found), method_of(base)).keys() == {"context", "teacher", "target"}


@pytest.mark.parametrize(("one", "other"), [("purified_opsd", "opsd"), ("rcsd_writer", "rcsd"), ("opcod", "sdpo")])
def test_what_a_paper_takes_from_another_is_taken_whole(one, other):
    assert load_settings(one).optimizer == load_settings(other).optimizer
    if one != "opcod":
        assert load_settings(one).sampling == load_settings(other).sampling


@pytest.mark.parametrize(
    ("name", "rollouts", "updates"),
    [("dapo", 512, 16), ("dr_grpo", 128, 8), ("opd", 32, 4), ("eopd", 32, 4), ("exprl", 180, 2), ("grpo_deepseekmath", 1024, 1), ("exprl_stage2", 512, 1)],
)
def test_an_update_has_as_many_rollouts_as_published(name, rollouts, updates):
    """2503.14476 section 4.1, 2503.20783's code, 2603.07079 table 9, 2606.17024's code, 2402.03300 section 4.2."""
    found = load_settings(name)
    assert found.prompts_per_step * found.sampling.num_generations == rollouts * updates
    assert found.mini_batches * found.updates_per_step == updates


def test_dapo_holds_what_its_paper_ran():
    """2503.14476, section 4.1: lr 1e-6, clip 0.2 / 0.28, 16,384 tokens and 4,096 at a falling reward, a warm-up over 20 steps."""
    found = load_settings("dapo")
    method = method_of(found)
    (overlong,) = method.feedback
    assert (found.optimizer.lr, method.policy_loss, found.optimizer.warmup_steps) == (1e-6, ClippedRatio(0.2, 0.28), 20 * found.mini_batches)
    assert (overlong.limit - overlong.buffer, overlong.buffer, method.reference_coef) == (16384, 4096, 0.0)


def test_gspo_clips_four_mini_batches_as_published():
    found = load_settings("gspo")
    assert found.mini_batches == 4 and method_of(found) == gspo()
    assert (gspo().policy_loss.clip_low, gspo().policy_loss.clip_high) == (3e-4, 4e-4)


@pytest.mark.parametrize(("stage", "before"), [("topd", "topd_warm_start"), ("exprl_stage2", "exprl"), ("rcsd", "rcsd_writer")])
def test_a_second_stage_begins_with_what_the_first_leaves_behind(stage, before):
    first = load_settings(before)
    last = f"{first.output_dir}/checkpoints/step_{first.steps:06d}"
    settings = load_settings(stage)
    assert last == settings.model.path or f"Checkpoint('{last}'" in settings.method.arguments["rubrics"]
    assert settings.model.path != last or not settings.model.lora, "what the first trained is trained on"


def test_eopd_is_its_baseline_and_the_gate():
    found, base = load_settings("eopd"), load_settings("opd")
    assert found.model_dump(exclude={"method", "output_dir"}) == base.model_dump(exclude={"method", "output_dir"})
    assert diff(method_of(found), method_of(base)).keys() == {"divergence", "token_weight"}


def test_hsd_is_measured_as_published():
    found = load_settings("hsd").eval
    assert (found.num_samples, found.temperature, found.top_p, found.max_completion_length) == (16, 1.0, 0.95, 4096)


@pytest.mark.parametrize("name", [n for n in shipped() if "/" not in n and n not in ("quickstart", "tiny_base", "smollm2_chain_sum")])
def test_a_papers_recipe_writes_out_defaults_and_says_where_they_are_from(name):
    """Arguments that are numbers are in the recipe, so that a changed default does not change a published setting."""
    settings = load_settings(name)
    parameters = [item for function in functions_of(settings.method.name) for item in inspect.signature(function).parameters.items()]
    numbers = {k for k, p in parameters if type(p.default) in (int, float) and k not in UNPUBLISHED}
    assert numbers <= settings.method.arguments.keys(), name
    assert shipped()[name].read_text().startswith("# ")


def test_every_method_has_a_recipe_for_the_testbed():
    own = [name for name in shipped() if name.startswith("testbed/")]
    settings = {name: load_settings(name) for name in own}
    assert {f.__name__ for f in METHODS} == {s.method.name for s in settings.values()} - {"grpo_plus(opsd)", "grpo_plus(hsd)", "grpo_blend(sdpo)"}
    for name, found in settings.items():
        build_method(found.method.name, found.method.arguments, max_completion_length=112)
        if found.peer:
            continue  # two models on a mix of domains are a table of their own
        assert (found.steps, found.prompts_per_step, found.sampling.num_generations, found.eval.num_problems, found.eval.every) == (15, 16, 8, 250, 0), name
        assert found.checkpoint_every == 5, "an interrupted comparison goes on"


def test_a_folder_is_no_recipe_but_a_run_in_it_has_one(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder; give a \.toml file"):
        read_recipe(str(tmp_path))
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match=r"give .*settings\.json, the settings of the run in it"):
        read_recipe(str(tmp_path))


def test_a_folder_called_like_a_recipe_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / "opsd").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_recipe("opsd")["output_dir"] == "runs/opsd"
