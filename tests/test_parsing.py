"""A user who gets a command's arguments wrong reads one sentence with the argument and what it takes, in any width of terminal."""

import sys

import pytest

from selfdistill.cli import main
from selfdistill.cli.parsing import one_sentence, told


@pytest.mark.parametrize("columns", ["40", "80", "200"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("sample", "MODEL and QUESTION are missing; see selfdistill sample --help"),
        ("train --resume", "RECIPE is missing; see selfdistill train --help"),
        ("sample tiny x --n many", "--n takes INT, not 'many'; see selfdistill sample --help"),
        ("sample tiny x --n", "--n is given without a value; see selfdistill sample --help"),
        ("compare hsd --jobs x", "--jobs takes {None}|INT, not 'x'; see selfdistill compare --help"),
        ("credit RUN --steps 1 last", "--steps takes [INT [INT ...]], not '1', 'last'; see selfdistill credit --help"),
        ("credit RUN --align foo", "--align takes one of 'shown', 'nearest', not 'foo'; see selfdistill credit --help"),
        ("sample tiny hello world", "unexpected argument world; see selfdistill sample --help"),
        ("--sample", "there is no command '--sample'; did you mean 'sample'?; selfdistill --help lists them"),
        ("claims", "there are no runs to judge the claims by; give folders of finished runs"),
    ],
)
def test_wrong_arguments_are_one_sentence(capsys, monkeypatch, tmp_path, columns, arguments, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as left:
        main(arguments.split())
    assert (left.value.code, capsys.readouterr().err) == (2, f"selfdistill: {said}\n")
    assert not any(tmp_path.iterdir())


def test_what_is_no_mistake_passes(capsys):
    with pytest.raises(SystemExit) as left:
        main(["sample", "--help"])
    assert left.value.code == 0 and "QUESTION" in capsys.readouterr().out
    with one_sentence("selfdistill"):
        print("a warning", file=sys.stderr)
    assert capsys.readouterr().err == "a warning\n"


def test_another_box_is_told_as_it_is():
    assert told("\x1b[31m╭─\x1b[0m Title ─╮\n│ Some new   │\n│ mistake.   │\n│ ────────── │\n│ More help. │\n╰───────────╯\n") == "Some new mistake"
    # where stdout is not UTF-8
    assert told(" Title \n -------- \n  Some new  \n  mistake.  \n  -------- \n  More help.\n") == "Some new mistake"
    assert told("plain words\n") == "plain words"
