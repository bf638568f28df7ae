"""Judges: what counts as a grade, whose share holds, and what is shown to whom."""

from dataclasses import replace

import pytest
from stepping import Bare, breaking, tools_of
from test_critics import Says, rollout
from tiny_models import tiny_policy

from selfdistill.judges import Attempt, ModelJudge, StepJudge, WithoutReference, likert
from selfdistill.method import Method
from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.types import Group, Problem

PROBLEM = Problem(prompt="a = 3 + 7 ; b = a * 5 ; b ?", answer="12", solution="a = 3 + 7 = a 10 ; b = a 10 * 5 = b 12 ; answer 12")


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Checked.\nScore: 1", 0.0),
        ("Score: 2", 0.25),
        ("**Score:** 3", 0.5),
        ("score 4/5.", 0.75),
        ("A score of 2 at first, yet\nScore: [5]", 1.0),
        ("4", 0.75),
        (" **3**\n", 0.5),
        ("Score: 6", None),
        ("Score: 0", None),
        ("Score: 10", None),
        ("Score: 4.5", None),
        ("It has 3 steps", None),
        ("Score: N", None),
        ("", None),
    ],
)
def test_a_grade_is_the_last_score_that_is_stated(text, score):
    assert likert(text) == score


def attempts(*texts: str, ends: bool = True, problem: Problem = PROBLEM) -> list[Attempt]:
    return [Attempt(rollout=rollout(t), group=Group(problem=problem, rollouts=[]), text=t, ends=ends) for t in texts]


def test_the_judge_sees_the_reference_and_says_when_it_cannot_tell(caplog):
    tools, asked = tools_of(tiny_policy(), Method()), []
    bare = replace(PROBLEM, answer="", solution="")
    found = ModelJudge(Says(("Score: 5", "who knows"), asked))([*attempts("first"), *attempts("x", problem=bare), *attempts("second")], tools)
    assert found == [1.0, None, None] and len(asked) == 2
    text = asked[0][-1]["content"]
    assert f"=== reference begins ===\n{PROBLEM.solution}\n===" in text and "=== attempt begins ===\nfirst\n===" in text and "Score: N" in text
    assert "2 of 3 judgements hold no score" in caplog.text


def test_the_control_is_shown_neither_reference_nor_answer():
    tools, asked = tools_of(tiny_policy(), Method()), []
    told = replace(PROBLEM, solution="12 it is", privileged_context="12 again")
    assert WithoutReference(ModelJudge(Says(("Score: 5", "Score: 1"), asked)))(attempts("first", "second", problem=told), tools) == [1.0, 0.0]
    assert [PROBLEM.prompt in chat[-1]["content"] and "12" not in chat[-1]["content"] for chat in asked] == [True, True]


def test_the_exact_judge_counts_steps_and_the_answer():
    tools = replace(tools_of(tiny_policy(), Method()), task=Arithmetic(num_train=5, num_test=5))
    right, slip = "a = 3 + 7 = a 10 ;", "a = 3 + 7 = a 11 ;"
    whole = [f"{right} b = a 10 * 5 = b 12 ; answer 12", f"{slip} b = a 11 * 5 = b 17 ; answer 17", f"{right} answer 10", right, ""]
    assert StepJudge()(attempts(*whole), tools) == pytest.approx([1.0, 2 / 3, 0.5, 0.5, 0.0])
    begun = [right, slip, f"{slip} oops {right}", f"{slip} b = a 11 * 5 = b 17 ;"]
    assert StepJudge()(attempts(*begun, ends=False), tools) == [1.0, 0.0, 1.0, 0.5], "an answer is not missing yet"


def test_a_task_without_a_judge_or_one_that_breaks_is_one_sentence():
    tools = tools_of(tiny_policy(), Method())
    for task, said in ((Bare(), r"Bare has no judge.*--method.judge"), (breaking("judge"), "judge of Breaks raised KeyError: 'gold'")):
        with pytest.raises(ValueError, match=said):
            StepJudge()(attempts("x"), replace(tools, task=task))
