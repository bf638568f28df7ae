"""Rewards on rollouts: what verifiers and reward functions are given, and what becomes of what they return."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfdistill.imports import load_object
from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.tasks.files import Dataset
from selfdistill.tasks.grading import Weighted, grade
from selfdistill.types import Group, Problem, Rollout

ISOLATED = """
import time

class Slow:
    isolated = True

    def problems(self, split):
        return []

    def verify(self, problem, completion):
        if completion == "hang":
            time.sleep(60)
        if completion == "raise":
            raise KeyError("no such thing")
        return None if completion == "skip" else float(completion == problem.answer)
"""


@dataclass(frozen=True)
class Exact:
    """The smallest task there is: right is equal to the answer."""

    def problems(self, split: str) -> list[Problem]:
        return []

    def verify(self, problem: Problem, completion: str) -> float | None:
        return float(completion == problem.answer)


def groups_of(*texts: Sequence[str], **fields: Any) -> list[Group]:
    """One group a sequence of completions, on problems q0, q1, ... with answers a0, a1, ..."""
    made = []
    for i, group in enumerate(texts):
        problem = Problem(**{"prompt": f"q{i}", "answer": f"a{i}", "id": str(i)} | fields)
        rollouts = [Rollout(prompt_ids=[1], completion_ids=[2, 3], behavior_logp=[0.0, 0.0], text=text, index=j) for j, text in enumerate(group)]
        made.append(Group(problem=problem, rollouts=rollouts))
    return made


def rewards(groups: Sequence[Group]) -> list[list[float | None]]:
    return [[r.reward for r in g.rollouts] for g in groups]


def test_the_tasks_verifier_sets_every_reward() -> None:
    groups = groups_of(["a0", "a1"], ["a1", "x", "a1"])
    grade(groups, Exact())
    assert rewards(groups) == [[1, 0], [1, 0, 1]]


def test_mathematics_is_graded_in_other_processes() -> None:
    groups = groups_of(["so \\boxed{0.5}", "so \\boxed{2}", "0.5"], answer="\\frac{1}{2}")
    grade(groups, Dataset(rows=[]), workers=1)
    assert rewards(groups) == [[1, 0, 0]]


def test_rows_without_an_answer_leave_the_loss() -> None:
    groups = groups_of(["so \\boxed{0.5}"], answer="")
    grade(groups, Dataset(rows=[]), workers=1)
    assert rewards(groups) == [[None]]


def test_a_verifier_that_hangs_scores_zero_with_a_warning_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    (tmp_path / "slow_task.py").write_text(ISOLATED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    task = load_object("slow_task:Slow")()
    groups = groups_of(["a0", "hang", "x", "skip"])
    with caplog.at_level(logging.WARNING):
        grade(groups, task, timeout_s=1.0, workers=1)
    assert rewards(groups) == [[1, 0, 0, None]]
    assert "the verifier of Slow" in caplog.text and "1 of 4 completions" in caplog.text and "'hang'" in caplog.text
    with pytest.raises(ValueError, match="the verifier of Slow raised KeyError: 'no such thing'"):
        grade(groups_of(["a0", "raise"]), task, workers=1)


def test_the_environment_speaks_about_what_is_not_right_only() -> None:
    task = Arithmetic(operations=2, num_train=1)
    problem = task.problems("train")[0]
    groups = groups_of([problem.solution, problem.solution + " 0"])
    groups[0].problem = problem
    grade(groups, task)
    assert rewards(groups) == [[1, 0]]
    assert "environment" not in groups[0].rollouts[0].feedback
    assert groups[0].rollouts[1].feedback["environment"].startswith("wrong")


@dataclass(frozen=True)
class Speaking(Exact):
    """Says of a completion what it is given to say, or raises it."""

    says: Any

    def feedback(self, problem: Problem, completion: str) -> Any:
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


def test_feedback_that_raises_or_is_no_text_is_one_sentence() -> None:
    for says, said in ((KeyError("gold"), "the feedback of Speaking raised KeyError: 'gold'"), (3, "Speaking returned 3, which is neither text nor None")):
        with pytest.raises(ValueError, match=said):
            grade(groups_of(["a0", "x"]), Speaking(says))
        grade(groups_of(["a0"]), Speaking(says))
    for silent in (None, ""):
        groups = groups_of(["x"])
        grade(groups, Speaking(silent))
        assert groups[0].rollouts[0].feedback == {}


def test_a_reward_function_is_given_one_entry_a_completion_of_every_column() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        seen.update(columns, prompts=prompts, completions=completions)
        return [0.5] * len(completions)

    groups = groups_of(["a", "b"], ["c"], solution="s", columns={"difficulty": 3})
    grade(groups, Exact(), reward=reward)
    assert seen["prompts"] == ["q0", "q0", "q1"] and seen["completions"] == ["a", "b", "c"]
    assert seen["answer"] == ["a0", "a0", "a1"] and seen["solution"] == ["s"] * 3 and seen["difficulty"] == [3, 3, 3]
    assert rewards(groups) == [[0.5, 0.5], [0.5]]


def test_a_reward_function_without_prompts_takes_only_what_it_names() -> None:
    def accuracy(completions: list[str], answer: list[str]) -> list[bool]:
        return [c == a for c, a in zip(completions, answer, strict=True)]

    groups = groups_of(["a0", "x"])
    grade(groups, Exact(), reward=accuracy)
    assert rewards(groups) == [[1, 0]]


def test_chat_prompts_come_with_chat_completions() -> None:
    def reward(prompts: list[Any], completions: list[Any]) -> list[float]:
        assert prompts[0] == [{"role": "user", "content": "hello"}]
        return [float(c[0]["role"] == "assistant" and c[0]["content"] == "yes") for c in completions]

    groups = groups_of(["yes", "no"], prompt=({"role": "user", "content": "hello"},))
    grade(groups, Exact(), reward=reward)
    assert rewards(groups) == [[1, 0]]


def test_none_takes_a_rollout_out_and_arrays_are_lists() -> None:
    groups = groups_of(["a", "b"])
    grade(groups, Exact(), reward=lambda completions: [None, 2])
    assert rewards(groups) == [[None, 2]]
    grade(groups, Exact(), reward=lambda completions: np.array([0.25, 0.75], dtype=np.float32))
    assert rewards(groups) == [[0.25, 0.75]]


def test_several_rewards_are_summed_with_their_weights_where_they_have_a_say() -> None:
    def right(completions: list[str]) -> list[float | None]:
        return [1.0, 0.0, None, None]

    def short(completions: list[str]) -> list[float | None]:
        return [-1.0, -2.0, -3.0, None]

    groups = groups_of(["a", "b", "c", "d"])
    grade(groups, Exact(), reward=Weighted((right, short), (1.0, 0.1)))
    assert rewards(groups) == [[pytest.approx(0.9), pytest.approx(-0.2), pytest.approx(-0.3), None]]
    with pytest.raises(ValueError, match="2 reward functions need as many weights, not 1"):
        Weighted((right, short), (1.0,))


def one_too_many(completions: list[str]) -> list[float]:
    return [1.0] * (len(completions) + 1)


def raising(completions: list[str]) -> list[float]:
    raise RuntimeError("out of juice")


@pytest.mark.parametrize(
    ("reward", "sentence"),
    [
        (one_too_many, "one_too_many returned 3 values for 2 completions; return one number"),
        (raising, "raising raised RuntimeError: out of juice"),
        (Weighted((raising,), (1.0,)), "^the reward function raising raised RuntimeError"),
        (lambda completions: [1.0, "good"], "returned 'good', which is neither a finite number nor None"),
        (lambda completions: [1.0, float("nan")], "returned nan, which is neither"),
        (lambda completions: 1.0, r"returned 1\.0 for 2 completions; return a list"),
        (lambda completions, difficulty: [0, 0], "asks for 'difficulty', which is no column; there are answer, completion_ids"),
    ],
)
def test_what_a_reward_function_does_wrong_is_one_sentence(reward: Any, sentence: str) -> None:
    groups = groups_of(["a", "b"])
    with pytest.raises(ValueError, match=sentence):
        grade(groups, Exact(), reward=reward)
    assert rewards(groups) == [[None, None]]


def test_a_verifier_that_raises_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="the verifier of Arithmetic raised ValueError"):
        grade(groups_of(["answer 5"]), Arithmetic())
