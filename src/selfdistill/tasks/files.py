"""Datasets of the user's: JSONL, JSON, Parquet or CSV files, folders and hub ids, with columns mapped to what methods read."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from selfdistill.imports import nearest
from selfdistill.tasks.answers import score
from selfdistill.tasks.isolation import Isolated
from selfdistill.templates import ENGLISH
from selfdistill.types import Problem

OURS = ("prompt", "answer", "solution", "privileged_context")
FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
BOXED_INSTRUCTION = "Reason step by step, and put your final answer within \\boxed{}."

_score = Isolated(score, timeout_s=10.0, late=0.0)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Rows of a file, a hub dataset or plain dicts; verified by math-verify on the final answer.

    Without a test split, every tenth prompt by hash is held out. Raises ValueError on a missing column or an empty dataset.
    """

    path: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name -> their name, for prompt, answer, solution, privileged_context."""
    split: str = "train"
    test_split: str | None = None
    test_share: float = 0.1
    subset: str | None = None
    instruction: str = BOXED_INSTRUCTION
    rows: Sequence[Mapping[str, Any]] | None = field(default=None, repr=False)
    """Rows given in Python instead of a path."""

    @property
    def templates(self) -> Mapping[str, str]:
        return ENGLISH

    @cached_property
    def _problems(self) -> tuple[list[Problem], list[Problem]]:
        rows = self.rows if self.rows is not None else load_rows(self.path, split=self.split, subset=self.subset)
        train = self._read(rows)
        if self.test_split:
            return train, self._read(load_rows(self.path, split=self.test_split, subset=self.subset))
        held_out = [_share(p) < self.test_share for p in train]
        return [p for p, out in zip(train, held_out, strict=True) if not out], [p for p, out in zip(train, held_out, strict=True) if out]

    def problems(self, split: Literal["train", "test"]) -> list[Problem]:
        return self._problems[split == "test"]

    def verify(self, problem: Problem, completion: str) -> float | None:
        """1 where the final answer equals the gold one; None where the row has no answer."""
        return _score(completion, problem.answer) if problem.answer else None

    def _read(self, rows: Sequence[Mapping[str, Any]]) -> list[Problem]:
        if not len(rows):
            raise ValueError(f"the dataset {self.path or 'given as rows'!r} has 0 rows; check the file and its split")
        names = {ours: self.columns.get(ours, ours) for ours in OURS}
        there = list(rows[0])
        for ours, theirs in names.items():
            if theirs not in there and (ours == "prompt" or ours in self.columns):
                raise ValueError(
                    f"the dataset {self.path or 'given as rows'!r} has no column {theirs!r} for {ours!r}{nearest(theirs, there)}; "
                    f"it has {', '.join(there)}: map it with task.columns.{ours}"
                )
        return [self._problem(row, names, i) for i, row in enumerate(rows)]

    def _problem(self, row: Mapping[str, Any], names: Mapping[str, str], index: int) -> Problem:
        prompt = _prompt(row[names["prompt"]], index)
        texts = {ours: _text(row.get(names[ours])) for ours in OURS[1:]}
        others = {k: v for k, v in row.items() if k not in names.values()}
        return Problem(prompt=prompt, instruction=self.instruction, columns=others, id=str(row.get("id", index)), **texts)


def load_rows(path: str, *, split: str, subset: str | None = None) -> Sequence[Mapping[str, Any]]:
    """Rows through the `datasets` library. Raises ValueError where there is no such file or split."""
    import datasets

    datasets.disable_progress_bars()
    suffix = Path(path).suffix.lower()
    try:
        if suffix in FORMATS:
            if not Path(path).exists():
                raise ValueError(f"the dataset {path!r} does not exist")
            if not Path(path).stat().st_size:
                return []
            return datasets.load_dataset(FORMATS[suffix], data_files=path, split="train")
        return datasets.load_dataset(path, subset, split=split)
    except (OSError, datasets.exceptions.DatasetGenerationError, datasets.exceptions.DatasetNotFoundError) as error:
        raise ValueError(f"the dataset {path!r} cannot be read: {str(error).strip().splitlines()[0][:200]}") from error


def held_out(problem: Problem, share: float) -> bool:
    """Whether a problem belongs to the test split when there is none of its own."""
    return _share(problem) < share


def with_templates(problems: Sequence[Problem], templates: Mapping[str, str]) -> list[Problem]:
    """The same problems under a user's own words."""
    return [replace(p, templates={**p.templates, **templates}) for p in problems]


def _prompt(value: Any, index: int) -> str | tuple[dict[str, str], ...]:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, Sequence) and value and all(isinstance(m, Mapping) and {"role", "content"} <= m.keys() for m in value):
        if value[-1]["role"] == "user":
            return tuple({"role": m["role"], "content": m["content"]} for m in value)
    raise ValueError(f"row {index}: the prompt is neither text nor chat messages ending with the user's: {str(value)[:80]!r}")


def _text(value: Any) -> str:
    """A privileged text; chat messages give their last one."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return str(value[-1]["content"]) if value else ""
    return "" if value is None else str(value)


def _share(problem: Problem) -> float:
    """A number in [0, 1) from the prompt alone."""
    digest = hashlib.sha256(json.dumps(problem.prompt, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64
