"""Workings of chains of sums: the first line that is false or leaves the question is found, and mended from there on."""

import pytest

from selfdistill.config import TaskSettings
from selfdistill.tasks import first_wrong
from selfdistill.tasks.chain_sum import ChainSum
from selfdistill.tasks.loading import load_task
from selfdistill.types import Problem


@pytest.fixture(scope="module")
def task() -> ChainSum:
    return ChainSum(generator="chain_sum", num_train=40, num_test=5, knobs={"min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 1})


def problem_of(expression: str, answer: int) -> Problem:
    entry = {"question": f"{expression} =", "answer": str(answer), "metadata": {"expression": expression}}
    return Problem(prompt=entry["question"], answer=str(answer), columns={"entry": entry})


FOUR = problem_of("8 - 5 + 2 - -4", 9)
RIGHT = "8 - 5 = 3\n3 + 2 = 5\n5 - -4 = 9\nAnswer: 9"


@pytest.mark.parametrize(
    ("completion", "wrong"),
    [
        (RIGHT, None),
        ("8 - 5 + 2 = 5\n\n5 - -4 = 9.\nThe answer is 9.", None),
        ("First the sums.\n" + RIGHT, None),
        ("8 - 5 = 2\n2 + 2 = 4\n4 - -4 = 8\nAnswer: 8", "8 - 5 = 2\n"),
        ("8 - 5 = 3\n3 - 2 = 1\n1 - -4 = 5\nAnswer: 5", "3 - 2 = 1\n"),
        ("8 - 5 = 3\n4 + 2 = 6\nAnswer: 6", "4 + 2 = 6\n"),
        (RIGHT.replace("Answer: 9", "Answer: 8"), "Answer: 8"),
        ("8 - 5 = 3\n3 + 2 = 5\nAnswer: 5", "Answer: 5"),
        ("8 - 5 = 3\n3 + 2 = 5\n5 - -4 = 9\n9 + 1 = 10\nAnswer: 10", "9 + 1 = 10\n"),
        ("8 - 5 = 3\n3 + 2 = 5\n", ""),
        ("", ""),
    ],
)
def test_the_first_wrong_line_is_found(task: ChainSum, completion: str, wrong: str | None) -> None:
    verdicts = task.judge(FOUR, completion)
    at = first_wrong(verdicts)
    assert (None if at is None else verdicts[at].text) == wrong
    assert "".join(v.text for v in verdicts) == completion


@pytest.mark.parametrize(
    ("completion", "mended"),
    [
        (RIGHT, RIGHT),
        ("8 - 5 = 2\n2 + 2 = 4\n4 - -4 = 8\nAnswer: 8", RIGHT),
        ("Sums:\n8 - 5 + 2 = 5\n5 - 4 = 1\nAnswer: 1", "Sums:\n8 - 5 + 2 = 5\n5 - -4 = 9\nAnswer: 9"),
        ("8 - 5 = 3\n3 + 2 = 5", RIGHT),
        (RIGHT.replace("Answer: 9", "Answer: 8"), RIGHT),
        ("", RIGHT),
    ],
)
def test_a_critique_keeps_what_is_right_word_for_word_and_ends_in_the_answer(task: ChainSum, completion: str, mended: str) -> None:
    assert task.critique(FOUR, completion) == mended


def test_worked_solutions_hold_and_any_of_their_numbers_turned_is_found(task: ChainSum) -> None:
    for problem in task.problems("train"):
        assert first_wrong(task.judge(problem, problem.solution)) is None
        lines = problem.solution.split("\n")
        for i, line in enumerate(lines):
            turned = line.rsplit(" ", 1)[0] + f" {int(line.rsplit(' ', 1)[1]) + 1}"
            verdicts = task.judge(problem, "\n".join([*lines[:i], turned, *lines[i + 1 :]]))
            assert first_wrong(verdicts) == i
            assert task.critique(problem, "\n".join([*lines[:i], turned])) == problem.solution


def test_the_task_of_that_name_has_them() -> None:
    assert isinstance(load_task(TaskSettings(name="reasoning_gym:chain_sum")), ChainSum)
