"""Critics: the testbed's is exact, a model's is asked in the right words and its tags are taken out."""

import random
from dataclasses import dataclass, replace

import pytest
from stepping import Bare, breaking, tools_of
from tiny_models import tiny_groups, tiny_policy

from selfdistill.contexts import Answer, Solution
from selfdistill.critics import ModelCritic, TaskChecker
from selfdistill.method import Method
from selfdistill.steps import ClosedBy
from selfdistill.tasks import first_wrong
from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.tasks.arithmetic.mixture import Mixture
from selfdistill.types import Group, Problem, Rollout

TASK = Arithmetic(num_train=5, num_test=5)


@dataclass(frozen=True)
class Says:
    """A writer whose replies are written down; keeps what it was asked in `asked`, given from outside."""

    replies: tuple[str, ...]
    asked: list

    def __call__(self, chats, tools):
        self.asked.extend(chats)
        return list(self.replies[: len(chats)])


@pytest.fixture(scope="module")
def tools():
    return replace(tools_of(tiny_policy(), Method()), task=TASK)


def rollout(text: str) -> Rollout:
    return Rollout(prompt_ids=[1], completion_ids=[2], behavior_logp=[0.0], text=text)


def workings(n: int) -> list[tuple[Problem, str]]:
    """Workings with slips carried through and slips mended, whole and cut off, as the base writes them."""
    rng, mixture = random.Random(0), Mixture(task=TASK, context_share=0.0, slip_rate=0.3, careful_rate=0.4)
    found = []
    for i in range(n):
        example = mixture.draw(rng)
        words = list(example.words)
        shown = words if i % 3 else words[: rng.randrange(len(words))]
        found.append((Problem(prompt=example.messages[0]["content"]), " ".join(shown)))
    return found


def test_the_checkers_critique_is_the_rollout_up_to_its_first_error_and_right_from_there(tools):
    """So under per-token credit only what comes at or after the first wrong step can differ between teacher and student text."""
    whole = mended = 0
    pairs = [(rollout(text), Group(problem=problem, rollouts=[])) for problem, text in workings(600)]
    for (attempt, group), critique in zip(pairs, TaskChecker()(pairs, tools), strict=True):
        verdicts = TASK.judge(group.problem, attempt.text)
        wrong = first_wrong(verdicts)
        if wrong is None:
            whole += 1
            assert critique == attempt.text
            continue
        parts = attempt.text.split(";")
        prefix = "".join(f"{part};" for part in parts[:wrong])
        assert critique.startswith(prefix)
        is_cut_off = wrong == len(parts) - 1
        assert is_cut_off or critique[len(prefix) :].split(";")[0].strip() != parts[wrong].strip(), "the wrong step is not quoted"
        assert first_wrong(TASK.judge(group.problem, critique)) is None, critique
        mended += "oops" in prefix
    assert whole > 50 and mended > 50


def test_a_rollout_that_is_cut_off_is_finished(tools):
    problem = Problem(prompt="a = 3 + 7 ; c = 2 * 9 ; b = a * c ; b ?")
    for text in ("", "c", "c = 2 * 9 = c 18 ;", "c = 2 * 9 = c 18 ; a = 3 +", "c = 2 * 9 = c 18 ; a = 3 + 7 = a 10 ; b = a 10 * c 18 = b 9 ; answer"):
        (critique,) = TaskChecker()([(rollout(text), Group(problem=problem, rollouts=[]))], tools)
        assert critique.startswith(text) and first_wrong(TASK.judge(problem, critique)) is None


def test_a_wrong_step_that_was_to_mend_another_is_itself_mended(tools):
    problem = Problem(prompt="a = 3 + 7 ; b = a * 5 ; b ?")
    text = "a = 3 + 7 = a 11 ; oops a = 3 + 7 = a 12 ; b = a 12 * 5 = b 3 ; answer 3"
    (critique,) = TaskChecker()([(rollout(text), Group(problem=problem, rollouts=[]))], tools)
    assert critique == "a = 3 + 7 = a 11 ; oops a = 3 + 7 = a 10 ; b = a 10 * 5 = b 12 ; answer 12"


def test_a_task_without_a_critique_or_one_that_breaks_is_one_sentence(tools):
    pairs = [(rollout("x"), Group(problem=Problem(prompt="q"), rollouts=[]))]
    for task, said in ((Bare(), r"Bare has no critique.*--method.critic"), (breaking("critique"), "critique of Breaks raised KeyError: 'gold'")):
        with pytest.raises(ValueError, match=said):
            TaskChecker()(pairs, replace(tools, task=task))


def test_a_model_is_shown_problem_truth_and_tagged_steps():
    policy = tiny_policy()
    tools, asked = tools_of(policy, Method()), []
    problem = Problem(prompt="What is 2 + 2?", answer="4", solution="It is {4}.")
    known, unknown = Group(problem=problem, rollouts=[]), Group(problem=replace(problem, answer="", solution=""), rollouts=[])
    pairs = [(rollout("Two {x}.\n\nSo 5."), known), (rollout("?"), unknown), (rollout("So 4."), known)]
    says = Says(("<step 1>\nTwo {x}.\n</step 1>\n<step 2>\nSo 4.\n</step 2>", "</step 1>"), asked)
    assert ModelCritic(says)(pairs, tools) == ["Two {x}.\nSo 4.", None, None], "no truth, and a reply of nothing but tags"
    assert len(asked) == 2
    text = asked[0][-1]["content"]
    assert "<step 1>\nTwo {x}.\n</step 1>\n<step 2>\nSo 5.\n</step 2>" in text
    assert text.startswith("What is 2 + 2?") and "=== ground truth begins ===\n4\n===" in text and "It is {4}." not in text
    ModelCritic(says, truth=(Solution(), Answer()))(pairs[:1], tools)
    assert "=== ground truth begins ===\nIt is {4}.\n===" in asked[-1][-1]["content"]


def test_the_model_itself_writes_a_critique_of_every_rollout():
    policy = tiny_policy()
    groups = tiny_groups(policy)
    pairs = [(r, g) for g in groups for r in g.rollouts]
    found = ModelCritic(steps=ClosedBy(" "))(pairs, tools_of(policy, Method()))
    assert len(found) == 8 and all(found) and len(set(found)) > 4
