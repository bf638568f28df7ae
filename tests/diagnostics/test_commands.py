"""Every diagnostic on a real short run: a table, a JSON file and a picture; and what cannot be read is a sentence with exit code 2."""

import json
import re
import shutil

import pytest
import torch
from matplotlib.image import imread
from test_resume import settings

from selfdistill.api import assemble
from selfdistill.cli import main
from selfdistill.diagnostics.bench import open_bench
from selfdistill.loading import load_policy
from selfdistill.runner import execute
from selfdistill.teachers import weights_hash

COMMANDS = {
    "credit": [],
    "gap": ["--context", "answer", "peer", "--samples", "2"],
    "markers": ["--words", "w1", "w2"],
    "leakage": ["--words", "w1"],
    "pmi": [],
    "transport": [],
    "viability": ["--problems", "2"],
    "judge": [],
}


def result_of(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_leaves_figures_and_a_picture(run, name, capsys):
    main([name, str(run), *COMMANDS[name]])
    said, progress = capsys.readouterr()
    found = result_of(run / "diagnostics", name)
    assert max(map(len, said.splitlines()[:-1])) <= 100
    assert progress.splitlines()[0] == "loading the model and its teacher" if name != "markers" else not progress
    assert (found["diagnostic"], found["run"], found["steps"]) == (name, str(run), [1, 2] if name == "markers" else [1])
    assert "wrote" in said and len(said.splitlines()) > 3 and found["result"]
    assert imread(run / "diagnostics" / f"{name}.png")[..., :3].std() > 0.02


def test_a_checkpoint_is_the_student_and_the_start_its_frozen_teacher(run, base):
    bench = open_bench(run, checkpoint=2)
    assert bench.steps == (2,), "the rollouts nearest to what it wrote"
    parts = bench.begun(bench.method("opsd"))
    assert weights_hash(parts.policy) == weights_hash(load_policy(str(run / "checkpoints" / "step_000002"))) != weights_hash(load_policy(str(base)))
    with parts.trainer.readers["teacher"].reading() as teacher:
        assert weights_hash(teacher) == weights_hash(load_policy(str(base)))


def test_the_runs_own_average_stands_where_it_stood(base, tmp_path):
    folder = execute(settings(base, tmp_path, method="sdft", steps=2, checkpoint_every=1))
    bench = open_bench(folder, checkpoint=1)
    with bench.begun(bench.method()).trainer.readers["teacher"].reading() as own:
        kept = torch.load(folder / "checkpoints" / "step_000001" / "trainer_state.pt", weights_only=True)["readers"]["teacher"]["average"]
        assert all(torch.equal(parameter, kept[name]) for name, parameter in own.named_parameters())
        assert weights_hash(own) != weights_hash(load_policy(str(base)))


def test_gap_reads_the_gain_of_other_runs(run, tmp_path):
    main(["gap", str(run), "--against", str(run), "--samples", "2", "--output", str(tmp_path)])
    (context,) = result_of(tmp_path, "gap")["result"]["contexts"]
    assert context["gain"] == json.loads((run / "summary.json").read_text())["difference"] and context["name"] == run.name


def test_a_run_with_an_adapter_loads(base, tmp_path):
    model = {"path": str(base), "lora": {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": "all-linear"}}
    folder = execute(settings(base, tmp_path, model=model, steps=2, checkpoint_every=2))
    main(["credit", str(folder), "--method", "opsd", "--checkpoint", "2", "--steps", "1", "--output", str(tmp_path / "out")])
    assert result_of(tmp_path / "out", "credit")["checkpoint"] == 2


def spoiled(run, tmp_path, how):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("diagnostics"))
    rollouts = copy / "rollouts" / "step_000001.jsonl"
    if how == "half":
        (copy / "metrics.jsonl").write_text("")
    if how == "cut":
        rollouts.write_text(rollouts.read_text()[:-30])
    if how == "schema":
        rollouts.write_text(rollouts.read_text().replace('"schema": 1', '"schema": 7'))
    if how == "tokenizer":
        rollouts.write_text(rollouts.read_text().replace('"text": "w', '"text": "v'))
    if how == "right":
        rollouts.write_text(re.sub(r'"reward": [0-9.]+', '"reward": 1.0', rollouts.read_text()))
    if how == "none":
        shutil.rmtree(copy / "rollouts")
    if how == "format":
        path = copy / "checkpoints" / "step_000002" / "trainer_state.pt"
        torch.save(torch.load(path, weights_only=True) | {"format": 9}, path)
    return copy


@pytest.mark.parametrize(
    "how, arguments, said",
    [
        ("half", [], "without a finished step"),
        ("cut", [], "not whole JSON"),
        ("schema", [], "schema 7"),
        ("tokenizer", [], "another tokenizer"),
        ("none", [], "no rollouts of any step"),
        ("format", ["--checkpoint", "2"], "checkpoint format 9"),
        ("whole", ["--steps", "9"], "no rollouts of step 9; it has steps 1 to 2"),
        ("whole", ["--checkpoint", "7"], "no checkpoint of step 7; it has 1, 2"),
        ("whole", ["--method", "hsd", "grpo", "--context", "answer"], "nothing is taught by method 'grpo'"),
        ("whole", ["--method", "hsd", "opd"], "method 'opd' needs a teacher model, which"),
        ("whole", ["--method", "hsd", "opcod"], "method 'opcod' reads what a second model writes"),
        ("whole", ["--model", "./absent"], "--model = './absent' is not a folder"),
        ("right", [], "none of the 0 failed rollouts has a successful peer"),
        ("whole", ["--method", "--context"], "nothing to read under"),
        ("whole", ["--method", "opsdd"], "no method 'opsdd'"),
    ],
)
def test_what_cannot_be_read_is_a_sentence_before_anything_is_loaded(run, tmp_path, how, arguments, said, capsys, monkeypatch):
    monkeypatch.setattr(
        "selfdistill.diagnostics.bench.assemble", lambda *_, **__: pytest.fail("the model was loaded") if how != "format" else assemble(*_, **__)
    )
    with pytest.raises(SystemExit) as stop:
        main(["credit", str(spoiled(run, tmp_path, how)), *arguments])
    error = capsys.readouterr().err
    lines = error.strip().splitlines()
    assert stop.value.code == 2 and said in lines[-1] and len(lines) == (2 if how == "format" else 1)
    assert not (tmp_path / "copy" / "diagnostics").exists()


def test_another_models_tokenizer_is_refused(run, tmp_path, base, capsys):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    vocabulary = json.loads((other / "tokenizer.json").read_text())
    words = vocabulary["model"]["vocab"]
    vocabulary["model"]["vocab"] = {("v" + word[1:] if word.startswith("w") else word): i for word, i in words.items()}
    (other / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(SystemExit) as stop:
        main(["credit", str(run), "--model", str(other)])
    assert stop.value.code == 2 and "another tokenizer" in capsys.readouterr().err
