"""Users' own code by name, from the folder they stand in."""

import sys
from pathlib import Path

import pytest

from selfdistill.imports import load_object, nearest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_a_module_of_the_working_folder_is_found(folder: Path) -> None:
    (folder / "my_rewards_a.py").write_text("def brevity(completions):\n    return [-len(c) for c in completions]\n")
    assert load_object("my_rewards_a:brevity")(["abc"]) == [-3]


def test_a_module_inside_a_package_is_found(folder: Path) -> None:
    (folder / "my_package_b").mkdir()
    (folder / "my_package_b" / "parts.py").write_text("LIMIT = 7\n")
    assert load_object("my_package_b.parts:LIMIT") == 7


def test_a_file_is_found_with_what_lies_beside_it(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "helper_c.py").write_text("FACTOR = 3\n")
    (folder / "deep" / "my_task_c.py").write_text("from helper_c import FACTOR\n\ndef triple(x):\n    return FACTOR * x\n")
    assert load_object("deep/my_task_c.py:triple")(5) == 15


def test_two_files_of_one_name_are_not_confused(folder: Path) -> None:
    for name, value in (("one", 1), ("two", 2)):
        (folder / name).mkdir()
        (folder / name / "same_name_d.py").write_text(f"VALUE = {value}\n")
    assert load_object("one/same_name_d.py:VALUE") == 1
    with pytest.raises(ValueError, match=r"already imported from .*one.*rename"):
        load_object("two/same_name_d.py:VALUE")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("my_module_e", "not of the form"),
        (":thing", "not of the form"),
        ("my_modul_e:brevity", "no module 'my_modul_e'.*did you mean 'my_module_e'"),
        ("my_module_e:brevty", "has no 'brevty'; did you mean 'brevity'"),
        ("my_modul_e.py:brevity", "no file .*did you mean 'my_module_e.py'"),
        ("broken_e:anything", "importing it raised SyntaxError"),
        ("needy_e:anything", "no module 'a_package_nobody_has'"),
    ],
)
def test_what_cannot_be_found_is_one_sentence(folder: Path, name: str, sentence: str) -> None:
    (folder / "my_module_e.py").write_text("def brevity():\n    pass\n")
    (folder / "broken_e.py").write_text("def (:\n")
    (folder / "needy_e.py").write_text("import a_package_nobody_has\n")
    with pytest.raises(ValueError, match=sentence) as caught:
        load_object(name)
    assert "\n" not in str(caught.value)


def test_the_nearest_name_is_never_a_private_one() -> None:
    assert nearest("rewrd", ["_reward", "reward"]) == "; did you mean 'reward'?"
    assert nearest("rewrd", ["_reward"]) == ""
    assert nearest("hsd", ["grpo", "sft"]) == ""
