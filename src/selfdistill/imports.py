"""Users' own code by name: `package.module:name`, found from the folder the command runs in; no fork, no registry."""

import difflib
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def load_object(name: str) -> Any:
    """The object `package.module:name`. Raises ValueError with the nearest name where there is none."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"{name!r} is not of the form package.module:name")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{name!r}: there is no module {error.name!r} to import from {here}; run from its folder or install it") from error
    if not hasattr(module, attribute):
        raise ValueError(f"{module_name} has no {attribute!r}{nearest(attribute, vars(module))}")
    return getattr(module, attribute)


def nearest(name: str, known: Iterable[str]) -> str:
    """"; did you mean X?" where a known name is close, else nothing."""
    close = difflib.get_close_matches(name, [k for k in known if not k.startswith("_")], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
