"""A task from its settings: the built-in ones by name, the user's by `package.module:name`, anything else as a dataset."""

import inspect
from collections.abc import Callable
from typing import Any

from selfdistill.config import TaskSettings
from selfdistill.imports import load_object, nearest
from selfdistill.tasks import Task
from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.tasks.files import Dataset
from selfdistill.tasks.reasoning_gym import ReasoningGym


def load_task(settings: TaskSettings) -> Task:
    """Raises ValueError on an unknown task, file or knob."""
    name, arguments = settings.name, settings.arguments
    if name == "arithmetic":
        return _call(Arithmetic, arguments, name)
    if name.startswith("reasoning_gym:"):
        known = inspect.signature(ReasoningGym).parameters
        own = {k: v for k, v in arguments.items() if k in known}
        return _call(ReasoningGym, {"generator": name.split(":", 1)[1], "knobs": {k: v for k, v in arguments.items() if k not in known}} | own, name)
    if ":" in name and not name.endswith((".jsonl", ".json", ".parquet", ".csv")):
        found = load_object(name)
        return _call(found, arguments, name) if callable(found) else found
    return _call(Dataset, {"path": name} | arguments, name)


def _call(function: Callable[..., Any], arguments: dict[str, Any], name: str) -> Any:
    known = inspect.signature(function).parameters
    for key in arguments:
        if key not in known:
            raise ValueError(f"task {name!r} has no knob {key!r}{nearest(key, known)}; it has {', '.join(known)}")
    return function(**arguments)
