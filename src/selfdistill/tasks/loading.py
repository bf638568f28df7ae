"""A task from its settings: the built-in ones by name, the user's by `package.module:name`, anything else as a dataset."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from selfdistill.config import TaskSettings
from selfdistill.imports import load_object, nearest
from selfdistill.tasks import Task
from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.tasks.chain_sum import ChainSum
from selfdistill.tasks.files import FORMATS, Dataset
from selfdistill.tasks.reasoning_gym import ReasoningGym

BUILT_IN = ("arithmetic", "reasoning_gym")


def load_task(settings: TaskSettings) -> Task:
    """Raises ValueError on an unknown task or file, an unknown knob or a value it cannot take."""
    name, arguments = settings.name, settings.arguments
    if name == "arithmetic":
        return _build(Arithmetic, arguments, name)
    if name.partition(":")[0] == "reasoning_gym":
        generator = name.partition(":")[2]
        known = inspect.signature(ReasoningGym).parameters
        own = {k: v for k, v in arguments.items() if k in known}
        knobs = {k: v for k, v in arguments.items() if k not in known}
        return _build(ChainSum if generator == "chain_sum" else ReasoningGym, own | {"generator": generator, "knobs": knobs}, name)
    if ":" in name and Path(name).suffix not in FORMATS:
        return _users(load_object(name), arguments, name)
    if "/" not in name and not Path(name).exists() and (near := nearest(name, BUILT_IN)):
        raise ValueError(f"there is no task {name!r}{near}")
    return _build(Dataset, {"path": name} | arguments, name)


def _build(task: type[Task], arguments: Mapping[str, Any], name: str) -> Task:
    """One of our own tasks; values are checked against its fields' types."""
    _check(task, arguments, name)
    try:
        return TypeAdapter(task).validate_python(dict(arguments))
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(cause := first.get("ctx", {}).get("error"), ValueError):
            raise cause from error
        raise ValueError(f"task.{'.'.join(map(str, first['loc']))} = {first['input']!r}: {first['msg'].lower()}") from error


def _users(found: Any, arguments: Mapping[str, Any], name: str) -> Task:
    """A user's task: an object, or a class or function that makes one."""
    if callable(found):
        _check(found, arguments, name)
        try:
            found = found(**arguments)
        except Exception as error:  # a user's code may raise anything; the run stops with its words
            raise ValueError(f"task {name!r} raised {type(error).__name__}: {error}") from error
    elif arguments:
        raise ValueError(f"task {name!r} is an object and takes no knob {next(iter(arguments))!r}")
    if not isinstance(found, Task):
        raise ValueError(f"task {name!r} is a {type(found).__name__}, which lacks problems(split) or verify(problem, completion)")
    return found


def _check(function: Callable[..., Any], arguments: Mapping[str, Any], name: str) -> None:
    known = inspect.signature(function).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
    for key in arguments:
        if key not in known and not open_ended:
            raise ValueError(f"task {name!r} has no knob {key!r}{nearest(key, known)}; it has {', '.join(known) or 'none'}")
