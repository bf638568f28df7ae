"""The words around privileged text, by kind; a task or a user may replace any of them."""

import string
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from selfdistill.imports import nearest

FIELDS: Mapping[str, frozenset[str]] = {
    "student": frozenset(),
    "answer": frozenset({"answer"}),
    "solution": frozenset({"solution"}),
    "reference": frozenset({"solution"}),
    "peer": frozenset({"peer", "answer"}),
    "demonstration": frozenset({"demonstration"}),
    "feedback": frozenset({"feedback"}),
    "solution_feedback": frozenset({"solution", "feedback"}),
    "feedback_request": frozenset({"solution", "attempt"}),
    "rubric": frozenset({"rubric"}),
    "rubric_solution": frozenset({"rubric", "solution"}),
    "rubric_request": frozenset(),
    "rubric_request_solution": frozenset({"solution"}),
    "note_request": frozenset(),
    "noted": frozenset({"note"}),
    "skill": frozenset({"skill", "mistake"}),
    "skill_answer": frozenset({"skill", "mistake", "answer"}),
    "skill_item": frozenset({"title", "principle", "when"}),
    "mistake_item": frozenset({"description", "why", "avoid"}),
    "skill_request": frozenset({"attempt", "most"}),
    "mistake_request": frozenset({"attempt", "most"}),
    "skill_merge_request": frozenset({"items"}),
    "mistake_merge_request": frozenset({"items"}),
    "critique": frozenset({"critique"}),
    "critique_request": frozenset({"truth", "attempt"}),
    "judge_request": frozenset({"truth", "attempt"}),
}
"""What each kind is given besides {problem} and {instruction}."""
WITHOUT_QUESTION = frozenset({"reference", "skill_merge_request", "mistake_merge_request"})
"""Kinds read without a question: for a reference that is the method's point, and requests to merge are about no single problem."""
FRAGMENTS = frozenset({"skill_item", "mistake_item"})
"""Texts that go into another template, without question or answer format; they may show a part of what they are given."""


def read_templates(path: Traversable) -> Mapping[str, str]:
    """The templates of a TOML file of kind = text that the package ships."""
    return tomllib.loads(path.read_text())


ENGLISH: Mapping[str, str] = read_templates(files("selfdistill") / "assets" / "templates" / "english.toml")


def load_templates(path: str | Path) -> dict[str, str]:
    """A user's own words from a TOML file of kind = text. Raises ValueError on an unknown kind or field, or one that is left out."""
    try:
        found = tomllib.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"the templates in {str(path)!r} cannot be read: {error}") from error
    for kind, text in found.items():
        check_template(kind, text)
    return found


def check_template(kind: str, text: object) -> None:
    """Raises ValueError unless the text names all that its kind is given (a fragment: some of it), the problem with it, and nothing else."""
    if kind not in FIELDS:
        raise ValueError(f"there is no template {kind!r}{nearest(kind, FIELDS)}; the kinds are {', '.join(FIELDS)}")
    if not isinstance(text, str):
        raise ValueError(f"the template {kind!r} is {text!r:.60}, not text")
    try:
        named = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise ValueError(f"the template {kind!r} has a stray brace ({error}); write {{{{ and }}}} for braces of its own") from error
    needed = FIELDS[kind] if kind in WITHOUT_QUESTION | FRAGMENTS else FIELDS[kind] | {"problem"}
    allowed = needed if kind in FRAGMENTS else needed | {"instruction"}
    if unknown := sorted(named - allowed):
        raise ValueError(f"the template {kind!r} names {{{unknown[0]}}}; it may name {', '.join(f'{{{name}}}' for name in sorted(allowed))}")
    if (missing := sorted(needed - named)) and not (kind in FRAGMENTS and named):
        raise ValueError(f"the template {kind!r} leaves out {{{missing[0]}}}, which would never be read")
