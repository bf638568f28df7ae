"""A user who gets a command's arguments wrong reads one sentence with the argument and what it takes, in any width of terminal."""

import sys

import pytest
from tiny_models import tiny_policy

from selfdistill.cli import main
from selfdistill.cli.parsing import one_sentence, told
from selfdistill.loading import load_weights

LAST = "of which only the last would count; give it once, as selfdistill"


@pytest.mark.parametrize("columns", ["40", "80", "200"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("sample", "MODEL and QUESTION are missing; see selfdistill sample --help"),
        ("train --resume", "RECIPE is missing; see selfdistill train --help"),
        ("sample tiny x --n many", "--n takes INT, not 'many'; see selfdistill sample --help"),
        ("sample tiny x --n", "--n is given without a value; see selfdistill sample --help"),
        ("compare hsd --jobs x", "--jobs takes INT, not 'x'; see selfdistill compare --help"),
        ("credit RUN --steps 1 last", "--steps takes [INT [INT ...]], not '1', 'last'; see selfdistill credit --help"),
        ("credit RUN --align foo", "--align takes one of 'shown', 'nearest', not 'foo'; see selfdistill credit --help"),
        ("sample tiny hello world", "unexpected argument world; see selfdistill sample --help"),
        ("--sample", "there is no command '--sample'; did you mean 'sample'?; selfdistill --help lists them"),
        ("sample tiny x --n 0", "--n 0 leaves nothing to sample; give at least 1"),
        ("sample tiny x --max-completion-length 0", "--max-completion-length 0 leaves nothing to sample; give at least 1"),
        ("sample tiny x --temperature -1", "--temperature -1 cannot divide logits; give 0 for greedy decoding, or more"),
        ("sample tiny x --temperature nan", "--temperature nan cannot divide logits; give 0 for greedy decoding, or more"),
        ("preview quickstart --problems 0", "--problems 0 shows nothing and proves nothing; give at least 1"),
        ("train quickstart --steps 1 --steps 2", f"--steps is given twice, {LAST} train --help shows"),
        ("compare x --null a --null=b", f"--null is given twice, {LAST} compare --help shows"),
        ("compare --controls --no-controls x", f"--controls and --no-controls are one key, {LAST} compare --help shows"),
        ("train quickstart --output_dir a --output-dir b", f"--output_dir and --output-dir are one key, {LAST} train --help shows"),
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


def test_a_file_is_no_model_and_a_reward_names_its_key(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.toml").write_text("x = [")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text('{"model": {"pa')
    for arguments, said in (
        (["sample", "broken.toml", "x"], "MODEL = 'broken.toml' is a file; give a run's or a model's folder"),
        (["eval", "tiny", "--reward", "foo"], "reward = 'foo' is not of the form package.module:name"),
        (["eval", "tiny", "--reward", "absent.py:foo"], "reward = 'absent.py:foo': there is no file"),
        (["eval", "tiny", "--reward", "json:foo"], "reward = 'json:foo': json has no 'foo'"),
        (["markers", "run"], "run/settings.json: this is no whole JSON (EOF while parsing a string at line 1 column 14)"),
        (["pretrain", "quickstart"], "quickstart: the key 'phases' is missing"),
    ):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        err = capsys.readouterr().err
        assert left.value.code == 2 and err.startswith(f"selfdistill: {said}") and err.count("\n") == 1, err
    assert {path.name for path in tmp_path.iterdir()} == {"broken.toml", "run"}


def test_recipes_are_told_in_whole_sentences(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    starts = [line for line in lines if not line.startswith(" ")]
    # one column of words, and each recipe's last line ends a sentence
    assert len({len(line) - len(line.split(" ", 1)[1].lstrip()) for line in starts}) == 1
    ends = [line for line, after in zip(lines, [*lines[1:], "x"], strict=True) if not after.startswith(" ")]
    assert [line for line in ends if not line.endswith(".")] == []


def test_a_checkpoint_without_its_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no weights; choose another checkpoint"):
        load_weights(tiny_policy(), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"is not whole .*; choose another checkpoint"):
        load_weights(tiny_policy(), tmp_path)
