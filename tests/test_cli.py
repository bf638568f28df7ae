# ruff: noqa: F811
"""The command line from end to end on a tiny random model: what it leaves behind, what it says, and how it refuses."""

import inspect
import json
import re
import signal
import subprocess
import sys
import time

import pytest
from commanding import environment, here, made, refused, trained  # noqa: F401
from safetensors.torch import load_file
from tiny_models import WORDS

from selfdistill.cli import main
from selfdistill.cli.actions import out
from selfdistill.cli.overrides import parse_overrides
from selfdistill.config import load_settings
from selfdistill.evaluate import Evaluation
from selfdistill.method_names import build_method
from selfdistill.methods import METHODS, WRAPPERS


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
