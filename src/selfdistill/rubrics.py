"""Where a problem's rubric comes from: the groups of a step in, one text each out, None where there is none.

What a dataset or a file holds reaches the teacher unchanged. What a model wrote must parse as a rubric: a JSON list of 3 to 25
criteria {title, description, weight} (RCSD, 2606.19327); where it does not there is none.
"""

import json
import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from selfdistill.contexts import next_of_another, worded
from selfdistill.imports import nearest
from selfdistill.tools import Tools
from selfdistill.types import Group
from selfdistill.writers import Writer

log = logging.getLogger(__name__)
RubricSource = Callable[[Sequence[Group], Tools], list[str | None]]
FEWEST, MOST = 3, 25
"""Criteria of a rubric (RCSD, stage 1)."""


@dataclass(frozen=True)
class RubricColumn:
    """The dataset's own rubric, as it stands there."""

    column: str = "rubric"

    def __call__(self, groups: Sequence[Group], tools: Tools) -> list[str | None]:
        return [_held(g.problem.columns.get(self.column)) for g in groups]


@dataclass(frozen=True)
class RubricFile:
    """A cache: JSON {problem id: rubric}, or JSON or JSONL rows {"id", "rubric"}; a rubric is text or a list of criteria.

    Raises ValueError where the file cannot be read, or knows none of the run's problems.
    """

    path: str

    def __call__(self, groups: Sequence[Group], tools: Tools) -> list[str | None]:
        known = _read(self.path)
        found = [_held(known.get(g.problem.id)) for g in groups]
        ids = {p.id for p in tools.problems} | {g.problem.id for g in groups}
        if not ids & set(known):
            raise ValueError(
                f"the rubrics in {self.path!r} are for other problems than these {len(ids)}{nearest(next(iter(ids)), known)}; "
                f"name a file whose ids are those of the dataset's column `id`"
            )
        return found


@dataclass(frozen=True)
class GenericRubric:
    """One rubric for every problem: a file's text, else six criteria of any sound mathematical solution that ship with the package."""

    path: str | None = None

    def __call__(self, groups: Sequence[Group], tools: Tools) -> list[str | None]:
        return [_generic(self.path)] * len(groups)


@dataclass(frozen=True)
class ReferenceRubric:
    """Ground truth: r ~ writer(. | q, reference), for problems that have a reference; read like stage 1's teacher."""

    writer: Writer

    def __call__(self, groups: Sequence[Group], tools: Tools) -> list[str | None]:
        references = [g.problem.solution or g.problem.privileged_context for g in groups]
        shown = [(g.problem, r) for g, r in zip(groups, references, strict=True) if r]
        written = iter(_written(self.writer([worded(p, "rubric_request_solution", {"solution": r}) for p, r in shown], tools)))
        return [next(written) if r else None for r in references]


@dataclass(frozen=True)
class QuestionRubric:
    """r^ ~ writer(. | q): the writer sees the question alone, as stage 1's student does."""

    writer: Writer

    def __call__(self, groups: Sequence[Group], tools: Tools) -> list[str | None]:
        return _written(self.writer([worded(g.problem, "rubric_request", {}) for g in groups], tools))


@dataclass(frozen=True)
class FirstRubric:
    """The first of the sources that has a rubric for the problem; a later one is asked only for what the earlier ones lack."""

    sources: tuple[RubricSource, ...]

    def __call__(self, groups: Sequence[Group], tools: Tools) -> list[str | None]:
        found: list[str | None] = [None] * len(groups)
        for source in self.sources:
            lacking = [i for i, rubric in enumerate(found) if rubric is None]
            for i, rubric in zip(lacking, source([groups[i] for i in lacking], tools) if lacking else (), strict=True):
                found[i] = rubric
        return found


@dataclass(frozen=True)
class RandomRubric:
    """The control: every problem is given the rubric of the step's next other problem, all else its own (RCSD, random rubrics).

    Raises ValueError on a step of one problem, which has nobody to borrow from.
    """

    source: RubricSource

    def __call__(self, groups: Sequence[Group], tools: Tools) -> list[str | None]:
        places = [place for place in next_of_another(groups) if place is not None]
        if len(places) < len(groups):
            raise ValueError("a random rubric is another problem's and needs at least 2 problems a step, not 1; raise prompts_per_step")
        own = self.source(groups, tools)
        return [own[place] for place in places]


@dataclass(frozen=True)
class SomeCriteria:
    """A control: a random part of each rubric, round(share x criteria) of them and at least one, in their order: how much a rubric must say.

    Criteria are the entries of a JSON list, else what `separator` divides. Drawn by a seed that names the problem, so every step, and a
    resumed run, shows the same. Raises ValueError where the share is not in (0, 1] or the separator is empty.
    """

    source: RubricSource
    share: float = 0.5
    separator: str = "\n"
    """Between the criteria of a rubric that is no JSON."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or not self.separator:
            raise ValueError(
                f"SomeCriteria(share={self.share}, separator={self.separator!r}): the share of a rubric's criteria must lie in (0, 1], "
                f"and the separator cannot be empty"
            )

    def __call__(self, groups: Sequence[Group], tools: Tools) -> list[str | None]:
        found = self.source(groups, tools)
        return [self._some(text, f"{self.seed}/{g.problem.id or g.problem.prompt}") if text else None for g, text in zip(groups, found, strict=True)]

    def _some(self, text: str, seed: str) -> str:
        listed = _list(text)
        criteria = [c for c in text.split(self.separator) if c.strip()] if listed is None else listed
        kept = min(max(round(self.share * len(criteria)), 1), len(criteria))
        if kept == len(criteria):
            return text
        some = [criteria[i] for i in sorted(random.Random(seed).sample(range(len(criteria)), kept))]
        return self.separator.join(some) if listed is None else _json(some)


def parse_rubric(text: str) -> str | None:
    """The first rubric in a text, as JSON of its criteria and nothing else; None where there is none.

    A criterion has a title and a description of more than blanks and a finite weight; other keys are dropped.
    """
    decoder = json.JSONDecoder()
    for start in (i for i, letter in enumerate(text) if letter == "["):
        try:
            found, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if FEWEST <= len(found) <= MOST and all(map(_is_criterion, found)):
            return _json([{key: criterion[key] for key in ("title", "description", "weight")} for criterion in found])
    return None


def _written(replies: Sequence[str]) -> list[str | None]:
    """The rubrics in what a writer said; a warning counts the replies without one, which would otherwise pass as problems untaught."""
    found = [parse_rubric(reply) for reply in replies]
    if lost := [reply for reply, rubric in zip(replies, found, strict=True) if rubric is None]:
        log.warning("%d of %d replies hold no rubric of %d to %d criteria: %.80r", len(lost), len(replies), FEWEST, MOST, lost[0])
    return found


def _is_criterion(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    texts, weight = [value.get("title"), value.get("description")], value.get("weight")
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
    return is_number and all(isinstance(t, str) and t.strip() for t in texts)


def _held(value: Any) -> str | None:
    """A rubric of the user's as text: text as it is, criteria as JSON."""
    if value is None or isinstance(value, str):
        return value or None
    return _json(value)


def _list(text: str) -> list[Any] | None:
    """The entries of a text that is one JSON list; None of any other."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def _json(value: Any) -> str:
    """JSON that keeps letters readable; halves of letters that no tokenizer takes become question marks."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode("utf-8")


@cache
def _read(path: str) -> Mapping[str, Any]:
    """Rubrics by problem id."""
    try:
        text = Path(path).read_text()
        rows = [json.loads(line) for line in text.splitlines() if line.strip()] if path.endswith(".jsonl") else json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"the rubrics in {path!r} cannot be read: {error}") from error
    if isinstance(rows, dict):
        return rows
    if not isinstance(rows, list) or not all(isinstance(row, dict) and {"id", "rubric"} <= row.keys() for row in rows):
        raise ValueError(f'the rubrics in {path!r} are neither {{id: rubric}} nor rows with "id" and "rubric"')
    return {str(row["id"]): row["rubric"] for row in rows}


@cache
def _generic(path: str | None) -> str:
    shipped = files("selfdistill") / "assets" / "rubrics" / "generic.json"
    try:
        return (Path(path) if path else shipped).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the generic rubric in {path!r} cannot be read: {error}") from error
