"""What a run leaves behind as it goes, read back as its reader would."""

import importlib
import json
import sys

import pytest
from tiny_models import tiny_groups, tiny_policy

from selfdistill.methods import hsd
from selfdistill.runlog import RunLog, require_trackers
from selfdistill.samples import training_samples


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_are_on_disk_after_every_step(tmp_path):
    log = RunLog(tmp_path / "run", settings={})
    for step in (1, 2):
        log.log({"reward": step / 10}, step=step)
        assert read(tmp_path / "run" / "metrics.jsonl")[-1] == {"step": step, "reward": step / 10}
    log.close()


def test_a_new_run_begins_empty_and_a_resumed_one_where_its_checkpoint_stood(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = RunLog(tmp_path, settings={})
    for step in (1, 2, 3):
        log.log({"reward": float(step)}, step=step)
    log.close()
    with path.open("a") as file:
        file.write('{"step": 4, "rew')
    log = RunLog(tmp_path, settings={}, resumed_at=2)
    log.log({"reward": 9.0}, step=3)
    log.close()
    assert [(row["step"], row["reward"]) for row in read(path)] == [(1, 1.0), (2, 2.0), (3, 9.0)]
    RunLog(tmp_path, settings={}).close()
    assert read(path) == []


def test_rollouts_are_kept_with_all_that_later_analysis_needs(tmp_path):
    policy = tiny_policy()
    groups = tiny_groups(policy)
    samples = training_samples(groups, hsd(), encode=policy.chat.encode)
    log = RunLog(tmp_path, settings={})
    log.rollouts(groups, samples, step=12)
    log.close()
    rows = read(tmp_path / "rollouts" / "step_000012.jsonl")
    rollouts = [(group, rollout) for group in groups for rollout in group.rollouts]
    assert len(rows) == len(rollouts)
    for row, (group, rollout) in zip(rows, rollouts, strict=True):
        assert (row["schema"], row["step"], row["problem_id"], row["answer"]) == (1, 12, group.problem.id, group.problem.answer)
        assert row["prompt_ids"] == rollout.prompt_ids and row["completion_ids"] == rollout.completion_ids
        assert row["behavior_logp"] == rollout.behavior_logp, "log-probabilities come back to the last bit"
        assert (row["text"], row["reward"], row["policy_version"]) == (rollout.text, rollout.reward, rollout.policy_version)
        (context,) = row["contexts"]
        shown = context["teacher"]["messages"][-1]["content"]
        assert group.problem.answer in shown and context["teacher"]["weights"] == "teacher"
        taught_by = [r.text for r in group.rollouts if r is not rollout and r.reward == 1]
        assert any(text in shown for text in taught_by)
    assert [p.name for p in tmp_path.glob("rollouts/*")] == ["step_000012.jsonl"]


def test_untaught_rollouts_are_kept_without_a_context(tmp_path):
    policy = tiny_policy()
    groups = tiny_groups(policy, problems=1)
    log = RunLog(tmp_path, settings={})
    log.rollouts(groups, [], step=1)
    log.close()
    assert [row["contexts"] for row in read(tmp_path / "rollouts" / "step_000001.jsonl")] == [[]] * 4


def test_tensorboard_gets_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, trackers=["tensorboard"], settings={"method": {"name": "hsd"}})
    for step in (1, 2):
        log.log({"reward": step / 4, "loss": -1.0}, step=step)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward")] == [(1, 0.25), (2, 0.5)]
    assert b"hsd" in events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_are_handed_every_step_of_each_run(tmp_path, monkeypatch, request, name):
    """A stand-in module under the tracker's name records what its users' dashboards would get; as in the real ones, its functions are the last run's."""
    (tmp_path / f"{name}.py").write_text(
        "seen = []\n"
        "from contextvars import ContextVar\n"
        "current = ContextVar('current', default=None)\n"
        "class Run:\n"
        "    def __init__(self, name): self.name = name\n"
        "    def log(self, metrics, step): seen.append((self.name, {'step': step, **metrics}))\n"
        "    def finish(self): seen.append((self.name, 'end'))\n"
        "def init(**about):\n"
        "    if current.get() and about.get('reinit') != 'create_new': current.get().finish()\n"
        "    seen.append((about['name'], about['config']))\n"
        "    current.set(Run(about['name']))\n"
        "    return current.get()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    request.addfinalizer(lambda: sys.modules.pop(name, None))
    require_trackers([name])
    log = RunLog(tmp_path / "run", trackers=[name], settings={"steps": 2})
    peer = RunLog(tmp_path / "run" / "peer", trackers=[name], settings={"steps": 2}, name="run-peer")
    log.log({"reward": 0.5}, step=1)
    peer.log({"reward": 0.25}, step=1)
    log.close()
    peer.close()
    seen = importlib.import_module(name).seen
    begun, told = [("run", {"steps": 2}), ("run-peer", {"steps": 2})], [("run", {"step": 1, "reward": 0.5}), ("run-peer", {"step": 1, "reward": 0.25})]
    assert seen == [*begun, *told, ("run", "end"), ("run-peer", "end")]


def test_a_torn_line_before_the_last_names_its_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "rew\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl is not whole JSON"):
        RunLog(tmp_path, settings={}, resumed_at=2)


def test_a_tracker_that_is_not_installed_names_the_extra():
    require_trackers(["tensorboard"])
    with pytest.raises(ValueError, match=r"trackers = \['no_such_library'\] needs the library no_such_library.*pip install 'selfdistill\[trackers\]'"):
        require_trackers(["tensorboard", "no_such_library"])
