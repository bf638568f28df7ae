"""`selfdistill compare` and `eval --vs` on a tiny random model, with real processes: what they leave, what they survive, how they refuse."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from commanding import RECIPE, environment, made, refused  # noqa: F401

from selfdistill.cli import main
from selfdistill.config import load_settings
from selfdistill.evaluate import Evaluation, compare
from selfdistill.launcher import Job, places

SHORT = 'extends = "recipe.toml"\nmethod = "opsd"\nsteps = 2\ncheckpoint_every = 1\n'


@pytest.fixture(scope="module")
def folder(made):  # noqa: F811
    """Recipes of a method, and of one whose reward breaks after the checks before step 1."""
    (made / "own.toml").write_text(SHORT)
    (made / "broken.toml").write_text(SHORT + 'reward = "late:reward"\n')
    broken = "calls = 0\ndef reward(prompts, completions):\n    global calls\n    calls += 1\n    return [1.0] * len(completions) if calls < 3 else [0.0]\n"
    (made / "late.py").write_text(broken)
    return made


@pytest.fixture(scope="module")
def compared(folder):
    """A method with its null control beside a run that fails; the command's exit code and words."""
    command = [sys.executable, "-m", "selfdistill", "compare", "own.toml", "broken.toml", "--seeds", "1", "--output", "out", "--jobs", "2"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment())
    return done, folder / "out"


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def commands() -> list[str]:
    """Of all processes."""
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()


def last(run: Path, step: int = 2) -> Evaluation:
    return Evaluation.from_json(json.loads((run / "evaluations" / f"step_{step:06d}.json").read_text()))


def test_methods_controls_and_a_failure_stand_in_one_table(compared):
    done, out = compared
    assert done.returncode == 2 and "selfdistill: 2 of 4 runs failed, as the table says" in done.stderr and "Traceback" not in done.stderr
    data = json.loads((out / "compare.json").read_text())
    rows = {row["name"]: row for row in data["rows"]}
    assert list(rows) == ["broken", "broken.null", "own", "own.null"] or list(rows) == ["own", "own.null", "broken", "broken.null"]
    assert (rows["own.null"]["control_of"], rows["own.null"]["method"]) == ("own", "null_context(opsd)")
    for name in ("own", "own.null"):
        paired = compare(last(out / name / "0", 0), last(out / name / "0"))
        assert rows[name]["gain"]["mean"] == pytest.approx(paired.difference) and rows[name]["gain"]["ci95"] == pytest.approx(list(paired.difference_ci95))
    assert rows["broken"]["gain"] is None and "the reward function reward returned 1 values" in rows["broken"]["failed"]["0"]
    page = (out / "compare.md").read_text()
    assert "↳ `own.null`" in page and "`broken`, seed 0, failed: the reward function" in page and (out / "compare.png").stat().st_size > 1000


def test_tokens_are_all_that_the_student_wrote(compared):
    _, out = compared
    rows = [json.loads(line) for line in (out / "own" / "0" / "metrics.jsonl").read_text().splitlines()]
    kept = [[len(json.loads(line)["completion_ids"]) for line in path.read_text().splitlines()] for path in sorted((out / "own" / "0" / "rollouts").iterdir())]
    assert [row["generated_tokens"] for row in rows] == [sum(lengths) for lengths in kept]
    figures = {row["name"]: row["figures"] for row in json.loads((out / "compare.json").read_text())["rows"]}
    assert figures["own"]["rollout_tokens"] == sum(map(sum, kept))


def test_the_base_is_measured_once_for_all(compared):
    _, out = compared
    bases = {(out / name / "0" / "evaluations" / "step_000000.json").read_text() for name in ("own", "own.null")}
    assert len(bases) == 1, "down to the seconds it took"


def test_the_same_command_trains_what_is_missing_and_nothing_else(compared, here, capsys):
    _, out = compared
    before = {path: path.stat().st_mtime_ns for path in out.glob("own*/0/**/*") if path.is_file()}
    (here / "late.py").write_text("def reward(prompts, completions):\n    return [0.5] * len(completions)\n")
    main(["compare", "own.toml", "broken.toml", "--seeds", "1", "--output", "out"])
    shown = capsys.readouterr().out
    assert "2 of 4 runs are finished already" in shown and "out/broken/0 done" in shown
    assert {path: path.stat().st_mtime_ns for path in before} == before
    table = {row["name"]: row for row in json.loads((out / "compare.json").read_text())["rows"]}
    assert table["broken"]["failed"] == {} and table["broken"]["over_reference"] is not None


def test_finished_runs_are_tabulated_as_they_are(compared, here, capsys):
    main(["compare", "out/own/0", "out/own.null/0", "--output", "again"])
    assert "`own.null`: `null_context(opsd)`, control of `own`" in capsys.readouterr().out
    one, other = (json.loads((here / name / "compare.json").read_text())["rows"] for name in ("out", "again"))
    own = {row["name"]: row for row in one}
    assert [row["gain"] for row in other] == [own["own"]["gain"], own["own.null"]["gain"]] and other[1]["control_of"] == "own"


def test_what_cannot_be_compared_is_one_sentence(compared, here, capsys, tmp_path):
    assert "nothing to compare" in refused(capsys, ["compare"])
    assert "there is no recipe 'quikstart'" in refused(capsys, ["compare", "quikstart"])
    assert "is not a run folder" in refused(capsys, ["compare", str(tmp_path)])
    assert "--seeds 0 leaves nothing to train" in refused(capsys, ["compare", "own.toml", "--seeds", "0"])
    assert "--steps is a setting of runs to be trained" in refused(capsys, ["compare", "out/own/0", "--steps", "3"])
    assert "out/own/0 holds a run with other settings (steps)" in refused(capsys, ["compare", "own.toml", "--output", "out", "--steps", "3"])
    assert "eval.at_end = false" in refused(capsys, ["compare", "own.toml", "--output", "x", "--eval.at_end", "false"])
    for what in (["own.toml", "--output", "x"], ["out/own/0", "out/own.null/0"]):
        assert "--reference 'opds' is no row of this table; give one of own, or a" in refused(capsys, ["compare", *what, "--reference", "opds"])
    assert "--jobs -1 trains nothing" in refused(capsys, ["compare", "own.toml", "--jobs", "-1"])
    assert "--seed 4 would be the same for every run" in refused(capsys, ["compare", "own.toml", "--seed", "4"])
    (tmp_path / "own.toml").write_text(SHORT.replace("recipe.toml", str(here / "recipe.toml")))
    assert "would both be trained into x/own" in refused(capsys, ["compare", "own.toml", str(tmp_path / "own.toml"), "--output", "x"])
    half = tmp_path / "half"
    shutil.copytree(here / "out" / "own" / "0", half)
    (half / "evaluations" / "step_000002.json").unlink()
    assert "is at step 2 of 2 with evaluations of steps [0]" in refused(capsys, ["compare", str(half)])
    (half / "evaluations" / "step_000000.json").write_text('{"format": 7}')
    assert "format 7, this version reads 1 to 2" in refused(capsys, ["compare", str(half)])
    (half / "metrics.jsonl").write_text("")
    assert "without a finished step" in refused(capsys, ["compare", str(half)])
    assert not (here / "x").exists()


def test_ctrl_c_ends_the_runs_and_the_same_command_goes_on(compared, here, capsys):
    command = [sys.executable, "-m", "selfdistill", "compare", "own.toml", "--seeds", "1", "--output", "cut", "--no-controls", "--steps", "60"]
    process = subprocess.Popen(
        command,
        cwd=here,
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    saved = here / "cut" / "own" / "0" / "checkpoints" / "step_000001" / "trainer_state.pt"
    deadline = time.monotonic() + 120
    while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "interrupted; what is trained lies in cut, the same command goes on" in said and "Traceback" not in said
    assert not [line for line in commands() if "cut/own/0.json" in line], "no run is left behind"
    log = here / "cut" / "own" / "0.log"
    assert "interrupted; cut/own/0 is whole up to its last checkpoint" in log.read_text()
    main([*command[3:]])
    assert "--resume" not in capsys.readouterr().out and log.read_text().count("opsd on data.jsonl") == 2
    steps = [json.loads(line)["step"] for line in (here / "cut" / "own" / "0" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [*range(1, 61)], "no step twice, none left out"


def test_a_run_that_went_on_is_compared_at_its_own_last_step(compared, here, capsys):
    shutil.copytree(here / "out" / "own" / "0", here / "longer")
    main(["train", "longer/settings.json", "--output_dir", "longer", "--resume", "--steps", "3"])
    main(["compare", "longer", "--output", "table"])
    (row,) = json.loads((here / "table" / "compare.json").read_text())["rows"]
    assert row["figures"]["avg_at_k"] == pytest.approx(last(here / "longer", 3).avg_at_k)
    assert json.loads((here / "longer" / "settings.json").read_text())["steps"] == 3
    assert "has done 3 steps, --steps 2 is below that" in refused(
        capsys, ["train", "longer/settings.json", "--output_dir", "longer", "--resume", "--steps", "2"]
    )


def test_places_follow_the_machine(here):
    job = Job(folder=Path("x/0"), settings=load_settings("own.toml", {"model.device": "cpu"}))
    cores = len(os.sched_getaffinity(0))
    assert 1 <= len(places([job], None)) <= cores and places([job], 3) == [{"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}] * 3
    assert replace(job, folder=Path("x/1")).log == Path("x/1.log")


def test_eval_beside_another_model_says_what_changed(compared, here, capsys):
    main(["eval", "out/own/0", "--vs", "base", "--leaderboard", "board.json", "--output", "samples.json"])
    shown = capsys.readouterr().out
    base, trained = last(here / "out" / "own" / "0", 0), last(here / "out" / "own" / "0")
    found = compare(base, trained)
    for words in (
        f"difference to base: {100 * found.difference:+.1f} points",
        f"solved in any sample: {found.rescued} rescued, {found.broken} broken",
        f"McNemar p = {found.mcnemar_p:.2g}",
    ):
        assert words in shown, words
    board = json.loads((here / "board.json").read_text())
    assert board["metrics"]["avg@2"]["value"] == pytest.approx(trained.avg_at_k) and board["metrics"]["pass@1"]["value"] == pytest.approx(trained.avg_at_k)
    assert board["versus"]["mcnemar_p"] == found.mcnemar_p and board["eval_results"][0]["dataset"]["task_id"] == "avg@2"
    assert json.loads((here / "samples.json").read_text())["scores"] == [list(row) for row in trained.scores]
    main(["eval", "out/own/0"])
    assert "was measured before" in capsys.readouterr().out
