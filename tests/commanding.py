"""A folder with a model, data, a recipe and a user's own code, and commands run there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import WORDS, tiny_model, tiny_tokenizer

import selfdistill
from selfdistill.cli import main

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
