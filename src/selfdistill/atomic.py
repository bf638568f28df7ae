"""Files and folders that are whole or not there."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Writes beside the final name and renames; a write that fails leaves what was there. Makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    try:
        partial.write_text(text)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill beside the final name, flushed to disk and renamed at the end; a write that fails leaves what was there."""
    partial = _beside(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _flush(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(path, ignore_errors=True)
    os.replace(partial, path)


def require_writable(folder: Path, *, setting: str = "output_dir") -> None:
    """Raises ValueError, naming the setting, where the folder cannot be made or written to; leaves nothing there."""
    _try(folder, folder, setting=setting)


def require_file(path: Path, *, setting: str = "--output") -> None:
    """Raises ValueError, naming the setting, where `write_whole` could not write the file; leaves nothing there."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "no ordinary file"
        raise ValueError(f"{setting} = {str(path)!r} is {what}; give the name of a file that may be written")
    _try(path, path.parent, setting=setting)


def _try(path: Path, folder: Path, *, setting: str) -> None:
    """Writes to the folder, or to the nearest one above it that is there."""
    there = next(above for above in (folder.absolute(), *folder.absolute().parents) if above.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        knob = setting if setting.startswith("--") else f"--{setting}"
        raise ValueError(f"{setting} = {str(path)!r} cannot be written, {there}: {error.strerror}; choose another {knob}") from error


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _flush(folder: Path) -> None:
    """Asks the disk to hold what was written before the rename makes it count."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def parsed(text: str, path: Path) -> Any:
    """The JSON in a file's text, or in a line of it. Raises ValueError, naming the file, where it is not whole."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not whole JSON ({error}); it was cut off or changed: remove it or run again") from error
