"""Settings: what a recipe and the command line may say, and the one sentence for what they may not."""

import tomllib
from pathlib import Path

import pytest

from selfdistill.cli.overrides import parse_overrides
from selfdistill.config import Settings, load_settings, make_settings, read_settings, save_settings
from selfdistill.conversations import RawSharded
from selfdistill.divergences import JSD
from selfdistill.method import Method
from selfdistill.method_names import PARTS, build_conversation, build_method
from selfdistill.methods import WRAPPERS, grpo_plus, hsd, opsd, rcsd, sgsd, topd
from selfdistill.policy_losses import ClippedRatio
from selfdistill.recipes import read_recipe, shipped
from selfdistill.retrieval import Nearest, SentenceTransformer
from selfdistill.rubrics import QuestionRubric
from selfdistill.setting_names import keys
from selfdistill.skills import WrittenLessons
from selfdistill.teachers import EMA, External, Frozen, Live
from selfdistill.writers import Checkpoint, Student, Teacher

ROOT = Path(__file__).parents[1]
RECIPES = sorted(set(shipped()) - {"tiny_base"})


def method_of(settings):
    return build_method(settings.method.name, settings.method.arguments, max_completion_length=settings.sampling.max_completion_length)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"stepz": 5}, "there is no key 'stepz'; did you mean 'steps'?"),
        ({"sampling": {"temprature": 0.5}}, "there is no key 'sampling.temprature'; did you mean 'sampling.temperature'?"),
        ({"lr": 1e-3}, "there is no key 'lr'; did you mean 'optimizer.lr'?"),
        ({"temperature": 0.5}, "did you mean 'sampling.temperature' or 'eval.temperature'?"),
        ({"model": {"lora": {"rank": 8}}}, "there is no key 'model.lora.rank'; did you mean 'model.lora.r'?"),
        ({"eval": {"zzz": 1}}, "there is no key 'eval.zzz'; known here: eval.at_end, eval.batch_size"),
        ({"zzz": 1}, "known here: checkpoint_every, eval, keep_checkpoints, log_samples_every, method, mini_batches, model, optimizer, output_dir, p"),
        ({"mini_batches": 8, "prompts_per_step": 4}, "mini_batches = 8: must not exceed prompts_per_step = 4; lower it, or raise prompts_per_step"),
        ({"steps": "many"}, "steps = 'many'"),
        ({"steps": True}, "steps = True: needs a number"),
        ({"output_dir": ""}, "output_dir = ''"),
        ({"steps": 0}, "steps = 0: input should be greater than or equal to 1"),
        ({"sampling": {"top_p": 1.5}}, "sampling.top_p = 1.5: input should be less than or equal to 1"),
        ({"model": {"dtype": "fp8"}}, "model.dtype = 'fp8': input should be 'float32' or 'bfloat16'"),
        ({"trackers": ["tensorbord"]}, "'tensorboard', 'wandb' or 'trackio'"),
        ({"model": {"lora": 5}}, "model.lora = 5"),
    ],
)
def test_a_wrong_setting_is_one_sentence_with_the_nearest_name(data, said):
    with pytest.raises(ValueError, match=r"^mine\.toml: ") as caught:
        make_settings(data, {}, origin="mine.toml")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_every_known_key_is_documented_and_found_again():
    names = keys(Settings)
    assert all(info.description for info in names.values()), [name for name, info in names.items() if not info.description]
    assert {"model.lora.r", "optimizer.lr", "eval.at_end", "steps", "task.templates"} <= names.keys()
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert not [name for name in names if f"`{name}`" not in page]


def test_a_name_alone_stands_for_its_table():
    short = make_settings({"method": "opsd", "task": "arithmetic", "model": "tiny", "trackers": "wandb"}, {})
    long = {"method": {"name": "opsd"}, "task": {"name": "arithmetic"}, "model": {"path": "tiny"}, "trackers": ["wandb"]}
    assert short == make_settings(long, {})


def test_overrides_win_over_the_recipe_and_add_to_its_sections():
    recipe = {"method": {"name": "opsd", "clip": 0.1}, "model": "tiny", "sampling": {"top_k": 5, "top_p": 0.9}}
    given = parse_overrides(["--sampling.top_k", "7", "--model.lora.r", "4", "--steps=3", "--model.gradient_checkpointing", "--reward", "none"])
    found = make_settings(recipe, given)
    assert (found.sampling.top_k, found.sampling.top_p, found.steps, found.reward) == (7, 0.9, 3, None)
    assert found.model.path == "tiny" and found.model.lora.r == 4 and found.model.lora.alpha == 32 and found.model.gradient_checkpointing
    assert found.method.arguments == {"clip": 0.1}
    assert make_settings(recipe, {"method": "hsd"}).method.arguments == {}


@pytest.mark.parametrize("order", [["method.teacher", "method"], ["method", "method.teacher"]])
def test_a_new_method_keeps_its_own_arguments_in_any_order(order):
    values = {"method": "hsd", "method.teacher": "EMA(0.05)"}
    found = make_settings({"method": {"name": "opsd", "clip": 0.1}}, {key: values[key] for key in order})
    assert method_of(found) == hsd(teacher=EMA(0.05))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["steps", "5"], "unexpected argument 'steps'"),
        (["--steps", "5", "6"], "unexpected argument '6'"),
        (["--"], "unexpected argument '--'"),
        (["--optimizer.betas", "[0.9, 0.95"], r"--optimizer.betas '\[0.9, 0.95' never closes its '\['"),
        (["--task.columns={prompt = 'q'"], "--task.columns .* never closes its '{'"),
    ],
)
def test_what_is_not_a_key_and_its_value_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        parse_overrides(arguments)


def test_values_keep_their_types_and_words_stay_words():
    given = ["--a", "1e-3", "--b", "[1, 2]", "--c", "reasoning_gym:chain_sum", "--d", "false", "--e", "EMA(rate=0.05)", "--f", "-1", "--g=x=y"]
    assert parse_overrides(given) == {"a": 1e-3, "b": [1, 2], "c": "reasoning_gym:chain_sum", "d": False, "e": "EMA(rate=0.05)", "f": -1, "g": "x=y"}
    assert make_settings({}, {"output_dir": 2026}).output_dir == "2026"


@pytest.mark.parametrize("recipe", RECIPES)
def test_shipped_recipes_load_and_come_back_equal_from_a_run(recipe, tmp_path):
    settings = load_settings(recipe, {"method.teacher": "EMA(0.05)", "model.lora.target_modules": ["q_proj"]} if recipe == "hsd" else {})
    save_settings(settings, tmp_path / "settings.json")
    again = read_settings(tmp_path / "settings.json")
    assert again == settings
    if recipe != "grpo":
        assert method_of(again) == method_of(settings)
    assert settings.output_dir == f"runs/{recipe}"


def test_recipes_hold_the_papers_settings():
    opsd, pw, purified = (load_settings(name) for name in ("opsd", "pw_opsd", "purified_opsd"))
    assert (opsd.optimizer.lr, opsd.optimizer.max_grad_norm, opsd.prompts_per_step, opsd.sampling.num_generations, opsd.steps) == (5e-6, 0.1, 32, 1, 100)
    assert (opsd.sampling.temperature, opsd.sampling.top_p, opsd.sampling.top_k, opsd.sampling.max_completion_length) == (1.1, 0.95, 20, 1024)
    assert (opsd.model.lora.r, opsd.model.lora.alpha, opsd.sampling.thinking) == (64, 128, False)
    assert (opsd.eval.num_samples, opsd.eval.temperature, opsd.eval.top_p, opsd.eval.max_completion_length, opsd.eval.thinking) == (12, 1.0, 0.95, 38912, True)
    assert (pw.steps, purified.steps) == (150, 200)
    published = load_settings("hsd")
    assert (published.optimizer.lr, published.prompts_per_step, published.sampling.num_generations, published.steps) == (1e-6, 128, 8, 1500)
    assert (published.sampling.top_p, published.sampling.max_completion_length, published.optimizer.betas) == (0.95, 4096, (0.9, 0.95))
    assert published.model.lora is None and method_of(published) == hsd() and isinstance(method_of(published).teacher, Live)
    writer, reasoner = load_settings("rcsd_writer"), load_settings("rcsd")
    for stage in (writer, reasoner):
        assert (stage.optimizer.lr, stage.prompts_per_step, stage.sampling.temperature, stage.sampling.max_completion_length) == (5e-6, 32, 1.2, 4096)
        assert (stage.model.lora.r, stage.model.lora.alpha, stage.sampling.thinking) == (64, 128, True)
    rubrics = QuestionRubric(Checkpoint(f"{writer.output_dir}/checkpoints/step_{writer.steps:06d}", max_completion_length=4096))
    assert method_of(reasoner) == rcsd(rubrics=rubrics, with_reference=True, reason_first=Teacher(temperature=1.2, max_completion_length=4096))
    critique, outcome, process = (load_settings(name) for name in ("step_critique", "exprl", "exprl_process"))
    assert (critique.optimizer.lr, critique.prompts_per_step, critique.sampling.max_completion_length, critique.sampling.temperature) == (5e-6, 32, 2048, 1.1)
    assert (critique.model.lora.r, critique.model.lora.alpha, critique.sampling.thinking, method_of(critique).context.thinking) == (64, 128, False, True)
    for exprl, n, high in ((outcome, 10, 0.28), (process, 16, 0.26)):
        assert (exprl.optimizer.lr, exprl.prompts_per_step, exprl.sampling.num_generations) == (1e-6, 36, n)
        assert (exprl.sampling.temperature, exprl.sampling.max_completion_length) == (0.8, 16384)
        assert (method_of(exprl).policy_loss, method_of(exprl).reference_coef) == (ClippedRatio(0.2, high), 0.001)
    assert method_of(process).feedback[0].steps.marker in process.task.arguments["instruction"]
    transported = load_settings("topd")
    assert (transported.optimizer.lr, transported.optimizer.max_grad_norm, transported.optimizer.warmup_steps) == (2e-6, 1.0, 0.05 * transported.steps)
    assert (transported.sampling.max_completion_length, transported.sampling.num_generations * transported.prompts_per_step) == (8000, 4)
    assert method_of(transported) == topd(teacher=External("Qwen/Qwen3-30B-A3B"))
    skilled = load_settings("sgsd")
    assert (skilled.optimizer.lr, skilled.prompts_per_step, skilled.sampling.num_generations, skilled.steps) == (5e-6, 16, 1, 200)
    assert (skilled.model.lora.r, skilled.model.lora.alpha, skilled.sampling.thinking, method_of(skilled).context.thinking) == (64, 128, False, True)
    embedded = Nearest(SentenceTransformer("Qwen/Qwen3-Embedding-0.6B"))
    assert method_of(skilled) == sgsd(extractor=WrittenLessons(Student(max_completion_length=4096)), retrieval=embedded)
    assert (load_settings("sdpo").optimizer.lr, load_settings("sdft").optimizer.lr) == (1e-5, 2e-5)
    told = load_settings("ccopd")
    assert (told.optimizer.lr, told.model.lora.r, told.model.lora.alpha) == (3e-5, 16, 32)
    assert (told.sampling.temperature, told.sampling.top_p, told.sampling.max_completion_length) == (1.0, 0.95, 4096)
    assert 6000 <= told.steps * told.prompts_per_step / 4 <= 8000 and build_conversation(told.eval.conversation) == RawSharded()


def test_recipes_hold_what_the_papers_code_ran_where_the_papers_are_silent():
    """AdamW's decay rates, schedules, warm-up and sampling of the scripts that were released."""
    by_name = {name: load_settings(name) for name in ("opsd", "pw_opsd", "sgsd", "sdpo", "sdft", "rcsd", "exprl", "exprl_process")}
    assert {s.optimizer.betas for s in by_name.values()} == {(0.9, 0.999)}
    assert {name for name, s in by_name.items() if s.optimizer.schedule == "linear"} == {"pw_opsd", "sgsd"}
    assert {name for name, s in by_name.items() if s.optimizer.weight_decay == 0.01} == {"sdpo", "exprl", "exprl_process"}
    sdft, rcsd = by_name["sdft"], by_name["rcsd"]
    assert (sdft.optimizer.schedule, sdft.optimizer.warmup_steps, sdft.sampling.max_completion_length) == ("cosine", 0.1 * sdft.steps, 1024)
    assert (by_name["sdpo"].optimizer.warmup_steps, rcsd.sampling.top_p, rcsd.sampling.top_k) == (10, 0.95, 20)
    for exprl in (by_name["exprl"], by_name["exprl_process"]):
        assert method_of(exprl).feedback[0].judge.writer.path == exprl.model.path, "the judge is the policy before training"


def test_recipes_are_found_by_name_by_path_and_not_by_accident(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert load_settings("quickstart").method.name == "hsd"
    (tmp_path / "own.toml").write_text('method = "opsd"\nsteps = 3\n')
    assert load_settings("own.toml").steps == 3
    for name, said in (("quikstart", "did you mean 'quickstart'"), ("other.toml", "cannot be read: No such file")):
        with pytest.raises(ValueError, match=said):
            load_settings(name)
    (tmp_path / "broken.toml").write_text("steps = = 3")
    with pytest.raises(ValueError, match=r"is not TOML: .*line 1"):
        load_settings("broken.toml")


def test_the_root_shows_the_shipped_recipes():
    assert {p.relative_to(ROOT / "recipes").as_posix() for p in (ROOT / "recipes").glob("**/*.toml")} == {f"{name}.toml" for name in shipped()}
    assert read_recipe(str(ROOT / "recipes" / "quickstart.toml")) == tomllib.loads((ROOT / "recipes" / "quickstart.toml").read_text())


def test_parts_are_read_from_text_and_nothing_is_evaluated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = make_settings({"method": {"name": "grpo_plus(hsd)", "direction": "JSD(beta=0.3)", "distill_coef": 0.5}}, {})
    assert method_of(found) == grpo_plus(hsd(direction=JSD(0.3)), distill_coef=0.5)
    for text, said in (
        ("__import__('os').mkdir('x')", "neither a value nor a part"),
        ("EMO(0.05)", "there is no part 'EMO'; did you mean 'EMA'"),
        ("EMA(rat=0.05)", r"EMA\(rat=0.05\): "),
        ("EMA(0.05))", "not the call of a part"),
        ("EMA(2)", r"method\.teacher: EMA\(rate=2\): rate is the student's share a step and lies in \(0, 1\]"),
        ("EMA('fast')", r"method\.teacher: EMA\('fast'\): rate = 'fast' must be a number"),
        ("EMA()", r"method\.teacher: EMA\(\): missing a required argument: 'rate'"),
        ("EMA(0.05", r"method\.teacher: 'EMA\(0.05' never closes its '\('"),
        ("EMA(rate=[0.05)", r"never closes its '\['"),
        ("External('a(b'", r"never closes its '\('"),
    ):
        wrong = make_settings({"method": {"name": "hsd", "teacher": text}}, {})
        with pytest.raises(ValueError, match=said):
            method_of(wrong)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("hsd", {"teacher": "EMA"}, "method.teacher = 'EMA' must be a part of its kind, written as its call, like EMA(rate)"),
        ("hsd", {"teacher": "JSD()"}, "method.teacher = JSD(beta=0.5, clip=inf) must be a part of its kind, written as its call, like Live()"),
        ("hsd", {"direction": 3}, "method.direction = 3 must be a part of its kind, written as its call, like ForwardKL(clip=inf)"),
        ("hsd", {"peer": "Uniform()"}, "method.peer = Uniform(value=1.0) must be a part of its kind, written as its call, like Uniformly()"),
        ("hsd", {"direction": "TopK(JSD(), 2.5)"}, "method.direction: TopK(JSD(), 2.5): k = 2.5 must be a whole number"),
        ("hsd", {"failed_only": "yes"}, "method.failed_only = 'yes' must be true or false, like False"),
        ("opsd", {"clip": "abc"}, "method.clip = 'abc' must be a number, like 0.05"),
        ("opsd", {"clip": True}, "method.clip = True must be a number, like 0.05"),
        ("sdpo", {"top_k": 2.5}, "method.top_k = 2.5 must be a whole number, like 100"),
        ("grpo_plus(hsd)", {"distill_coef": "abc"}, "method.distill_coef = 'abc' must be a number, like 0.1"),
        ("test_config:noted", {"note": 5}, "method.note = 5 must be text"),
        ("test_config:shared", {"note": 5}, "method.note = 5 must be text, like 'x'"),
        ("test_config:noted", {}, "method 'test_config:noted' needs its argument 'note'; set method.note"),
        ("test_config:RECIPES", {}, "'test_config:RECIPES' must be a function that returns a selfdistill.Method, not a list"),
        ("grpo_plus()", {}, "method 'grpo_plus' wraps another one and is written around it, like grpo_plus(hsd)"),
        ("grpo_plus", {}, "method 'grpo_plus' wraps another one and is written around it, like grpo_plus(hsd)"),
        ("hsd(opsd)", {}, "method 'hsd' wraps no other one; those that do are " + ", ".join(w.__name__ for w in WRAPPERS)),
    ],
)
def test_a_value_of_another_type_names_the_knob_and_what_it_takes(name, arguments, said):
    with pytest.raises(ValueError) as caught:
        build_method(name, arguments, max_completion_length=8)
    assert str(caught.value) == said


def test_what_a_setting_may_name_does_something():
    idle = [name for name, part in PARTS.items() if not any(callable(getattr(part, way, None)) for way in ("__call__", "start", "extract"))]
    assert not idle and "EMA" in PARTS
    with pytest.raises(ValueError, match="there is no part 'Attempt'"):
        build_method("exprl", {"judge": "Attempt()"}, max_completion_length=8)


def test_whole_numbers_are_numbers_and_lists_from_recipes_are_tuples():
    assert build_method("opsd", {"clip": 1}, max_completion_length=8) == opsd(clip=1)
    assert build_method("test_config:shared", {"shares": [1, 0.5], "note": None}, max_completion_length=8) == Method(distill_coef=1.5)


def shared(*, shares: tuple[float, ...], note: str | None = "x", **others: object) -> Method:
    return Method(distill_coef=float(sum(shares)), teacher=Frozen() if note is None else Live())


def test_brackets_that_are_closed_quoted_or_in_plain_text_are_none_to_close():
    assert parse_overrides(["--output_dir", "runs (2"]) == {"output_dir": "runs (2"}
    found = make_settings({"method": {"name": "opd", "teacher": "External('a(b')"}}, {})
    assert method_of(found).teacher == External("a(b")
    assert build_method("test_config:noted", {"note": "first (see"}, max_completion_length=1) == Method(teacher=External("first (see"))


def noted(*, note: str) -> Method:
    return Method(teacher=External(note))


def test_a_misspelt_method_or_argument_names_the_nearest():
    with pytest.raises(ValueError, match="there is no method 'pwopsd'; did you mean 'pw_opsd'"):
        method_of(make_settings({"method": "pwopsd"}, {}))
    with pytest.raises(ValueError, match="method 'hsd' has no argument 'teachr'; did you mean 'teacher'"):
        method_of(make_settings({"method": {"name": "hsd", "teachr": 1}}, {}))


def test_a_run_without_settings_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not a run folder"):
        read_settings(tmp_path / "settings.json")


@pytest.mark.parametrize("key", ["steps", "seed", "optimizer.lr", "sampling.num_generations"])
def test_a_number_without_a_value_is_not_one(key):
    with pytest.raises(ValueError, match="needs a number"):
        make_settings({}, {key: True})
