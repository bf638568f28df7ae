"""Files and folders that are whole or not there: failures and kills leave what was, and what they leave behind is in nobody's way."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import selfdistill
from selfdistill.atomic import whole_folder, write_whole


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_whole(path, "one")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert path.read_text() == "one" and [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
    for name in ("one", "two"):
        with whole_folder(tmp_path / "deep" / "folder") as partial:
            (partial / "inner").mkdir()
            (partial / "inner" / name).write_text(name)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["folder"]
    assert [p.read_text() for p in (tmp_path / "deep" / "folder" / "inner").iterdir()] == ["two"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "interrupt"])
def test_a_folder_that_fails_leaves_the_old_one(tmp_path, error):
    with whole_folder(tmp_path / "folder") as partial:
        (partial / "old").touch()
    with pytest.raises(type(error)), whole_folder(tmp_path / "folder") as partial:
        (partial / "new").touch()
        raise error
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["folder", "folder/old"]


def test_a_process_killed_while_writing_leaves_the_old_folder(tmp_path):
    with whole_folder(tmp_path / "folder") as partial:
        (partial / "old").touch()
    code = (
        "import os, signal, sys, pathlib; from selfdistill.atomic import whole_folder\n"
        "with whole_folder(pathlib.Path(sys.argv[1])) as partial: (partial / 'half').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    source = str(Path(selfdistill.__file__).parents[1])
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "folder")], env={"PYTHONPATH": source})
    assert killed.returncode == -signal.SIGKILL
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["old"] and (tmp_path / "folder.partial" / "half").exists()
    with whole_folder(tmp_path / "folder") as partial:
        (partial / "new").touch()
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["folder", "folder/new"]
