"""The names of settings: every key of a table of settings, and what is wrong with one that a recipe gave, as a sentence."""

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from selfdistill.imports import nearest


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of a validation as one sentence: the key, what it was, what it must be."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"there is no key {where!r}{_suggestion(where, model)}"
    if first["type"] == "missing":
        return f"the key {where!r} is missing"
    if first["type"] == "json_invalid":
        return f"this is no whole JSON ({first['msg'].removeprefix('Invalid JSON: ')})"
    said = first["msg"].removeprefix("Value error, ")
    return f"{where or 'settings'} = {first['input']!r}: {said[0].lower()}{said[1:]}"


def keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Every setting by its dotted name, sections opened, each kind of section once: a peer has a model's keys."""
    found: dict[str, FieldInfo] = {}
    opened: set[type[BaseModel] | None] = {None}
    for name, info in model.model_fields.items():
        section = _section(info)
        inner = keys(section) if section and section not in opened else {}
        opened.add(section)
        # a section that may be None is a setting as well as a table
        found |= ({} if section and info.default is not None else {name: info}) | {f"{name}.{key}": i for key, i in inner.items()}
    return found


def _suggestion(where: str, model: type[BaseModel]) -> str:
    """The same key in another section, else the nearest by its dotted name, else all keys of that section."""
    known = list(keys(model))
    section, dot, last = where.rpartition(".")
    if elsewhere := [key for key in known if key.rpartition(".")[2] == last]:
        return f"; did you mean {' or '.join(map(repr, elsewhere))}?"
    prefix = ("model" if section == "peer" else section) + dot
    here = sorted({prefix + key.removeprefix(prefix).partition(".")[0] for key in known if key.startswith(prefix)})
    return nearest(where, known) or f"; known here: {', '.join(here)}"


def _section(info: FieldInfo) -> type[BaseModel] | None:
    """The table a field holds, if it holds one."""
    options = (info.annotation, *getattr(info.annotation, "__args__", ()))
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
