"""Recipes as plain data: a TOML file or the name of a shipped one in, its keys out, on top of those of the recipe it extends."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from selfdistill.imports import nearest

ASSETS = Path(str(files("selfdistill") / "assets"))


def shipped() -> dict[str, Path]:
    """Every recipe of the package by the name it is addressed by: opsd, testbed/opsd."""
    folder = ASSETS / "recipes"
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.toml"))}


def read_recipe(recipe: str) -> dict[str, Any]:
    """The keys of a TOML file, a run's settings.json, or the shipped recipe of that name; what it `extends` fills in the rest.

    Raises ValueError where there is none, where it cannot be read, and where recipes extend each other in a ring.
    """
    return _read(recipe, ())


def expanded(data: Mapping[str, Any]) -> dict[str, Any]:
    """The keys with those of the published decoding that `eval` names, where it does not set them itself."""
    own = data.get("eval")
    if not isinstance(own, Mapping) or not own.get("decoding"):
        return dict(data)
    return {**data, "eval": decoding(own["decoding"]) | dict(own)}


def decoding(name: str) -> dict[str, Any]:
    """A published way of measuring, as keys of `eval`. Raises ValueError on an unknown name."""
    known = _decodings()
    if name not in known:
        raise ValueError(f"eval.decoding = {name!r} is no published decoding{nearest(str(name), known)}; there are {', '.join(known)}")
    return dict(known[name])


@cache
def _decodings() -> dict[str, Any]:
    return tomllib.loads((ASSETS / "decodings.toml").read_text())


def _read(recipe: str, on_the_way: Sequence[Path]) -> dict[str, Any]:
    path = _find(recipe).resolve()
    if path in on_the_way:
        raise ValueError(f"recipe {recipe!r} extends itself, by way of {', '.join(p.name for p in on_the_way)}; let one of them go")
    data = expanded(_parsed(path, recipe))
    if (base := data.pop("extends", None)) is None:
        return data
    if not isinstance(base, str):
        raise ValueError(f"recipe {recipe!r}: extends = {base!r} must be the name of a recipe, or a .toml file beside this one")
    beside = path.parent / base
    return _over(_read(str(beside) if beside.suffix == ".toml" else base, (*on_the_way, path)), data)


def _over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's keys over its base's. A table adds to the base's, but a method or task that is named anew takes none of the old one's arguments."""
    merged = dict(base)
    for key, value in own.items():
        table = _table(key, merged.get(key))
        if key in ("method", "task") and isinstance(value, str | Mapping) and (name := _table(key, value).get("name")):
            table = named_anew(table, name) if key == "method" else {}
            value = _table(key, value)
        merged[key] = _over(table, value) if isinstance(value, Mapping) and isinstance(table, Mapping) else value
    return merged


def named_anew(table: Any, name: str) -> dict[str, Any]:
    """A method's table under another name: a wrapper around the method that stood there keeps its arguments, any other method takes none."""
    kept = _table("method", table or {})
    return {**kept, "name": name} if kept.get("name") and f"({kept['name']})" in name else {"name": name}


def _table(key: str, value: Any) -> Any:
    """The table that a name alone stands for."""
    short = {"method": "name", "task": "name", "model": "path", "peer": "path"}
    return {short[key]: value} if key in short and isinstance(value, str) else value


def _find(recipe: str) -> Path:
    path, known = Path(recipe), shipped()
    if path.is_dir() and recipe not in known:
        own = path / "settings.json"
        raise ValueError(f"recipe {recipe!r} is a folder; give " + (f"{own}, the settings of the run in it" if own.is_file() else "a .toml file"))
    if path.suffix in (".toml", ".json") or path.is_file():
        return path
    if recipe not in known:
        raise ValueError(f"there is no recipe {recipe!r}{nearest(recipe, known)}; `selfdistill recipes` lists them, and a .toml file is one too")
    return known[recipe]


def _parsed(path: Path, recipe: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text()) if path.suffix == ".json" else tomllib.loads(path.read_text())
    except OSError as error:
        near = nearest(path.name, [other.name for other in path.parent.glob(f"*{path.suffix}")])
        raise ValueError(f"recipe {recipe!r} cannot be read: {error.strerror}{near}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"recipe {recipe!r} is not {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error
