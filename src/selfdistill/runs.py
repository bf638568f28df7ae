"""A run's folder read back: settings, metrics, evaluations and rollouts, as what made them. Nothing here writes or trains."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdistill.atomic import parsed
from selfdistill.config import Settings, read_settings
from selfdistill.evaluate import Evaluation
from selfdistill.runlog import ROLLOUT_SCHEMA
from selfdistill.types import Group, Problem, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """What `selfdistill train` left in a folder, whole up to where it came."""

    folder: Path
    settings: Settings

    @cached_property
    def metrics(self) -> list[dict[str, float]]:
        """One mapping a step, without the torn line that a kill may leave at the end."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [parsed(line, path) for line in lines if line.endswith("\n")]

    @cached_property
    def evaluations(self) -> dict[int, Evaluation]:
        """By step; 0 is the base."""
        paths = sorted((self.folder / "evaluations").glob("step_*.json"))
        return {_step(path): _evaluation(path) for path in paths}

    @property
    def steps(self) -> list[int]:
        """The steps whose rollouts are kept, in order."""
        return sorted(_step(path) for path in (self.folder / "rollouts").glob("step_*.jsonl"))

    def rows(self, step: int) -> list[dict[str, Any]]:
        """The rollouts of a step as they stand in its file. Raises ValueError where there are none, or of a schema unknown here."""
        path = self.folder / "rollouts" / f"step_{step:06d}.jsonl"
        if not path.exists():
            kept = f"it has steps {self.steps[0]} to {self.steps[-1]}" if self.steps else "it has none of any step"
            raise ValueError(f"{self.folder} has no rollouts of step {step}; {kept}")
        rows = [parsed(line, path) for line in path.read_text().splitlines()]
        if unknown := {row.get("schema") for row in rows} - {ROLLOUT_SCHEMA}:
            raise ValueError(f"{path} has rollouts of schema {unknown.pop()}, this version reads {ROLLOUT_SCHEMA}; read it with the version that wrote it")
        return rows

    def groups(self, step: int) -> list[Group]:
        """The groups of a step as they were written, with all that the run's task knows of the problem; of one that it no longer has, prompt and answer.

        A group's rollouts stand together and their index rises, so that a problem that the step held twice is two groups.
        """
        groups: list[Group] = []
        before: dict[str, Any] = {}
        for row in self.rows(step):
            if not groups or _named(row) != _named(before) or row["index"] <= before["index"]:
                problem = self._problems.get(row["problem_id"]) or Problem(prompt=tuple(row["prompt"]), answer=row["answer"], id=row["problem_id"])
                groups.append(Group(problem=problem, rollouts=[]))
            groups[-1].rollouts.append(rollout_from(before := row))
        return groups

    @cached_property
    def _problems(self) -> dict[str, Problem]:
        from selfdistill.api import worded
        from selfdistill.tasks.loading import load_task

        return {p.id: p for p in worded(load_task(self.settings.task), "train", self.settings) if p.id}


def open_run(folder: Path) -> SavedRun:
    """Raises ValueError where the folder holds no run, or one that was cut off before its first step."""
    run = SavedRun(folder=folder, settings=read_settings(folder / "settings.json"))
    if not run.metrics:
        raise ValueError(f"{folder} holds a run without a finished step; continue it with selfdistill train --resume, or remove it")
    return run


def rollout_from(row: Mapping[str, Any]) -> Rollout:
    """A rollout as `rollouts/` keeps it, with its windows and earlier replies."""
    known = {f.name: row[f.name] for f in fields(Rollout) if row.get(f.name) is not None}
    known |= {name: tuple(known[name]) for name in ("prompt", "trained") if name in known}
    known |= {"annotations": {name: tuple(values) for name, values in row["annotations"].items()}}
    known |= {"earlier": tuple(map(rollout_from, row["earlier"])), "windows": list(map(rollout_from, row["windows"]))}
    if row["labels"] is not None:
        known["labels"] = tuple({int(token): share for token, share in label.items()} for label in row["labels"])
    return Rollout(**known)


def require_own_tokens(groups: Sequence[Group], tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raises ValueError where the rollouts' ids are not the tokenizer's: they read as another text than was written."""
    from selfdistill.chat import Chat

    chat = Chat(tokenizer)
    for rollout in (r for g in groups for r in g.rollouts):
        read = chat.decode(rollout.completion_ids) if max(rollout.completion_ids, default=0) < len(tokenizer) else None
        if read != rollout.text:
            raise ValueError(f"these rollouts were written with another tokenizer than the model's: {rollout.text[:40]!r} reads as {(read or '')[:40]!r}")


def _named(row: Mapping[str, Any]) -> str:
    """Which problem a rollout answers."""
    return row["problem_id"] or json.dumps(row["prompt"])


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _evaluation(path: Path) -> Evaluation:
    try:
        return Evaluation.from_json(parsed(path.read_text(), path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
