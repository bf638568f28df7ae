"""Which rollouts a page shows: a run and a few numbers in, the rows of some problems at some steps out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfdistill.runs import SavedRun

Row = Mapping[str, Any]
"""One rollout as its file keeps it."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Raises ValueError where nothing would be shown."""

    steps: tuple[int, ...] = ()
    """None: the first, the middle and the last step whose rollouts are kept."""
    problems: int = 3
    """Problems a step; those whose rollouts differ in reward come first."""
    tokens: int = 120_000
    """Of completions, over all runs of the page: problems that go beyond a run's share are left out and counted, so that the page stays below 10 MB."""

    def __post_init__(self) -> None:
        if self.problems < 1:
            raise ValueError(f"problems = {self.problems} selects no rollout; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Picked:
    """The groups of every chosen step, each a problem's rows in the order of their file."""

    steps: dict[int, list[list[Row]]]
    left_out: int
    """Groups that did not fit."""


def pick(run: SavedRun, selection: Selection) -> Picked:
    """Raises ValueError for a step whose rollouts are not kept."""
    found = {step: _by_interest(run.rows(step))[: selection.problems] for step in _steps(run, selection)}
    # every step's first problem, then every step's second: what does not fit is what interests least
    order = [(rank, step) for rank in range(selection.problems) for step, groups in found.items() if rank < len(groups)]
    chosen: dict[int, list[list[Row]]] = {step: [] for step in found}
    used, left_out = 0, 0
    for rank, step in order:
        size = sum(len(row["completion_ids"]) for row in found[step][rank])
        if used and used + size > selection.tokens:
            left_out += 1
            continue
        used += size
        chosen[step].append(found[step][rank])
    return Picked(steps={step: groups for step, groups in chosen.items() if groups}, left_out=left_out)


def _steps(run: SavedRun, selection: Selection) -> Sequence[int]:
    kept = run.steps
    if selection.steps or not kept:
        return sorted(set(selection.steps))
    return sorted({kept[0], kept[len(kept) // 2], kept[-1]})


def _by_interest(rows: Sequence[Row]) -> list[list[Row]]:
    """A step's rows by problem; those with a success beside a failure first, else as they were drawn."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["problem_id"] or json.dumps(row["prompt"]), []).append(row)
    return sorted(groups.values(), key=lambda group: len({row["reward"] for row in group}) < 2)
