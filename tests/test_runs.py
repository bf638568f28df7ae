"""What a run wrote is what is read back; what is not a whole run of this version is one sentence."""

import json

import pytest
from test_resume import base, settings  # noqa: F401

from selfdistill.runner import execute
from selfdistill.runs import open_run, require_own_tokens


@pytest.fixture
def run(base, tmp_path, monkeypatch):  # noqa: F811
    """Two steps with the groups that were written."""
    seen = []
    from selfdistill import runlog

    write = runlog.RunLog.rollouts
    monkeypatch.setattr(runlog.RunLog, "rollouts", lambda self, groups, samples, *, step: (seen.append(groups), write(self, groups, samples, step=step)))
    folder = execute(settings(base, tmp_path, steps=2, eval={"every": 1, "num_problems": 4, "num_samples": 2}))
    return folder, seen


def test_rollouts_come_back_as_they_were_with_their_problems(run):
    folder, seen = run
    saved = open_run(folder)
    assert saved.steps == [1, 2]
    for step, groups in zip(saved.steps, seen, strict=True):
        for read, written in zip(saved.groups(step), groups, strict=True):
            assert read.problem == written.problem
            for one, other in zip(read.rollouts, written.rollouts, strict=True):
                assert one.completion_ids == other.completion_ids and one.text == other.text
                assert (one.reward, one.index, one.annotations, one.trained) == (other.reward, other.index, other.annotations, other.trained)


def test_a_problem_that_a_step_held_twice_is_two_groups(run):
    """Peers that training did not have would be read as a rollout's own, and a group's mean reward as another one's."""
    folder, seen = run
    path = folder / "rollouts" / "step_000001.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    first = [row for row in rows if row["problem_id"] == rows[0]["problem_id"]]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*first, *first, *first[:1], *first[:1]]))
    found = open_run(folder).groups(1)
    assert [len(group.rollouts) for group in found] == [len(seen[0][0].rollouts)] * 2 + [1, 1]
    assert {group.problem.id for group in found} == {first[0]["problem_id"]}


def test_metrics_and_evaluations_by_step(run):
    folder, _ = run
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')
    saved = open_run(folder)
    assert [row["step"] for row in saved.metrics] == [1, 2]
    assert sorted(saved.evaluations) == [0, 1, 2] and len(saved.evaluations[0].scores) == 4


def test_labels_and_windows_come_back(run):
    folder, _ = run
    path = folder / "rollouts" / "step_000001.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    window = {**rows[0], "labels": [{"3": 0.25, "4": 0.75}], "completion_ids": [3]}
    rows[0]["windows"] = [{k: v for k, v in window.items() if k not in ("schema", "step", "problem_id", "answer", "contexts")}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (read,) = open_run(folder).groups(1)[0].rollouts[0].windows
    assert read.labels == ({3: 0.25, 4: 0.75},) and read.completion_ids == [3]


@pytest.mark.parametrize("spoil, said", [("schema", "schema 9"), ("cut", "not whole JSON"), ("step", "no rollouts of step 7; it has steps 1 to 2")])
def test_what_cannot_be_read_is_a_sentence(run, spoil, said):
    folder, _ = run
    path = folder / "rollouts" / "step_000001.jsonl"
    if spoil == "schema":
        path.write_text(path.read_text().replace('"schema": 1', '"schema": 9'))
    if spoil == "cut":
        path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=said):
        open_run(folder).groups(7 if spoil == "step" else 1)


def test_no_run_and_a_run_without_a_step(run, tmp_path):
    with pytest.raises(ValueError, match="not a run folder"):
        open_run(tmp_path / "nothing")
    folder, _ = run
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="without a finished step"):
        open_run(folder)


def test_rollouts_of_another_tokenizer_are_refused(run, base):  # noqa: F811
    from selfdistill.loading import load_tokenizer

    folder, _ = run
    groups = open_run(folder).groups(1)
    require_own_tokens(groups, load_tokenizer(str(base)))
    for rollout in (r for g in groups for r in g.rollouts):
        rollout.text = rollout.text.replace("w", "v")
    with pytest.raises(ValueError, match="another tokenizer"):
        require_own_tokens(groups, load_tokenizer(str(base)))
