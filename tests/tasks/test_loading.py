"""Tasks from settings: built-in names, files, and the user's own code."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from selfdistill.config import TaskSettings
from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.tasks.chain_sum import ChainSum
from selfdistill.tasks.files import Dataset
from selfdistill.tasks.loading import load_task

MINE = """
from selfdistill import Problem

class Echo:
    def __init__(self, size=3):
        if size < 1:
            raise RuntimeError("nothing to echo")
        self.size = size

    def problems(self, split):
        return [Problem(prompt=f"{split} {i}") for i in range(self.size)]

    def verify(self, problem, completion):
        return float(completion == problem.prompt)

ready = Echo(2)
number = 5
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user stands, outside of the project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("mine_tasks", None)
    (tmp_path / "mine_tasks.py").write_text(MINE)
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "1 + 1?", "answer": "2"}) + "\n")
    return tmp_path


def test_built_in_tasks_take_their_knobs() -> None:
    assert load_task(TaskSettings(name="arithmetic", operations=3)) == Arithmetic(operations=3)
    task = load_task(TaskSettings(name="reasoning_gym:chain_sum", max_terms=3, num_train=7))
    assert task == ChainSum(generator="chain_sum", knobs={"max_terms": 3}, num_train=7)


def test_a_file_is_a_dataset() -> None:
    task = load_task(TaskSettings(name="data.jsonl", columns={"solution": "answer"}, test_share=0.0))
    assert isinstance(task, Dataset)
    assert task.problems("train")[0].solution == "2"


def test_a_users_class_and_object_are_tasks() -> None:
    assert [p.prompt for p in load_task(TaskSettings(name="mine_tasks:Echo", size=1)).problems("test")] == ["test 0"]
    assert len(load_task(TaskSettings(name="mine_tasks.py:ready")).problems("train")) == 2


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"name": "arithmetik"}, "no task 'arithmetik'; did you mean 'arithmetic'"),
        ({"name": "arithmetic", "operation": 3}, "no knob 'operation'; did you mean 'operations'"),
        ({"name": "arithmetic", "operations": "many"}, "task.operations = 'many': input should be a valid integer"),
        ({"name": "arithmetic", "operations": 99}, "operations = 99 must lie in 2..20"),
        ({"name": "reasoning_gym"}, "no generator ''"),
        ({"name": "reasoning_gym:chain_sum", "max_trems": 3}, "refuses the settings .*max_trems"),
        ({"name": "data.jsonl", "tset_share": 0.5}, "no knob 'tset_share'; did you mean 'test_share'"),
        ({"name": "data.jsonl", "columns": {"prompts": "q"}}, "task.columns.prompts is not a column of ours; did you mean 'prompt'"),
        ({"name": "mine_tasks:Echo", "sise": 3}, "no knob 'sise'; did you mean 'size'"),
        ({"name": "mine_tasks:Echo", "size": 0}, "'mine_tasks:Echo' raised RuntimeError: nothing to echo"),
        ({"name": "mine_tasks:ready", "size": 1}, "is an object and takes no knob 'size'"),
        ({"name": "mine_tasks:number"}, "is a int, which lacks problems"),
        ({"name": "mine_tasks:Ehco"}, "did you mean 'Echo'"),
    ],
)
def test_what_cannot_be_a_task_is_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        load_task(TaskSettings(**settings))
    assert "\n" not in str(caught.value)
