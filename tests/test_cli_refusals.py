# ruff: noqa: F811
"""What the command line refuses: one sentence, exit code 2, nothing half-written."""

import shutil
import subprocess
import sys

import pytest
from commanding import environment, here, made, refused, trained  # noqa: F401

DIAGNOSTICS = ("credit", "blame", "gap", "markers", "leakage", "pmi", "transport", "viability", "judge")


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
