"""The page's figures are those of the library, and a folder that is no whole run is one sentence."""

import json
import shutil

import pytest
from report_runs import rewrite, short_run

from selfdistill.evaluate import compare
from selfdistill.report import Selection
from selfdistill.report.data import finished, page_model, short_names
from selfdistill.report.selection import pick
from selfdistill.runs import open_run

UNREAD = "not read"


@pytest.fixture
def copied(runs, tmp_path):
    """A run that a test may spoil."""
    return shutil.copytree(runs["hsd_0"], tmp_path / "hsd_0")


def model_of(*folders, **options):
    return page_model(folders, Selection(), colourless=UNREAD, **options)


def test_figures_are_those_of_the_evaluations(runs):
    (shown,) = model_of(runs["hsd_0"])["runs"]
    saved = open_run(runs["hsd_0"])
    base, trained = saved.evaluations[0], saved.evaluations[2]
    comparison = compare(base, trained)
    figures = shown["figures"]
    assert (figures["gain"], figures["gain_ci95"]) == (comparison.difference, list(comparison.difference_ci95))
    assert (figures["rescued"], figures["broken"]) == (comparison.rescued, comparison.broken)
    assert figures["base"] == base.figures() and figures["trained"]["avg_at_k"] == trained.avg_at_k
    assert [p["step"] for p in shown["accuracy"]] == [0, 1, 2] and shown["accuracy"][0]["low"] == base.ci95[0]
    assert figures["seconds"] == pytest.approx(sum(row["seconds"] for row in saved.metrics))
    assert shown["finished"] and shown["steps"] == 2 and shown["parts"]["reduction"] == "SequenceMean()"


def test_columns_are_the_metrics_and_leave_out_what_was_not_there(copied):
    path = copied / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1] |= {"loss": float("nan"), "taught_share": 0.0}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = model_of(copied)["runs"][0]["metrics"]
    assert columns["step"] == [1, 2] and columns["reward"] == pytest.approx([row["reward"] for row in rows], rel=1e-4)
    assert columns["loss"][1] is None and columns["divergence"][1] is None and columns["divergence"][0] is not None


def test_seeds_are_one_experiment_and_what_else_differs_tells_experiments_apart(runs, base, tmp_path):
    slow = short_run(base, tmp_path / "slow", steps=1, eval={"at_end": False}, optimizer={"lr": 1e-3, "schedule": "cosine"})
    first, second, third, other = model_of(runs["hsd_0"], runs["hsd_1"], slow, runs["grpo_0"])["runs"]
    assert first["group"] == second["group"] != third["group"] and other["group"] == "grpo"
    assert "optimizer.lr = 0.01" in first["group"] and "optimizer.lr = 0.001" in third["group"] and "seed" not in first["group"]
    assert third["figures"].keys() == {"seconds", "reward"} and third["accuracy"] == []


def test_a_run_on_its_way_is_shown_up_to_where_it_is(copied):
    (copied / "summary.json").unlink()
    (copied / "evaluations" / "step_000002.json").unlink()
    assert not finished(open_run(copied))
    (shown,) = model_of(copied)["runs"]
    assert not shown["finished"] and shown["figures"]["at"] == 1 and "gain" in shown["figures"]


def test_evaluations_that_cannot_be_paired_have_no_gain(copied):
    path = copied / "evaluations" / "step_000002.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"problem_ids": kept["problem_ids"][::-1]}))
    figures = model_of(copied)["runs"][0]["figures"]
    assert "gain" not in figures and "different 4 problems" in figures["unpaired"] and figures["trained"]


def test_parts_of_a_method_that_is_gone_are_said_to_be_unknown(copied):
    path = copied / "settings.json"
    path.write_text(path.read_text().replace('"name":"hsd"', '"name":"gone_e:mine"').replace('"name": "hsd"', '"name": "gone_e:mine"'))
    (shown,) = model_of(copied)["runs"]
    assert shown["parts"] == {} and "gone_e" in shown["parts_note"]


def test_names_are_as_short_as_can_be(tmp_path):
    assert short_names([tmp_path / "a" / "x", tmp_path / "a" / "y"]) == ["x", "y"]
    assert short_names([tmp_path / "a" / "x", tmp_path / "b" / "x"]) == ["a/x", "b/x"]
    with pytest.raises(ValueError, match="given twice"):
        short_names([tmp_path / "x", tmp_path / "x"])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: (run / "settings.json").unlink(), "not a run folder"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 1, "rew'), "without a finished step"),
        (lambda run: (run / "evaluations" / "step_000001.json").write_text('{"scores": [['), "not whole JSON"),
        (lambda run: rewrite(run, 1, lambda row: row | {"schema": 9}), "schema 9, this version reads 1"),
    ],
    ids=["no settings", "no step", "torn evaluation", "unknown schema"],
)
def test_what_is_no_whole_run_is_a_sentence(copied, spoil, said):
    spoil(copied)
    with pytest.raises(ValueError, match=said):
        model_of(copied)


def test_runs_share_the_page_evenly(runs):
    rows = pick(open_run(runs["hsd_0"]), Selection()).steps
    tokens = sum(len(row["completion_ids"]) for groups in rows.values() for group in groups for row in group)
    alone, *pair = (m["tokens"]["left_out"] for n in (1, 2) for m in page_model(list(runs.values())[:n], Selection(tokens=tokens), colourless=UNREAD)["runs"])
    assert alone == 0 and min(pair) > 0


def test_nothing_selected_is_a_sentence(runs):
    with pytest.raises(ValueError, match="problems = 0 selects no rollout"):
        Selection(problems=0)
    with pytest.raises(ValueError, match="no rollouts of step 7; it has steps 1 to 2"):
        page_model([runs["hsd_0"]], Selection(steps=(7,)), colourless=UNREAD)
    with pytest.raises(ValueError, match="give the folder of a run"):
        page_model([], Selection())
