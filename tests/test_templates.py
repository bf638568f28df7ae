"""The words around privileged text: what each kind shows, and what is refused in a user's own."""

from pathlib import Path

import pytest

from selfdistill.templates import ENGLISH, FIELDS, FRAGMENTS, WITHOUT_QUESTION, check_template, load_templates


def test_every_kind_has_english_words_that_show_all_it_is_given() -> None:
    assert set(ENGLISH) == set(FIELDS)
    for kind, text in ENGLISH.items():
        check_template(kind, text)


def test_every_kind_closes_with_the_answer_format_on_both_sides() -> None:
    """Those that ask for something else than an answer leave it out, and so do texts that go into another one."""
    for kind, text in ENGLISH.items():
        closes = "request" not in kind and kind not in FRAGMENTS
        assert text.rstrip().endswith("{instruction}") == closes, kind
        assert text.count("{instruction}") == closes, kind


def test_the_question_opens_every_prompt_that_is_about_one() -> None:
    for kind, text in ENGLISH.items():
        about_one = kind not in WITHOUT_QUESTION | FRAGMENTS
        assert text.startswith("{problem}") == about_one, kind
        assert ("{problem}" in text) == about_one, kind


def test_a_fragment_may_show_a_part_of_what_it_is_given() -> None:
    check_template("skill_item", "{title}")
    for text, said in (("nothing", "leaves out"), ("{title} {problem}", r"names \{problem\}"), ("{title} {instruction}", r"names \{instruction\}")):
        with pytest.raises(ValueError, match=said):
            check_template("skill_item", text)


def test_braces_in_the_texts_survive() -> None:
    shown = ENGLISH["solution"].format(problem="What is \\frac{1}{2}?", solution="It is {0.5}.", instruction="Use \\boxed{}.")
    assert "\\frac{1}{2}" in shown and "{0.5}" in shown and shown.endswith("\\boxed{}.")


def test_a_users_file_replaces_the_kinds_it_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('answer = "{problem} Hint: {answer} {instruction}"\n')
    assert load_templates(path) == {"answer": "{problem} Hint: {answer} {instruction}"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('solutoin = "{problem} {solution}"', "no template 'solutoin'; did you mean 'solution'"),
        ('answer = "{problem} {instruction}"', r"leaves out \{answer\}"),
        ('answer = "{answer}"', r"leaves out \{problem\}"),
        ('answer = "{problem} {answer} {solution}"', r"names \{solution\}; it may name \{answer\}"),
        ('reference = "{problem} {solution}"', r"names \{problem\}"),
        ('answer = "{problem} {answer} }"', "stray brace"),
        ("answer = 5", "is 5, not text"),
        ("answer = ", "cannot be read"),
    ],
)
def test_a_file_that_would_hide_something_from_the_teacher_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text + "\n")
    with pytest.raises(ValueError, match=sentence):
        load_templates(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.toml"):
        load_templates(tmp_path / "nowhere.toml")
