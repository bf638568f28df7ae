"""Generators of reasoning-gym as tasks: disjoint splits, gold answers right, worked solutions true, scorers not to be tricked."""

import logging
import pickle
import re
from dataclasses import replace
from typing import Any

import pytest

from selfdistill.tasks.grading import grade
from selfdistill.tasks.reasoning_gym import ReasoningGym
from selfdistill.types import Group, Problem, Rollout

GENERATORS = ("chain_sum", "gsm_symbolic", "countdown", "puzzle24", "polynomial_multiplication", "sudoku", "knights_knaves", "leg_counting", "spiral_matrix")


def task_of(generator: str, **knobs: Any) -> ReasoningGym:
    return ReasoningGym(generator=generator, num_train=20, num_test=5, knobs=knobs)


@pytest.mark.parametrize("generator", GENERATORS)
def test_the_gold_answer_scores_one_and_others_zero(generator: str) -> None:
    task = task_of(generator)
    for problem in task.problems("test"):
        for answer in (f"Answer: {problem.answer}", f"So\n\n**Answer:** {problem.answer}\n", f"\\boxed{{{problem.answer}}}"):
            assert task.verify(problem, "I think.\n" + answer) == 1
        assert task.verify(problem, "Answer: banana") == 0
        assert task.verify(problem, problem.answer) == 0, "an answer that is not marked as one"


def test_partial_credit_is_no_credit() -> None:
    task = task_of("chain_sum")
    problem = task.problems("test")[0]
    assert 0 < task._scorer.score_answer(f"{problem.answer} or so", problem.columns["entry"]) < 1
    assert task.verify(problem, f"Answer: {problem.answer} or so") == 0


def test_no_question_is_in_both_splits_of_any_two_seeds() -> None:
    test = {p.prompt for seed in range(3) for p in ReasoningGym(generator="chain_sum", num_train=50, num_test=50, seed=seed).problems("test")}
    train = {p.prompt for seed in range(3) for p in ReasoningGym(generator="chain_sum", num_train=200, num_test=10, seed=seed).problems("train")}
    assert len(test) > 140 and len(train) > 580 and not test & train


def test_the_same_settings_give_the_same_problems_and_another_seed_others() -> None:
    one, same = (ReasoningGym(generator="gsm_symbolic", num_train=20, num_test=5, seed=1).problems("train") for _ in range(2))
    other = ReasoningGym(generator="gsm_symbolic", num_train=20, num_test=5, seed=2).problems("train")
    assert [p.prompt for p in one] == [p.prompt for p in same]
    assert not {p.prompt for p in one} & {p.prompt for p in other}


def test_knobs_reach_the_generator() -> None:
    for problem in task_of("chain_sum", min_terms=4, max_terms=4, min_digits=2, max_digits=2).problems("train"):
        assert len(re.findall(r"\b\d\d\b", str(problem.prompt))) == 4


@pytest.mark.parametrize("negation", [False, True])
def test_running_sums_are_true_and_end_in_the_answer(negation: bool) -> None:
    task = task_of("chain_sum", allow_negation=negation, max_terms=5)
    for problem in task.problems("train"):
        *steps, last = problem.solution.split("\n")
        assert last == f"Answer: {problem.answer}" and task.verify(problem, problem.solution) == 1
        results = []
        for step in steps:
            left, operator, right, result = re.fullmatch(r"(-?\d+) ([-+]) (-?\d+) = (-?\d+)", step).groups()
            assert int(left) + (int(right) if operator == "+" else -int(right)) == int(result)
            assert not results or results[-1] == left
            results.append(result)
        assert not results or results[-1] == problem.answer


def test_the_librarys_own_working_ends_as_the_instruction_asks() -> None:
    task = task_of("gsm_symbolic")
    for problem in task.problems("train"):
        assert "####" not in problem.solution and len(problem.solution.split("\n")) > 1
        assert task.verify(problem, problem.solution) == 1


@pytest.mark.parametrize("text", ["__import__('os').getpid()", "9**9**9", "9 ** 9 ** 9", "9999999999*1", "open('x')", "(lambda: 24)()", "exit()"])
@pytest.mark.parametrize("generator", ["countdown", "puzzle24", "polynomial_multiplication", "intermediate_integration", "spiral_matrix", "n_queens"])
def test_text_that_would_run_is_never_given_to_a_scorer_that_executes_it(generator: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = ReasoningGym(generator=generator, num_train=2, num_test=1)
    problem = task.problems("train")[0]
    given: list[str] = []
    monkeypatch.setattr(type(task._scorer), "score_answer", lambda self, answer, entry: given.append(answer) or 0)
    task.verify(problem, f"Answer: {text}")
    assert not [answer for answer in given if re.search(r"\w\(|\)\(|\*\*\s*\d+\s*\*\*|\d{10}", answer)]


def test_a_right_expression_of_other_numbers_does_not_solve_puzzle24() -> None:
    task = task_of("puzzle24")
    problem = replace(task.problems("train")[0], columns={"entry": {"answer": "", "metadata": {"numbers": [1, 3, 5, 9]}}}, answer="")
    assert task.verify(problem, "Answer: 9 + 5*3*1") == 1
    assert task.verify(problem, "Answer: 4*6*1*1") == 0


def test_a_scorer_that_calls_everything_right_is_not_asked() -> None:
    task = task_of("game_of_life_halting")
    problem = task.problems("train")[0]
    assert task.verify(problem, f"Answer: {problem.answer}") == 1
    assert task.verify(problem, f"Answer: {'False' if problem.answer == 'True' else 'True'}") == 0


def test_problems_without_one_answer_are_verified_by_the_scorer_alone() -> None:
    task = task_of("graph_color")
    problem = task.problems("train")[0]
    assert problem.answer == ""
    assert task.verify(problem, "Answer: {}") == 0


def test_rollouts_are_graded_in_another_process_without_the_problems() -> None:
    task = task_of("chain_sum")
    problem = task.problems("train")[0]
    assert len(pickle.dumps(task)) < 2000
    texts = [problem.solution, "Answer: 0.5", "nothing"]
    group = Group(problem=problem, rollouts=[Rollout(prompt_ids=[1], completion_ids=[1], behavior_logp=[0.0], text=text) for text in texts])
    grade([group], task, workers=1)
    assert [r.reward for r in group.rollouts] == [1, 0, 0]


def test_a_generator_with_few_questions_says_so(caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        train = ReasoningGym(generator="chain_sum", knobs={"max_terms": 2, "max_digits": 1}, num_train=1000, num_test=10).problems("train")
    assert 100 < len(train) < 200 and len({p.prompt for p in train}) == len(train)
    assert "different questions for the train split, not 1000" in caplog.text


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"generator": "chain_sums"}, "no generator 'chain_sums'; did you mean 'chain_sum'"),
        ({"generator": "chain_sum", "knobs": {"min_terns": 2}}, "refuses the settings .*min_terns"),
        ({"generator": "chain_sum", "knobs": {"min_terms": 0}}, "refuses the settings .*min_terms must be positive"),
    ],
)
def test_bad_settings_are_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ReasoningGym(**settings)


def test_problems_are_ordinary(tmp_path: Any) -> None:
    problem = task_of("leg_counting").problems("train")[0]
    assert isinstance(problem, Problem) and "Answer:" in problem.instruction and problem == pickle.loads(pickle.dumps(problem))
