"""The words around privileged text, by kind; a task or a user may replace any of them."""

import string
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

FIELDS: Mapping[str, frozenset[str]] = {
    "student": frozenset(),
    "answer": frozenset({"answer"}),
    "solution": frozenset({"solution"}),
    "reference": frozenset({"solution"}),
    "peer": frozenset({"peer", "answer"}),
    "demonstration": frozenset({"demonstration"}),
    "feedback": frozenset({"feedback"}),
    "rubric": frozenset({"rubric"}),
    "skill": frozenset({"skill", "mistake"}),
    "critique": frozenset({"critique"}),
}
"""What each kind may name besides {problem} and {instruction}; all it names must be in its text."""


def read_templates(path: Traversable) -> Mapping[str, str]:
    """The templates of a TOML file of kind = text that the package ships."""
    return tomllib.loads(path.read_text())


ENGLISH: Mapping[str, str] = read_templates(files("selfdistill") / "assets" / "templates" / "english.toml")


def load_templates(path: str | Path) -> dict[str, str]:
    """A user's own words from a TOML file of kind = text. Raises ValueError on an unknown kind or field, or one that is left out."""
    try:
        found = tomllib.loads(Path(path).read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"the templates in {str(path)!r} cannot be read: {error}") from error
    for kind, text in found.items():
        check_template(kind, text)
    return found


def check_template(kind: str, text: str) -> None:
    """Raises ValueError unless the text names exactly what its kind is given."""
    if kind not in FIELDS:
        raise ValueError(f"there is no template {kind!r}; the kinds are {', '.join(FIELDS)}")
    named = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    if unknown := named - FIELDS[kind] - {"problem", "instruction"}:
        raise ValueError(f"the template {kind!r} names {{{sorted(unknown)[0]}}}; it may use {sorted(FIELDS[kind] | {'problem', 'instruction'})}")
    if missing := FIELDS[kind] - named:
        raise ValueError(f"the template {kind!r} leaves out {{{sorted(missing)[0]}}}, so the teacher would not see it")
