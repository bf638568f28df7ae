"""The command line from end to end on a tiny random model: what it leaves behind, what it says, and how it refuses."""

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_models import WORDS, tiny_model, tiny_tokenizer

import selfdistill
from selfdistill.cli import main
from selfdistill.cli.actions import out
from selfdistill.cli.overrides import parse_overrides
from selfdistill.config import load_settings
from selfdistill.evaluate import Evaluation
from selfdistill.method_names import build_method
from selfdistill.methods import METHODS, WRAPPERS

DIAGNOSTICS = ("credit", "blame", "gap", "markers", "leakage", "pmi", "transport", "viability", "judge")
RECIPE = """
method = "hsd"
task = "data.jsonl"
model = "base"
reward = "mine:reward"
steps = 3
prompts_per_step = 2
output_dir = "run"
log_samples_every = 2
[sampling]
num_generations = 3
max_completion_length = 6
[optimizer]
lr = 1e-2
[eval]
num_problems = 3
num_samples = 2
"""
MINE = """
from selfdistill import Method, Problem
from selfdistill.methods import opsd

def reward(prompts, completions, *, answer, **columns):
    return [float(len(c.split()) % 2) for c in completions]

def short(prompts, completions):
    return [1.0]

def breaks(prompts, completions):
    raise KeyError("gold")

def halved(*, clip: float) -> Method:
    return opsd(clip=clip / 2)

def always() -> Method:
    return opsd()

def topd(*, clip: float = 0.1) -> Method:
    return opsd(clip=clip)

class Following:
    templates = {}
    def problems(self, split):
        return [Problem(prompt=f"w{i}", answer=f"w{i + 1}", solution=f"w{i + 1}", id=str(i)) for i in range(4)]
    def verify(self, problem, completion):
        return float(problem.answer in completion)

class Grumbling(Following):
    def feedback(self, problem, completion):
        raise KeyError("gold")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder outside the repository with a model, data, a recipe and a user's own code."""
    folder = tmp_path_factory.mktemp("made")
    tiny_model().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    shutil.copytree(folder / "base", folder / "bare", ignore=shutil.ignore_patterns("token*", "chat*"))
    rows = [{"prompt": f"{WORDS[i]} {WORDS[i + 1]}", "answer": WORDS[i + 2], "solution": f"{WORDS[i]} {WORDS[i + 2]}"} for i in range(40)]
    lines = [json.dumps(row) for row in rows]
    (folder / "data.jsonl").write_text("\n".join(lines))
    (folder / "long.jsonl").write_text("\n".join([*lines, json.dumps({"prompt": "w1 " * 300, "answer": "w2", "solution": "w3"})]))
    (folder / "nameless.jsonl").write_text(json.dumps({"question": "w1", "answer": "w2"}))
    (folder / "empty.jsonl").write_text("")
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "mine.py").write_text(MINE)
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A fresh working folder with the same files."""
    for path in set(made.iterdir()) - {made / "run"}:
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def trained(made):
    """A finished run, and what its command printed."""
    command = [sys.executable, "-m", "selfdistill", "train", "recipe.toml", "--trackers", "tensorboard", "--eval.every", "2"]
    done = subprocess.run(command, cwd=made, capture_output=True, text=True, env=environment(), check=True)
    return made / "run", done.stdout, done.stderr


def environment():
    return {**os.environ, "PYTHONPATH": str(Path(selfdistill.__file__).parents[1]), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def refused(capsys, arguments, code=2):
    """What a command that fails says on stderr: one line."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    said = capsys.readouterr().err.strip()
    assert left.value.code == code and said.startswith("selfdistill: ") and "\n" not in said, said
    return said


def test_help_comes_without_torch_and_lists_every_setting():
    code = "import sys; from selfdistill.cli import main\ntry: main(['train', '--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True).stdout
    assert shown.strip().endswith("False")
    for words in ("--sampling.num_generations 8", "Rollouts a prompt.", "--optimizer.betas [0.9, 0.95]", "--model.lora none", "--resume"):
        assert words in shown, words


def test_training_leaves_a_whole_run(trained):
    run, _, errors = trained
    assert {p.name for p in run.iterdir()} == {
        "checkpoints",
        "evaluations",
        "learning_curve.png",
        "metrics.jsonl",
        "rollouts",
        "settings.json",
        "summary.json",
        "tensorboard",
    }
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2, 3]
    watched = {"reward", "loss", "loss_distill", "loss_reference", "taught_share", "entropy", "target_entropy", "mean_length", "truncated", "tokens_per_s"}
    phases = {f"seconds_{phase}" for phase in ("sample", "grade", "annotate", "teach", "pack", "score", "objective", "step")}
    assert all(watched | phases <= row.keys() for row in metrics)
    logged = {name.removeprefix("eval_"): value for name, value in metrics[1].items() if name.startswith("eval_")}
    own = Evaluation.from_json(json.loads((run / "evaluations" / "step_000002.json").read_text())).figures()
    (low, high), summary = own.pop("ci95"), json.loads((run / "summary.json").read_text())
    assert logged == own | {"ci95_low": low, "ci95_high": high} and logged.keys() - summary["base"].keys() == {"ci95_low", "ci95_high"}
    assert not any(name.startswith("eval_") for name in metrics[2])
    assert summary["difference"] == pytest.approx(summary["trained"]["avg_at_k"] - summary["base"]["avg_at_k"], abs=1e-4)
    assert (summary["method"], summary["num_problems"], summary["num_samples"]) == ("hsd", 3, 2)
    assert sorted(p.name for p in (run / "evaluations").iterdir()) == ["step_000000.json", "step_000002.json", "step_000003.json"]
    assert "Error" not in errors and "Warning" not in errors


def test_training_tells_what_it_does_without_flooding_a_file(trained):
    _, shown, _ = trained
    lines = shown.splitlines()
    assert len(lines) < 40 and not [line for line in lines if "\x1b" in line or "\r" in line]
    assert lines[0] == "hsd on data.jsonl, model base, 3 steps of 2 x 3 rollouts"
    results = ("difference", "results    run/summary.json", "picture    run/learning_curve.png", "try next")
    for words in ("aligned: ", "step 1, reward", "step 2, reward", *results):
        assert words in shown, words
    assert "step 3, reward" not in shown


def test_the_exported_model_is_the_trained_one(trained, here, capsys):
    run, _, _ = trained
    main(["export", str(run), "--output", "out"])
    weights = load_file(here / "out" / "model.safetensors")
    last = load_file(run / "checkpoints" / "step_000003" / "model.safetensors")
    base = load_file(here / "base" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert weights[name].equal(last[name]) and not weights[name].equal(base[name])
    capsys.readouterr()
    assert "--output = 'out' is not empty" in refused(capsys, ["export", str(run), "--output", "out"])


def test_eval_measures_a_run_under_its_own_settings(trained, here, capsys):
    run, _, _ = trained
    main(["eval", str(run), "--eval.num_problems", "2", "--eval.temperature", "0", "--output", "figures.json"])
    shown = capsys.readouterr().out
    found = json.loads((here / "figures.json").read_text())
    assert len(found["scores"]) == 2 and len(found["scores"][0]) == 2
    mean = sum(map(sum, found["scores"])) / 4
    assert f"avg@2 {mean:.4f}" in shown and "2 problems of data.jsonl" in shown
    assert all(one == other for one, other in found["texts"]), "greedy samples of one problem are the same"


def test_eval_refuses_what_would_change_nothing_and_names_what_is_missing(trained, here, capsys):
    run = str(trained[0])
    assert "--recipe quickstart would change nothing" in refused(capsys, ["eval", run, "--recipe", "quickstart"])
    for key in ("steps", "optimizer.lr", "eval.every", "model.path", "stepz"):
        assert f"--{key} changes nothing that is measured" in refused(capsys, ["eval", run, f"--{key}", "3"])
    assert "MODEL = './absent' is not a folder" in refused(capsys, ["eval", "./absent", "--recipe", "recipe.toml"])
    assert "--vs = './absent' is not a folder" in refused(capsys, ["eval", run, "--vs", "./absent"])
    assert "method.teacher = './absent' is not a folder" in refused(
        capsys, ["train", "recipe.toml", "--method", "opd", "--method.teacher", "External('./absent')"]
    )
    assert "peer.path = './absent' is not a folder" in refused(capsys, ["train", "recipe.toml", "--method", "sdpo", "--peer.path", "./absent"])


def test_an_interrupted_evaluation_says_how_to_go_on(trained, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("selfdistill.cli.evaluating.evaluate_model", interrupted)
    for arguments, said in (([], "the same command goes on after the last whole batch"), (["--eval.cache", "none"], "the same command starts anew")):
        with pytest.raises(SystemExit) as left:
            main(["eval", str(trained[0]), *arguments])
        assert left.value.code == 130 and said in capsys.readouterr().err


def test_torn_settings_are_a_sentence_that_names_them(trained, here, tmp_path, capsys):
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "settings.json").write_text((trained[0] / "settings.json").read_text()[:80])
    assert str(torn / "settings.json") in refused(capsys, ["eval", str(torn)])


def test_sample_answers_in_the_models_own_words(trained, here, capsys):
    run, _, _ = trained
    main(["sample", str(run), "w1 w2", "--n", "3", "--max-completion-length", "5"])
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 3
    assert all(word in WORDS for line in lines for word in line.replace("(cut at max_completion_length)", "").split())


def test_preview_shows_both_prompts_where_they_join_the_completion(here, capsys):
    main(["preview", "recipe.toml", "--problems", "1", "--method", "opsd"])
    shown = capsys.readouterr().out
    for words in ("student, read by the student's weights", "teacher, read by the teacher's weights", "<assistant> || w", "aligned"):
        assert words in shown, words
    assert not (here / "run").exists()


def test_methods_and_describe_print_what_a_method_is(capsys):
    main(["methods"])
    listed = [line for line in capsys.readouterr().out.splitlines() if line and not line.startswith(" ")]
    assert [line.split()[0].removesuffix("(X)") for line in listed] == [f.__name__ for f in (*METHODS, *WRAPPERS)]
    main(["describe", "pw_opsd", "--vs", "opsd"])
    shown = capsys.readouterr().out
    assert "PositionSigmoid" in shown and "SequenceMean" in shown and "divergence" not in shown
    main(["describe", "opcod", "--vs", "sdpo"])
    parts, besides = capsys.readouterr().out.split("besides")
    assert "PeerFeedback" in parts and "BreakRates" not in parts and "measures" in besides and "BreakRates" in besides
    main(["describe", "hsd", "--vs", "hsd"])
    assert capsys.readouterr().out == "hsd and hsd do not differ\n"
    main(["describe", "grpo_plus(sdpo)"])
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("grpo_plus: GRPO + distill_coef x", "sdpo: JSD(0.5) over", "TopKTail", "--method.distill_coef 0.1", "--method.context Privileged("):
        assert words in shown, words


@pytest.mark.parametrize("function", METHODS, ids=lambda function: function.__name__)
def test_describe_says_every_argument_with_its_default(function, monkeypatch, capsys):
    """The text of a default is itself what may be written there."""
    monkeypatch.setattr(out, "width", 400)
    main(["describe", function.__name__])
    shown = capsys.readouterr().out
    assert inspect.getdoc(function).split("\n")[0][:60] in shown
    given = dict(re.findall(r"^ --method\.(\w+) +(\S.*?) *$", shown, re.MULTILINE))
    assert list(given) == list(inspect.signature(function).parameters)
    length = ["--sampling.max_completion_length", "1024"]
    flags = [f for key, text in given.items() if key != "max_completion_length" for f in (f"--method.{key}", text)]
    settings = load_settings("quickstart", parse_overrides(["--method", function.__name__, *flags, *length]))
    again = build_method(settings.method.name, settings.method.arguments, max_completion_length=1024)
    assert again == build_method(function.__name__, {}, max_completion_length=1024)


def test_describe_of_a_method_of_ones_own(here, capsys):
    main(["describe", "mine:always"])
    assert "always\n\n part" in capsys.readouterr().out
    assert "method 'mine:halved' needs its argument 'clip'; set method.clip" in refused(capsys, ["describe", "mine:halved"])


def test_describe_lists_the_controls_of_a_method_of_ones_own(here, capsys):
    main(["describe", "mine:always", "--controls"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--method 'no_clip(mine:always)' Entries of the divergence are not clipped. divergence: ForwardKL(clip=0.05) → ForwardKL()" in shown
    assert "--method 'null_context(mine:always)' --method.kind empty Every" in shown and "context: … → Blank(context=…)" in shown
    assert "constant_weight" not in shown
    main(["describe", "grpo_plus(mine:topd)", "--controls"])
    shown = capsys.readouterr().out
    assert "--method 'grpo_plus(mine:topd)' --method.distill_coef 0" in shown and "lesson" not in shown
    main(["describe", "grpo", "--controls"])
    assert "no control changes anything of grpo" in capsys.readouterr().out
    assert "leave out --vs opsd" in refused(capsys, ["describe", "hsd", "--controls", "--vs", "opsd"])


def test_a_listed_control_trains(here, capsys):
    main(["train", "recipe.toml", "--method", "null_context(mine:always)", "--method.kind", "random", "--steps", "1", "--eval.at_end", "false"])
    assert "Scrambled" in capsys.readouterr().out


def test_a_users_method_reward_and_task_come_from_their_own_folder(here, capsys):
    own = ["--method", "mine:halved", "--method.clip", "0.1", "--task", "mine:Following", "--reward", "mine:reward", "--eval.at_end", "false"]
    main(["train", "recipe.toml", *own])
    assert "ForwardKL(clip=0.05)" in capsys.readouterr().out
    rows = [json.loads(line) for line in (here / "run" / "rollouts" / "step_000001.jsonl").read_text().splitlines()]
    assert {row["prompt"][-1]["content"].split()[0] for row in rows} <= {"w0", "w1", "w2", "w3"}
    assert all(row["reward"] == float(len(row["text"].split()) % 2) for row in rows)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "hds"], "there is no method 'hds'; did you mean 'hsd'"),
        (["--stepz", "3"], "there is no key 'stepz'; did you mean 'steps'"),
        (["--method.teachr", "Live()"], "method 'hsd' has no argument 'teachr'; did you mean 'teacher'"),
        (["--method.teacher", "EMA(0.05"], "'EMA(0.05' never closes its '('"),
        (["--method", "null_context(opsd)", "--method.kind", "foreign"], "method.kind = 'foreign' must be one of empty, shuffled, wrong, random"),
        (["--method", "no_clip(hsd)"], "no entry clip"),
        (["--method", "grpo", "--sampling.num_generations", "1"], "sampling.num_generations = 1"),
        (["--method", "grpo_plus(hsd"], "method 'grpo_plus(hsd' never closes its '('"),
        (["--task", "nameless.jsonl"], "has no column 'prompt'"),
        (["--task", "empty.jsonl"], "has 0 rows"),
        (["--task", "absent.jsonl"], "'absent.jsonl' does not exist"),
        (["--task.colums", "3"], "task 'data.jsonl' has no knob 'colums'; did you mean 'columns'"),
        (["--task", "long.jsonl"], "positions; lower max_completion_length"),
        (["--sampling.max_prompt_length", "2"], "above sampling.max_prompt_length = 2"),
        (["--tokens_per_batch", "8"], "tokens_per_batch = 8"),
        (["--reward", "mine:short"], "the reward function short returned 1 values for"),
        (["--reward", "mine:breaks"], "the reward function breaks raised KeyError: 'gold'"),
        (["--task", "mine:Grumbling"], "the feedback of Grumbling raised KeyError: 'gold'"),
        (["--reward", "mine:rewrd"], "mine has no 'rewrd'; did you mean 'reward'"),
        (["--model", "bare"], "no tokenizer"),
        (["--model", "./absent"], "'./absent' is not a folder"),
        (["--eval.num_problems", "0"], "eval.num_problems = 0"),
        (["extra"], "unexpected argument 'extra'"),
        (["--resume"], "there is no run in run to resume; leave out --resume to start one"),
        (["--output_dir", "data.jsonl/run"], "output_dir = 'data.jsonl/run' cannot be written"),
        (["--method", "opcod"], "needs a second model that learns beside the first; set [peer] path"),
        (["--model", "absent/model"], "model.path = 'absent/model' is not a folder here, and the hub does not answer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_leaves_nothing(here, capsys, arguments, said):
    assert said in refused(capsys, ["train", "recipe.toml", *arguments])
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["eval", "RUN", "--output", "folder"], "--output = 'folder' is a folder; give the name of a file"),
        (
            ["eval", "tiny", "--leaderboard", "file/x.json"],
            "--leaderboard = 'file/x.json' cannot be written, HERE/file: Not a directory; choose another --leaderboard",
        ),
        (["eval", "tiny", "--output", "/dev/null"], "--output = '/dev/null' is no ordinary file"),
        (["eval", "RUN", "--eval.num_problems", "2", "--eval.cache", "file"], "eval.cache = 'file' cannot be written, HERE/file: Not a directory"),
        (["compare", "recipe.toml", "--output", "file/x"], "--output = 'file/x' cannot be written"),
        (["claims", "RUN", "--output", "folder"], "--output = 'folder' is a folder"),
        (["report", "RUN", "--output", "folder"], "--output = 'folder' is a folder"),
        (["report", "RUN", "--watch", "--output", "file/page.html"], "--output = 'file/page.html' cannot be written"),
        (["export", "RUN", "--output", "file"], "--output = 'file' cannot be written, HERE/file: Not a directory; choose another --output"),
        (["export", "RUN", "--output", "."], "--output = '.' is not empty, or where you are; name a new folder"),
        (["pretrain", "tiny_base", "--output-dir", "file"], "output_dir = 'file' cannot be written"),
        *(([name, "RUN", "--output", "file"], "--output = 'file' cannot be written, HERE/file: Not a directory") for name in DIAGNOSTICS),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_written_is_told_before_the_work(trained, here, capsys, monkeypatch, arguments, said):
    (here / "file").write_text("kept")
    (here / "folder").mkdir()
    if "--eval.cache" not in arguments:
        monkeypatch.setattr("selfdistill.loading._load_model", lambda *_: pytest.fail("a model was loaded"))
    before = sorted(path.name for path in here.iterdir())
    assert said.replace("HERE", str(here)) in refused(capsys, [str(trained[0]) if a == "RUN" else a for a in arguments])
    assert sorted(path.name for path in here.iterdir()) == before and (here / "file").read_text() == "kept" and not any((here / "folder").iterdir())


def test_bad_input_of_the_other_commands(here, capsys):
    assert "there is no method 'opds'; did you mean" in refused(capsys, ["describe", "opds"])
    assert "unexpected argument --foo" in refused(capsys, ["methods", "--foo"])
    assert "there is no recipe 'quikstart'; did you mean 'quickstart'?; `selfdistill recipes` lists them" in refused(capsys, ["preview", "quikstart"])
    assert "'./absent' is not a folder" in refused(capsys, ["sample", "./absent", "w1"])


def test_a_run_is_not_written_over(trained, here, capsys):
    run, _, _ = trained
    before = (run / "metrics.jsonl").read_bytes()
    assert "already holds a run; continue it with --resume" in refused(capsys, ["train", "recipe.toml", "--output_dir", str(run)])
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_full_disk_is_one_sentence_and_leaves_whole_checkpoints(here):
    """A disk with room for the first checkpoint and not for the second."""
    mount = "mkdir run && mount -t tmpfs -o size=420k none run"
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*namespace, f"{mount} && umount run && rmdir run"], capture_output=True).returncode:
        pytest.skip("needs a disk of its own, through unshare and tmpfs")
    train = f"{sys.executable} -m selfdistill train recipe.toml --output_dir run/it --checkpoint_every 1 --eval.at_end false"
    done = subprocess.run([*namespace, f"{mount} && {train}; echo code $?; find run/it"], capture_output=True, text=True, env=environment())
    assert done.stderr.strip() == "selfdistill: the disk is full; free some space or choose another --output_dir; complete checkpoints are whole"
    assert "code 2" in done.stdout and "partial" not in done.stdout
    assert "checkpoints/step_000001/trainer_state.pt" in done.stdout and "checkpoints/step_000002" not in done.stdout


def test_interrupted_and_resumed_is_the_run_that_was_not(trained, here):
    """Ctrl-C says how to go on, and going on ends in the very same weights."""
    run, _, _ = trained
    arguments = ["train", "recipe.toml", "--checkpoint_every", "1", "--output_dir", "stopped", "--eval.at_end", "false"]
    process = subprocess.Popen(
        [sys.executable, "-m", "selfdistill", *arguments],
        cwd=here,
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # a test runner in the background ignores interrupts, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    saved = here / "stopped" / "checkpoints" / "step_000001" / "trainer_state.pt"
    deadline = time.monotonic() + 120
    while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "interrupted; stopped is whole up to its last checkpoint, continue with the same command and --resume" in said
    assert "Traceback" not in said
    main(["train", "recipe.toml", "--output_dir", "stopped", "--resume"])
    for name in ("checkpoints/step_000003/model.safetensors", "rollouts/step_000003.jsonl"):
        assert (here / "stopped" / name).read_bytes() == (run / name).read_bytes(), name
