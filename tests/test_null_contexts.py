"""Null contexts say nothing true: the words stay, the answer, the solution and the peers do not."""

from dataclasses import replace

import pytest

from selfdistill.contexts import Answer, Demonstration, PeerSolution, Privileged, Solution, SuccessfulPeer, Written
from selfdistill.null_contexts import Blank, Scrambled, Wrong
from selfdistill.types import Group, Problem, Rollout

WORDS = {
    "answer": "{problem} answer {answer}",
    "solution": "{problem} solution {solution}",
    "peer": "{problem} answer {answer} peer {peer}",
    "demonstration": "{problem} shown {demonstration}",
    "feedback": "{problem} told {feedback}",
}


def rollout(index: int, text: str, reward: float, *, told: str = "") -> Rollout:
    return Rollout(
        prompt_ids=[1], completion_ids=[2], behavior_logp=[0.0], text=text, index=index, reward=reward, feedback={"environment": told} if told else {}
    )


def groups() -> list[Group]:
    """Three problems, the first two with the same answer; each is the next one's donor."""
    own = [rollout(0, "mine", 0.0, told="off at b"), rollout(1, "wrong try", 0.0), rollout(2, "right try", 1.0)]
    found = [
        Group(problem=Problem(prompt="q", answer="7", solution="s one two", columns={"demonstration": "d"}, templates=WORDS), rollouts=own),
        Group(problem=Problem(prompt="x", answer="7", solution="t", templates=WORDS), rollouts=[rollout(0, "y0", 1.0)]),
        Group(
            problem=Problem(prompt="z", answer="9", solution="u v w x y", columns={"demonstration": "e"}, templates=WORDS),
            rollouts=[rollout(0, "z one two three", 1.0, told="off at z")],
        ),
    ]
    for group, donor in zip(found, found[1:] + found[:1], strict=True):
        group.donor = donor
    return found


def shown(context, which: int = 0, of: int = 0) -> str | None:
    group = groups()[of]
    found = context(group.rollouts[which], group)
    return found[0].views["teacher"].messages[-1]["content"] if found else None


@pytest.mark.parametrize("source", [Solution(), Answer(), Demonstration(), SuccessfulPeer(), PeerSolution(), Written()], ids=str)
def test_blank_keeps_the_words_and_nothing_else(source):
    true, blank = shown(Privileged((source,))), shown(Blank(Privileged((source,))))
    assert true and blank and true.startswith("q ") and blank.startswith("q ")
    labels = {"answer", "solution", "peer", "shown", "told"}
    assert set(blank.split()) == {"q"} | (set(true.split()) & labels)


def test_blank_leaves_a_problem_without_solution_untaught():
    group = groups()[0]
    bare = Group(problem=Problem(prompt="q", templates=WORDS), rollouts=group.rollouts)
    assert Blank(Privileged((Solution(),)))(group.rollouts[0], bare) == []


def test_wrong_is_false_about_this_problem():
    assert shown(Wrong(Privileged((Answer(),)))) == "q answer 9", "the next problem's answer is the same, so it is the one after"
    assert shown(Wrong(Privileged((Solution(),)))) == "q solution wrong try"
    assert shown(Wrong(Privileged((SuccessfulPeer(),)))) == "q answer 9 peer wrong try"
    assert shown(Wrong(Privileged((Written(),)))) == "q told off at z"


def test_wrong_teaches_nothing_where_all_answers_are_the_same():
    first, second, _ = groups()
    first.donor, second.donor = second, first
    assert Wrong(Privileged((Answer(),)))(first.rollouts[0], first) == []


def test_scrambled_is_another_problems_words_without_order():
    group = groups()[1]
    text = Scrambled(Privileged((Solution(),)))(group.rollouts[0], group)[0].views["teacher"].messages[-1]["content"]
    words = text.removeprefix("x solution ").split()
    assert sorted(words) == ["u", "v", "w", "x", "y"] and words != ["u", "v", "w", "x", "y"]
    assert text == Scrambled(Privileged((Solution(),)))(group.rollouts[0], group)[0].views["teacher"].messages[-1]["content"]


def test_wrong_ends_where_a_step_holds_a_problem_twice_and_all_answers_are_the_same():
    """The ring of donors then does not lead back to the first of the two."""
    first, second, _ = groups()
    again = replace(first)
    first.donor = again.donor = second
    second.donor = first
    assert all(Wrong(Privileged((Answer(),)))(g.rollouts[0], g) == [] for g in (first, again, second))


def test_wrong_teaches_problems_that_have_solutions_and_no_answers():
    """None of them can be right by having the same answer; or the control would gain 0 by construction."""
    first, *others = groups()
    for group in (first, *others):
        group.problem = replace(group.problem, answer="")
    (found,) = Wrong(Privileged((Solution(),)))(first.rollouts[0], first)
    assert found.views["teacher"].messages[-1]["content"] == "q solution wrong try"


COLUMNS = {"list": ["first d", "then d"], "chat": ({"role": "assistant", "content": "d"},), "mapping": {"steps": "d"}, "number": 7}


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_a_column_that_is_no_text_is_blanked_and_scrambled_too(column):
    group, donor = groups()[0], groups()[2]
    group.problem = replace(group.problem, columns={"demonstration": column, "shards": ["q"]})
    donor.problem, group.donor = group.problem, donor
    (blank,), (scrambled,) = (part(Privileged((Demonstration(),)))(group.rollouts[0], group) for part in (Blank, Scrambled))
    assert blank.views["teacher"].messages[-1]["content"] == "q shown"
    text = scrambled.views["teacher"].messages[-1]["content"].removeprefix("q shown ")
    assert sorted(text.split()) == sorted(str(column).split())
