"""Which completions are right: gold answers in other spellings are, known traps of mathematical verifiers are not."""

import time

import pytest

from selfdistill.tasks.answers import equal, final_answer, gold_answer, score

SAME = [
    ("\\frac{1}{2}", "0.5"),
    ("1/2", "\\frac12"),
    ("\\dfrac{3}{4}", "3/4"),
    ("-\\frac{7}{3}", "-7/3"),
    ("1\\frac{1}{2}", "3/2"),
    ("-5", "- 5"),
    (".5", "0.5"),
    ("1,000", "1000"),
    ("12{,}345", "12345"),
    ("10^{-3}", "0.001"),
    ("2\\cdot 10^5", "200000"),
    ("5!", "120"),
    ("\\binom{5}{2}", "10"),
    ("\\log_2 8", "3"),
    ("3\\sqrt{13}", "\\sqrt{117}"),
    ("\\frac{\\pi}{4}", "\\pi/4"),
    ("1+2i", "2i+1"),
    ("[0,1)", "[0, 1)"),
    ("(-\\infty, 3]", "(-\\infty,3]"),
    ("x\\in[1,2]", "[1,2]"),
    ("x \\le 3", "x\\leq 3"),
    ("\\{1,2,3\\}", "\\{3, 2, 1\\}"),
    ("1, 2, 3", "3,2,1"),
    ("3 or 5", "3,5"),
    ("(1,2)", "(1, 2)"),
    ("\\left(\\frac12, 3\\right)", "(1/2,3)"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
    ("x=5", "5"),
    ("x^2+2x+1", "(x+1)^2"),
    ("x^{10}+y^2", "y^2+x^{10}"),
    ("3xy+2", "2+3yx"),
    ("2x+3y=6", "3y + 2x = 6"),
    ("12 cm", "12"),
    ("12\\text{ cm}", "12 cm"),
    ("5 apples", "5"),
    ("3 \\text{ miles}", "3 mile"),
    ("\\$10", "10"),
    ("50\\%", "50%"),
    ("90^\\circ", "90"),
    ("\\text{Evelyn}", "Evelyn"),
    ("June", "june"),
    ("\\text{(A)}", "A"),
    ("\\textbf{(C)}", "C"),
    ("6ab", "6ab"),
]
DIFFERENT = [
    ("listen", "silent"),
    ("\\text{listen}", "\\text{silent}"),
    ("dog", "god"),
    ("cab", "abc"),
    ("BAD", "DAB"),
    ("0x1f", "0xf1"),
    ("1f", "f1"),
    ("a3f1", "1fa3"),
    ("ff0", "f0f"),
    ("12ab", "12ba"),
    ("5", "-5"),
    ("\\frac12", "\\frac21"),
    ("\\{1,2\\}", "\\{1,3\\}"),
    ("[0,1)", "[0,1]"),
    ("(0,1)", "[0,1]"),
    ("(1,2)", "(2,1)"),
    ("5", "5, 6"),
    ("5", "not 5"),
    ("12 cm", "13 cm"),
    ("12 cm", "12 m"),
    ("12xy", "12"),
    ("5 apples", "5 oranges"),
    ("1/3", "0.3"),
    ("101", "1.01"),
    ("1,000", "1"),
    ("2^{10}", "2^{11}"),
    ("x", "y"),
    ("yes", "no"),
    ("(A)", "(B)"),
    ("10:30", "30:10"),
    ("5", ""),
    ("", ""),
]
BOMBS = ["9^{9^{9}}", "10^{1000000}", "9**9**9", "((9!)!)!", "(99999999)!", "(" * 300, "1+" * 5000 + "1"]


@pytest.mark.parametrize("gold", sorted({text for pair in SAME for text in pair}))
def test_the_gold_answer_scores_one(gold: str) -> None:
    assert score(f"We find that it is so.\n\\boxed{{{gold}}}", gold) == 1


@pytest.mark.parametrize(("one", "other"), SAME)
def test_other_spellings_of_the_gold_answer_score_one(one: str, other: str) -> None:
    assert equal(one, other) and equal(other, one)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_only_looks_alike_scores_zero(one: str, other: str) -> None:
    assert not equal(one, other) and not equal(other, one)


@pytest.mark.parametrize("bomb", BOMBS)
def test_answers_made_to_hang_a_verifier_are_refused_at_once(bomb: str) -> None:
    start = time.monotonic()
    assert not equal(bomb, "7")
    assert time.monotonic() - start < 1.0


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("First \\boxed{1}, no: \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{5}. Wait.\nAnswer: 6", "6"),
        ("Answer: \\boxed{7}", "7"),
        ("**Answer:** 42", "42"),
        ("**Answer: 42**", "42"),
        ("The answer is 42.", "42"),
        ("The final answer is: $x=3$", "$x=3$"),
        ("The final answer to this arithmetic problem is 6.", "6"),
        ("The answer to this. That is 6.", None),
        ("Answer: .5", ".5"),
        ("Answer:\n5", "5"),
        ("3 + 4 = 7\n#### 1,200\n", "1,200"),
        ("<think>\\boxed{1}</think> Answer: 2", "2"),
        ("<think>The answer is 1.</think> I give up.", None),
        ("\\boxed{1", None),
        ("I answered it: 5", None),
        ("The answer is", None),
        ("", None),
    ],
)
def test_the_last_answer_that_is_marked_counts(completion: str, answer: str | None) -> None:
    assert final_answer(completion) == answer


def test_an_answer_of_several_lines_is_read_to_its_end() -> None:
    assert final_answer("So:\nAnswer: 1 2\n3 4\n", multiline=True) == "1 2\n3 4"
    assert final_answer("So:\nAnswer: 1 2\n3 4\n") == "1 2"


def test_two_boxes_are_not_a_set_of_both() -> None:
    assert score("\\boxed{3} or maybe \\boxed{5}", "\\{3, 5\\}") == 0
    assert score("\\boxed{3} or maybe \\boxed{5}", "5") == 1


def test_a_completion_without_a_marked_answer_scores_zero() -> None:
    assert score("It is 5", "5") == 0


def test_only_marks_of_datasets_are_read_from_gold_texts() -> None:
    assert gold_answer("2 + 3 = 5\n#### 5") == "5"
    assert gold_answer("Thus $\\boxed{5}$.") == "5"
    assert gold_answer("The answer is hard to say") is None
