"""Which runs are of a method that a claim names: settings of a run and a method in, yes or no out, by what is built and never by how it is spelled."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from selfdistill.config import MethodSettings, Settings, make_settings
from selfdistill.method import describe
from selfdistill.method_names import build_method
from selfdistill.recipes import read_recipe, shipped


def is_of(run: Settings, claimed: MethodSettings) -> bool:
    """Whether a run trained the method: as it is published, or as a shipped recipe of that name adapts it to its model and task.

    What the claim itself says of the method stands over the recipe. Which folder another model lies in is no difference.
    """
    length = run.sampling.max_completion_length
    own = _described(_as_text(unplaced(run.method)), length)
    return own is not None and any(_described(way, length) == own for way in _ways(_as_text(claimed)))


def unplaced(method: MethodSettings) -> MethodSettings:
    """The same with another model's folder taken out of its arguments."""
    arguments = {key: re.sub(r"External\([^)]*\)", "External()", value) if isinstance(value, str) else value for key, value in method.arguments.items()}
    return MethodSettings(name=method.name, **arguments)


def innermost(method: MethodSettings) -> str:
    """The method inside all wrappers: shuffled_context(opsd) -> opsd."""
    return re.findall(r"[^()]+", method.name)[-1]


@cache
def _ways(claimed: str) -> tuple[str, ...]:
    """A method as it is claimed, and over the arguments of each shipped recipe of the inner method's name."""
    method = _from_text(claimed)
    adapted = (MethodSettings(**{**own, "name": method.name, **method.arguments}) for own in _recipes(innermost(method)))
    return claimed, *map(_as_text, adapted)


def _recipes(name: str) -> Iterator[Mapping[str, Any]]:
    """The arguments that shipped recipes called so give to the method of their name."""
    for recipe in shipped():
        if PurePosixPath(recipe).name == name and (method := make_settings(read_recipe(recipe), {}).method).name == name:
            yield unplaced(method).arguments


@cache
def _described(method: str, length: int) -> Mapping[str, str] | None:
    """Every part that its loss reads; None of what this version cannot build."""
    given = _from_text(method)
    try:
        return describe(build_method(given.name, given.arguments, max_completion_length=length))
    except ValueError:
        # a user's function that is not here, or an argument of another version's
        return None


def _as_text(method: MethodSettings) -> str:
    return json.dumps(method.model_dump(), sort_keys=True)


def _from_text(text: str) -> MethodSettings:
    return MethodSettings(**json.loads(text))
