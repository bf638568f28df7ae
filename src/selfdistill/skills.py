"""A bank of skills and mistakes: attempts at problems in, what they teach beyond their problem out.

The bank is JSON in the run's memory: {"skills": [...], "mistakes": [...], "unparsable": n}. An item is one line of text a field, and
"added", the training steps behind the rollouts it is from: 0 for what the run began with, which is never removed.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from selfdistill.contexts import without_thinking, worded
from selfdistill.tasks import asking
from selfdistill.tools import Tools
from selfdistill.types import Group, Problem, Rollout
from selfdistill.writers import Student, Writer

Item = Mapping[str, Any]
Bank = dict[str, Any]
Attempts = Sequence[tuple[Rollout, Group]]
MEMORY = "skills"
"""The name of the bank in the run's memory."""
FIELDS: Mapping[str, tuple[str, ...]] = {"skills": ("title", "principle", "when"), "mistakes": ("description", "why", "avoid")}
SINGULAR: Mapping[str, str] = {"skills": "skill", "mistakes": "mistake"}
"""How the kinds of templates about an item begin."""
LONGEST = 600
"""Characters of a field; a longer one is no principle but an essay."""
MERGED_AT_ONCE, STAGNANT_ROUNDS = 32, 3
"""SGSD, skill bank."""


@runtime_checkable
class Extractor(Protocol):
    """Who says what attempts teach, and which items say the same."""

    def extract(self, attempts: Attempts, tools: Tools, *, most: int) -> list[list[Item] | None]:
        """At most `most` items an attempt; None where what was said could not be read."""
        ...

    def merge(self, kind: str, groups: Sequence[Sequence[Item]], tools: Tools) -> list[list[Item] | None]:
        """Each group with what says the same said once; None where the answer could not be read."""
        ...


@dataclass(frozen=True)
class TaskLessons:
    """The task's own `lessons(problem, completion)`, exact on the testbed; equal titles are one item.

    Raises ValueError where the task has none, or it raises itself.
    """

    def extract(self, attempts: Attempts, tools: Tools, *, most: int) -> list[list[Item] | None]:
        with asking(tools.task, "lessons", otherwise='let a model write: --method.extractor "WrittenLessons(Student())"') as lessons:
            said = [list(lessons(group.problem, rollout.text)) for rollout, group in attempts]
        return [[_checked(lesson, f"a lesson of {type(tools.task).__name__}") for lesson in found[:most]] for found in said]

    def merge(self, kind: str, groups: Sequence[Sequence[Item]], tools: Tools) -> list[list[Item] | None]:
        return [distinct(group) for group in groups]


@dataclass(frozen=True)
class WrittenLessons:
    """A writer shown an attempt and whether it is right, never the answer: it names skills of a right one, mistakes of a wrong one.

    What is JSON in its reply and has all of an item's fields is taken, whatever stands around it. A merged list is taken whole or not at all.
    """

    writer: Writer = Student()

    def extract(self, attempts: Attempts, tools: Tools, *, most: int) -> list[list[Item] | None]:
        chats = []
        for rollout, group in attempts:
            kind = "skill_request" if (rollout.reward or 0) >= 1 else "mistake_request"
            chats.append(worded(group.problem, kind, {"attempt": without_thinking(rollout.text), "most": str(most)}))
        return [items_in(reply)[:most] or None for reply in self.writer(chats, tools)]

    def merge(self, kind: str, groups: Sequence[Sequence[Item]], tools: Tools) -> list[list[Item] | None]:
        nothing = Problem(prompt="", templates=tools.problems[0].templates if len(tools.problems) else {})
        listed = ["\n".join(json.dumps({f: item[f] for f in FIELDS[kind]}, ensure_ascii=False) for item in group) for group in groups]
        replies = self.writer([worded(nothing, f"{SINGULAR[kind]}_merge_request", {"items": text}) for text in listed], tools)
        return [whole_list_in(reply, kind) for reply in replies]


def cold_bank(extractor: Extractor, tools: Tools, *, problems: int, most: int) -> Bank:
    """The bank a run begins with: one rollout on each of that many training problems, what they teach, merged.

    [open] The problems are drawn by a fixed seed. A rollout without a reward says nothing.
    """
    # asked about nothing first: what is missing is said before any rollout is written
    extractor.extract([], tools, most=most)
    chosen = random.Random(0).sample(range(len(tools.problems)), min(problems, len(tools.problems)))
    groups = tools.sampler.sample([tools.problems[i] for i in sorted(chosen)], 1)
    tools.grade(groups)
    items, unparsable = _extracted(graded(groups), extractor, tools, most=most)
    bank: Bank = {}
    for kind in FIELDS:
        kept, unread = merged(kind, [i for i in items if kind_of(i) == kind], extractor, tools)
        bank[kind] = [{**item, "added": 0} for item in kept]
        unparsable += unread
    return bank | {"unparsable": unparsable}


def merged(kind: str, items: Sequence[Item], extractor: Extractor, tools: Tools) -> tuple[list[Item], int]:
    """The items after rounds of merging in shuffled groups of 32, until 3 rounds in a row left as many; and how many answers could not be read.

    [open] A group whose answer cannot be read, is empty or is no shorter stays as it was.
    """
    left, unread, stagnant, turn = distinct(items), 0, 0, 0
    while len(left) > 1 and stagnant < STAGNANT_ROUNDS:
        shuffled = random.Random(f"{kind}/{turn}").sample(left, len(left))
        groups = [shuffled[i : i + MERGED_AT_ONCE] for i in range(0, len(shuffled), MERGED_AT_ONCE)]
        answers = extractor.merge(kind, groups, tools)
        unread += answers.count(None)
        kept = [answer if answer and len(answer) < len(group) else group for group, answer in zip(groups, answers, strict=True)]
        after = distinct(chain.from_iterable(kept))
        stagnant, turn = (stagnant + 1 if len(after) == len(left) else 0), turn + 1
        left = after
    return left, unread


def extend(bank: Bank, groups: Sequence[Group], extractor: Extractor, tools: Tools, *, added: int, add: int, most: int, capacity: int) -> None:
    """Adds at most `add` new items from a step's rollouts; above `capacity` added ones, the oldest leave. In place.

    [open] `add` counts skills and mistakes together, taken in turns, mistakes first.
    """
    items, unparsable = _extracted(graded(groups), extractor, tools, most=most)
    bank["unparsable"] += unparsable
    new = {kind: distinct((i for i in items if kind_of(i) == kind), known=bank[kind]) for kind in FIELDS}
    in_turns = [item for pair in zip_longest(new["mistakes"], new["skills"]) for item in pair if item is not None]
    for item in in_turns[:add]:
        bank[kind_of(item)].append({**item, "added": added})
    dynamic = sorted((item for kind in FIELDS for item in bank[kind] if item["added"]), key=lambda item: item["added"])
    for old in dynamic[: max(len(dynamic) - capacity, 0)]:
        bank[kind_of(old)].remove(old)


def graded(groups: Iterable[Group]) -> list[tuple[Rollout, Group]]:
    """The rollouts that are known to be right or wrong."""
    return [(rollout, group) for group in groups for rollout in group.rollouts if rollout.reward is not None]


def kind_of(item: Item) -> str:
    return "skills" if "title" in item else "mistakes"


def distinct(items: Iterable[Item], *, known: Sequence[Item] = ()) -> list[Item]:
    """Items whose first field, whatever its case, none before them and none of the known ones has."""
    seen = set(map(_name, known))
    return [item for item in items if (name := _name(item)) not in seen and not seen.add(name)]


def items_in(text: str) -> list[Item]:
    """Every skill and mistake among the JSON objects of a text; a list that breaks off still gives what came before."""
    return [item for value in _decoded(text, "{", lambda value: item_of(value) is not None) if (item := item_of(value))]


def whole_list_in(text: str, kind: str) -> list[Item] | None:
    """The first JSON list of a text that holds items of that kind and nothing else; None where there is none."""
    for found in _decoded(text, "[", bool):
        items = [item_of(value) for value in found]
        if all(item is not None and kind_of(item) == kind for item in items):
            return [item for item in items if item]
    return None


def item_of(value: Any) -> Item | None:
    """A skill or mistake: one line of at most 600 characters for each of its fields, all of them there; anything else beside them is dropped."""
    for fields in FIELDS.values():
        if isinstance(value, Mapping) and all(isinstance(value.get(field), str) for field in fields):
            # halves of letters, which JSON can spell and no tokenizer takes, become question marks
            lines = {field: " ".join(value[field].split()).encode("utf-8", "replace").decode() for field in fields}
            if all(0 < len(line) <= LONGEST for line in lines.values()):
                return lines
    return None


def read_bank(path: str) -> Bank:
    """A bank from JSON, a checkpoint's memory.json included, as what the run begins with. Raises ValueError where it cannot be read or holds no pair."""
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"the skill bank {path!r} cannot be read: {error}") from error
    found = found.get(MEMORY) if isinstance(found, dict) and isinstance(found.get(MEMORY), dict) else found
    if not isinstance(found, dict) or not all(isinstance(found.get(kind), list) and found[kind] for kind in FIELDS):
        raise ValueError(f'the skill bank {path!r} must be {{"skills": [...], "mistakes": [...]}} with at least one item each')
    bank: Bank = {kind: [{**_checked(v, f"the skill bank {path!r}: an item", kind), "added": 0} for v in found[kind]] for kind in FIELDS}
    return bank | {"unparsable": 0}


def _extracted(attempts: Attempts, extractor: Extractor, tools: Tools, *, most: int) -> tuple[list[Item], int]:
    """All items, and the number of attempts about which nothing could be read."""
    said = extractor.extract(attempts, tools, most=most)
    return [item for items in said if items for item in items], said.count(None)


def _checked(value: Any, what: str, kind: str = "") -> Item:
    item = item_of(value)
    if item is None or kind not in ("", kind_of(item)):
        wanted = [FIELDS[kind]] if kind else list(FIELDS.values())
        raise ValueError(f"{what} is {value!r:.80}; it must hold {' or '.join(', '.join(f) for f in wanted)}, text of 1 to {LONGEST} characters each")
    return item


def _name(item: Item) -> str:
    return item[FIELDS[kind_of(item)][0]].casefold()


def _decoded(text: str, opening: str, wanted: Callable[[Any], bool]) -> Iterator[Any]:
    """JSON values of a text that begin with the bracket and are wanted, none inside another."""
    decoder, start = json.JSONDecoder(), text.find(opening)
    while start >= 0:
        end = start + 1
        try:
            value, stop = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            value = None
        if value is not None and wanted(value):
            yield value
            end = stop
        start = text.find(opening, end)
