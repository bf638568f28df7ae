"""Users' own code by name: `package.module:name` or `path/to/file.py:name`, found from the folder the command runs in."""

import difflib
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any


def load_object(name: str, *, setting: str = "") -> Any:
    """The object `package.module:name` or `path/to/file.py:name`. Raises ValueError, with the `setting` that named it, where there is none."""
    told = f"{setting} = {name!r}" if setting else repr(name)
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise ValueError(f"{told} is not of the form package.module:name or path/to/file.py:name")
    module = _load_file(Path(place), told) if place.endswith(".py") else _import(place, told, folder=Path.cwd())
    if not hasattr(module, attribute):
        raise ValueError(f"{f'{told}: ' if setting else ''}{place} has no {attribute!r}{nearest(attribute, vars(module))}")
    return getattr(module, attribute)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message, "; did you mean X?", where a known name is close; else nothing."""
    close = difflib.get_close_matches(name, [k for k in known if not k.startswith("_")], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _load_file(path: Path, told: str) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"{told}: there is no file {str(path)!r}{nearest(path.name, [p.name for p in path.parent.glob('*.py')])}")
    module = _import(path.stem, told, folder=path.parent)
    if module.__file__ is None or Path(module.__file__).resolve() != path:
        raise ValueError(f"{told}: a module called {path.stem!r} is already imported from {module.__file__}; rename the file")
    return module


def _import(module_name: str, told: str, *, folder: Path) -> ModuleType:
    # it stays on the path: what is imported later, here or in grading processes, is found the same way
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        near = nearest(module_name, [p.stem for p in folder.glob("*.py")])
        raise ValueError(f"{told}: there is no module {error.name!r} to import from {folder}{near or '; run from its folder or install it'}") from error
    except Exception as error:  # a user's module may raise anything; the run stops with its words
        raise ValueError(f"{told}: importing it raised {type(error).__name__}: {error}") from error
