"""Users' datasets: what is read from which column, what is held out, and what is refused."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from tiny_models import tiny_policy

from selfdistill.conversations import RawSharded
from selfdistill.sampling.transformers import TransformersSampler
from selfdistill.tasks.files import Dataset

ROWS = [{"prompt": f"What is {i} + 1?", "answer": str(i + 1), "solution": f"One more than {i}.", "level": i % 3} for i in range(40)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(folder: Path, suffix: str, rows: Sequence[Mapping[str, Any]] = ROWS) -> str:
    path = str(folder / f"data{suffix}")
    if suffix == ".jsonl":
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".json":
        Path(path).write_text(json.dumps(rows))
    elif suffix == ".csv":
        datasets.Dataset.from_list([dict(r) for r in rows]).to_csv(path, index=False)
    else:
        datasets.Dataset.from_list([dict(r) for r in rows]).to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_every_format_gives_the_same_problems(tmp_path: Path, suffix: str) -> None:
    task = Dataset(path=write(tmp_path, suffix))
    problems = task.problems("train") + task.problems("test")
    assert sorted(p.prompt for p in problems) == sorted(row["prompt"] for row in ROWS)
    seven = next(p for p in problems if p.prompt == "What is 7 + 1?")
    assert (seven.answer, seven.solution, seven.columns["level"]) == ("8", "One more than 7.", 1)
    assert "\\boxed{}" in seven.instruction


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_a_list_of_shards_reaches_the_conversation(tmp_path: Path, suffix: str) -> None:
    turns = ["Ann has 3 apples.", "Bob gives her 2.", "How many has she?"]
    task = Dataset(path=write(tmp_path, suffix, [{"prompt": " ".join(turns), "answer": "5", "shards": turns}]), test_share=0.0, instruction="Box it.")
    sampler = TransformersSampler(policy=tiny_policy(), max_completion_length=4)
    (rollout,) = RawSharded()(sampler, task.problems("train"), 1)[0].rollouts
    assert [m["content"] for m in rollout.prompt if m["role"] == "user"] == [*turns[:2], "How many has she?\n\nBox it."]


def test_a_folder_is_read_like_a_hub_dataset_with_its_splits(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, rows in (("train", ROWS[:30]), ("test", ROWS[25:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Dataset(path=str(folder), test_split="test")
    assert len(task.problems("test")) == 15
    assert len(task.problems("train")) == 25, "what is tested on is not trained on"


def test_rows_are_held_out_by_their_prompt_whatever_else_is_in_the_file(tmp_path: Path) -> None:
    few = Dataset(path=write(tmp_path, ".jsonl"), test_share=0.3)
    more = Dataset(rows=[*({"prompt": f"Another one, {i}"} for i in range(200)), *ROWS[::-1]], test_share=0.3)
    held_out = {p.prompt for p in few.problems("test")}
    assert 4 <= len(held_out) <= 20
    assert not held_out & {p.prompt for p in few.problems("train")}
    assert held_out <= {p.prompt for p in more.problems("test")}


def test_a_prompt_that_occurs_twice_is_on_one_side(tmp_path: Path) -> None:
    task = Dataset(rows=ROWS + ROWS, test_share=0.5)
    assert not {p.prompt for p in task.problems("test")} & {p.prompt for p in task.problems("train")}
    assert len(task.problems("test")) + len(task.problems("train")) == 80


def test_a_second_file_is_the_test_split(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    held_out = [*ROWS[7:10], {"prompt": "What is 1 - 1?", "answer": "0", "solution": "", "level": 0}]
    task = Dataset(path=write(tmp_path, ".jsonl"), test_path=write(tmp_path / "other", ".jsonl", held_out))
    assert [p.prompt for p in task.problems("test")] == [row["prompt"] for row in held_out]
    assert [p.prompt for p in task.problems("train")] == [row["prompt"] for row in ROWS[:7] + ROWS[10:]]


def test_columns_are_mapped_and_the_others_reach_reward_functions() -> None:
    rows = [{"question": "2 + 2?", "final": "4", "why": "Twice two.", "rubric": "be brief"}]
    task = Dataset(rows=rows, columns={"prompt": "question", "answer": "final", "privileged_context": "why"}, test_share=0)
    (problem,) = task.problems("train")
    assert (problem.prompt, problem.answer, problem.privileged_context) == ("2 + 2?", "4", "Twice two.")
    assert problem.columns == {"final": "4", "why": "Twice two.", "rubric": "be brief"}


def test_a_column_mapped_to_another_of_ours_is_not_read_twice() -> None:
    task = Dataset(rows=[{"prompt": "2 + 2?", "solution": "4"}], columns={"answer": "solution"}, test_share=0)
    (problem,) = task.problems("train")
    assert problem.answer == "4" and problem.solution == ""


def test_chats_are_prompts_and_solutions() -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    task = Dataset(rows=[{"prompt": chat, "solution": [{"role": "assistant", "content": "Four."}]}], test_share=0)
    (problem,) = task.problems("train")
    assert problem.prompt == tuple(chat) and problem.solution == "Four."


def test_worked_answers_are_split_at_their_mark() -> None:
    rows = [
        {"prompt": "grade school", "answer": "3 + 4 = 7 apples.\n#### 7"},
        {"prompt": "competition", "solution": "Hence $x = \\boxed{\\frac{1}{2}}$."},
        {"prompt": "plain", "answer": "\\boxed{5}"},
        {"prompt": "both", "answer": "6", "solution": "Work."},
    ]
    problems = {p.prompt: p for p in Dataset(rows=[{"answer": None, "solution": None} | r for r in rows], test_share=0).problems("train")}
    assert (problems["grade school"].answer, problems["grade school"].solution) == ("7", "3 + 4 = 7 apples.\n#### 7")
    assert problems["competition"].answer == "\\frac{1}{2}"
    assert (problems["plain"].answer, problems["plain"].solution) == ("5", "")
    assert (problems["both"].answer, problems["both"].solution) == ("6", "Work.")


def test_the_verifier_reads_boxes_and_leaves_out_rows_without_an_answer() -> None:
    right, unknown = Dataset(rows=[{"prompt": "a", "answer": "\\frac12"}, {"prompt": "b", "answer": ""}], test_share=0).problems("train")
    assert Dataset.verify(right, "so \\boxed{0.5}") == 1
    assert Dataset.verify(right, "so \\boxed{0.25}") == 0
    assert Dataset.verify(unknown, "so \\boxed{0.25}") is None


@pytest.mark.parametrize(
    ("rows", "settings", "sentence"),
    [
        ([{"promt": "a", "answer": "b"}], {}, r"no column 'prompt' for 'prompt'; did you mean 'promt'\?; it has promt, answer: set task.columns.prompt"),
        ([{"prompt": "a"}], {"columns": {"answer": "gold"}}, "no column 'gold' for 'answer'; it has prompt"),
        ([{"prompt": "a"}], {"columns": {"anwser": "gold"}}, "task.columns.anwser is not a column of ours; did you mean 'answer'"),
        ([], {}, "0 rows"),
        ([{"prompt": "a"}, {"prompt": 5}], {"test_share": 0}, "row 1 of .*neither text nor chat messages"),
        ([{"prompt": "a"}, {"answer": "b"}], {"test_share": 0}, "row 1 of .*neither text nor chat messages"),
        ([{"prompt": " "}], {}, "row 0 of .*neither text nor chat messages"),
        ([{"prompt": [{"role": "assistant", "content": "hi"}]}], {}, "row 0 of .*end with the user's"),
        ([{"prompt": "a", "answer": {"value": 5}}], {}, "row 0 of .*column 'answer' is neither text"),
        ([{"prompt": "a"}], {"test_share": 1.5}, "test_share = 1.5 must lie in"),
    ],
)
def test_bad_rows_are_one_sentence(rows: list[dict[str, Any]], settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        Dataset(rows=rows, **settings).problems("train")
    assert "\n" not in str(caught.value)


def test_a_split_that_came_out_empty_names_the_knob() -> None:
    with pytest.raises(ValueError, match=r"the test split .* has 0 of 1 problems; change task.test_share = 0"):
        Dataset(rows=[{"prompt": "a"}], test_share=0).problems("test")


@pytest.mark.parametrize(
    ("name", "text", "settings", "sentence"),
    [
        ("missing.jsonl", None, {}, "does not exist"),
        ("empty.jsonl", "", {}, "0 rows"),
        ("broken.jsonl", '{"prompt": ', {}, "cannot be read"),
        ("notes.txt", "hello", {}, "is not one of .jsonl, .json, .parquet, .csv"),
        ("good.jsonl", '{"prompt": "a"}', {"test_split": "test"}, "has no split 'test'; name the file to test on as task.test_path"),
        ("no/such_folder", None, {}, "is neither a file here nor on the hub"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, name: str, text: str | None, settings: dict[str, str], sentence: str) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=sentence) as caught:
        Dataset(path=str(path), **settings).problems("train")
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
