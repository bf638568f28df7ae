"""Two models on one stream of problems: what each reads of the other, two whole runs on disk, and a resumed pair that is the pair that never stopped."""

import json
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from tiny_models import TEMPLATES, WORDS, tiny_model, tiny_policy, tiny_tokenizer

import selfdistill
from selfdistill import checkpoint
from selfdistill.api import assemble, members
from selfdistill.cli import main
from selfdistill.config import make_settings, read_settings
from selfdistill.evaluate import Evaluation
from selfdistill.lockstep import introduce, lockstep
from selfdistill.memory import together
from selfdistill.methods import dapo, opcod
from selfdistill.runner import execute
from selfdistill.types import Problem


class TwoDomains:
    """Right where the first word's number is even; every other problem is of the domain `odd`."""

    def problems(self, split):
        asked = [(i, "odd" if i % 4 else "even") for i in range(0, 20, 2)]
        columns = {"concepts": WORDS}
        return [Problem(prompt=WORDS[i], answer=WORDS[i + 1], id=str(i), columns=columns | {"domain": d}, templates=TEMPLATES) for i, d in asked]

    def verify(self, problem, completion):
        first = (completion.split() or [""])[0]
        return float(first[1:].isdigit() and int(first[1:]) % 2 == 0)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    for seed, name in enumerate(("one", "other")):
        tiny_model(seed=seed).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    data = {
        "model": str(tmp_path / "one"),
        "peer": str(tmp_path / "other"),
        "method": {"name": "opcod", "gate": "Cognizance(0.3)", "breaks_every": 2},
        "task": "test_lockstep:TwoDomains",
        "steps": 4,
        "prompts_per_step": 3,
        "checkpoint_every": 2,
        "keep_checkpoints": 1,
        "output_dir": str(tmp_path / "run"),
        "sampling": {"num_generations": 3, "max_completion_length": 6},
        "optimizer": {"lr": 1e-2},
        "eval": {"num_problems": 6, "num_samples": 2},
    }
    return lambda **changes: make_settings(data, {name.replace("__", "."): value for name, value in changes.items()})


def trainers_of(settings):
    found = [assemble(own).trainer for own in members(settings)]
    introduce(found)
    return found


def test_both_work_on_the_same_problems_and_read_the_others_groups(config):
    for one, other in lockstep(trainers_of(config(steps=3))):
        assert [g.problem.id for g in one.groups] == [g.problem.id for g in other.groups]
        assert all(a.peer is b and b.peer is a for a, b in zip(one.groups, other.groups, strict=True))
        assert [r.text for g in one.groups for r in g.rollouts] != [r.text for g in other.groups for r in g.rollouts]
        assert one.step == other.step and one.metrics["peer_accuracy"] == pytest.approx(other.metrics["reward"])


def test_feedback_is_written_before_either_model_moves(config):
    """With the first model's weights as they were, the second reads what it would have read had it learned first."""
    written = []
    for order in (1, -1):
        trainers = trainers_of(config(method__breaks_every=0))
        groups = [trainer.rollouts() for trainer in trainers]
        for one, other in zip(*groups, strict=True):
            one.peer, other.peer = other, one
        for trainer, own in list(zip(trainers, groups, strict=True))[::order]:
            trainer.annotate(own)
        written.append([r.feedback for own in groups for g in own for r in g.rollouts])
    torch.manual_seed(0)
    (results,) = [next(lockstep(trainers_of(config(method__breaks_every=0))))]
    assert any(written[0]) and written[0] == written[1] == [r.feedback for result in results for g in result.groups for r in g.rollouts]


def test_a_method_that_changes_its_problems_has_no_pair(config):
    trainers = [
        assemble(own, method=dapo(max_completion_length=6, tries=3)).trainer
        for own in members(config(prompts_per_step=2, sampling__num_generations=2, task="test_lockstep:TwoDomains"))
    ]
    with pytest.raises(ValueError, match="different problems"):
        for _ in lockstep(trainers):
            pass


def test_a_pair_leaves_two_whole_runs_and_one_picture(config):
    run = execute(config())
    for folder, path in ((run, "one"), (run / "peer", "other")):
        for name in ("metrics.jsonl", "learning_curve.png", "rollouts/step_000004.jsonl", "checkpoints/step_000004/model.safetensors"):
            assert (folder / name).exists(), name
        summary, settings = json.loads((folder / "summary.json").read_text()), read_settings(folder / "settings.json")
        assert Path(settings.model.path).name == path and settings.peer is not None
        assert list(summary["domains"]) == ["even", "odd"] and sum(d["num_problems"] for d in summary["domains"].values()) == 6
        shares = [d["trained"]["avg_at_k"] * d["num_problems"] for d in summary["domains"].values()]
        assert sum(shares) / 6 == pytest.approx(summary["trained"]["avg_at_k"], abs=1e-3)
    weights = [(folder / "checkpoints/step_000004/model.safetensors").read_bytes() for folder in (run, run / "peer")]
    assert weights[0] != weights[1]
    assert imread(run / "pareto.png").std() > 0.02
    with pytest.raises(ValueError, match="already holds a run"):
        execute(config())


def test_a_pair_is_compared_model_by_model_each_with_its_own_base(config, tmp_path, capsys):
    run = execute(config(steps=2, seed=3))
    execute(config(steps=2, seed=3, output_dir=str(tmp_path / "alone"), method="sdpo"))
    main(["compare", str(run), str(tmp_path / "alone"), "--reference", "sdpo", "--output", str(tmp_path / "table")])
    assert "the other model of `run`" in capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads((tmp_path / "table" / "compare.json").read_text())["rows"]}
    assert {name: row["peer_of"] for name, row in rows.items()} == {"run": None, "run, peer": "run", "alone": None, "alone, peer": "alone"}
    assert [list(rows).index(f"{name}, peer") - list(rows).index(name) for name in ("run", "alone")] == [1, 1], "behind its pair's first model"
    for name, folder in (("run", run), ("run, peer", run / "peer"), ("alone, peer", tmp_path / "alone" / "peer")):
        base, trained = (Evaluation.from_json(json.loads((folder / "evaluations" / f"step_00000{step}.json").read_text())) for step in (0, 2))
        assert rows[name]["figures"]["base_avg_at_k"] == base.avg_at_k and rows[name]["figures"]["avg_at_k"] == trained.avg_at_k
        assert rows[name]["gain"]["mean"] == pytest.approx(trained.avg_at_k - base.avg_at_k)
    apart = rows["run, peer"]["figures"]["avg_at_k"] - rows["alone, peer"]["figures"]["avg_at_k"]
    assert rows["run, peer"]["over_reference"]["mean"] == pytest.approx(apart), "beside the reference's model that began with the same weights"
    main(["compare", str(run / "peer"), "--output", str(tmp_path / "table")])
    assert len(json.loads((tmp_path / "table" / "compare.json").read_text())["rows"]) == 1, "the other model alone is a run too"


def test_a_pair_killed_between_its_two_checkpoints_resumes_bit_for_bit(config, tmp_path, monkeypatch):
    whole = execute(config(output_dir=str(tmp_path / "whole")))

    class Killed(Exception): ...

    original = checkpoint.save

    def die_before_the_peers(trainer, run, *, keep):
        if trainer.steps_done == 4 and run.name == "peer":
            raise Killed
        return original(trainer, run, keep=keep)

    monkeypatch.setattr(checkpoint, "save", die_before_the_peers)
    with pytest.raises(Killed):
        execute(config())
    monkeypatch.setattr(checkpoint, "save", original)
    resumed = execute(config(), resume=True)
    for name in ("checkpoints/step_000004/model.safetensors", "rollouts/step_000004.jsonl"):
        for folder in ("", "peer"):
            assert (whole / folder / name).read_bytes() == (resumed / folder / name).read_bytes(), f"{folder} {name}"
    assert [p.name for p in checkpoint.checkpoints(resumed)] == ["step_000004"]
    assert [json.loads(line)["step"] for line in (resumed / "peer" / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def test_in_python_a_pair_yields_two_results_a_step():
    steps = list(
        selfdistill.train_pair(
            model=tiny_policy(),
            peer=tiny_policy(seed=1),
            method=opcod(breaks_every=0),
            dataset=TwoDomains(),
            steps=2,
            prompts_per_step=2,
            sampling={"num_generations": 2, "max_completion_length": 4},
        )
    )
    assert [[result.step for result in results] for results in steps] == [[1, 1], [2, 2]]
    assert steps[0][0].policy is not steps[0][1].policy


def test_one_model_alone_is_refused_before_anything_is_written(config, tmp_path):
    with pytest.raises(ValueError, match=r"second model .* set \[peer\] path"):
        execute(config(peer=None))
    assert not (tmp_path / "run").exists()


def test_a_pair_needs_both_weights_at_once_but_takes_turns_with_the_rest():
    one, other = ({"weights": w, "teachers": w, "optimizer": 3 * w, "activations": a, "scoring": 1.0} for w, a in ((1.0, 5.0), (2.0, 4.0)))
    assert together([one, other]) == {"weights": 3.0, "teachers": 3.0, "optimizer": 9.0, "activations": 5.0, "scoring": 1.0}
    assert together([one]) == one


def test_a_peer_is_written_like_a_model(config):
    assert config(peer="x").peer.path == "x" and config(peer__lora__r=4).peer.lora.r == 4
    one, other = members(config())
    assert (one.peer, other.peer) == (other.model, one.model) and other.output_dir == f"{one.output_dir}/peer"
