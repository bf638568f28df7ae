"""Datasets of the user's: JSONL, JSON, Parquet or CSV files, folders and hub ids, with columns mapped to what methods read."""

import hashlib
import importlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from selfdistill.imports import nearest
from selfdistill.tasks.answers import gold_answer, score
from selfdistill.types import Problem

OURS = ("prompt", "answer", "solution", "privileged_context")
HUB_SECONDS = 10
"""How long the hub has to answer whether it has a dataset."""
FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
BOXED_INSTRUCTION = "Reason step by step, and put your final answer within \\boxed{}."
BARE = re.compile(r"[\s$]*(\\boxed|####)")
"""A marked answer with no work before it."""
Row = Mapping[str, Any]


def warm() -> None:
    """Imports what `verify` would at its first formula; a grading process does so before any call's time runs."""
    importlib.import_module("math_verify")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Rows of a file, a hub dataset or plain dicts; verified by math-verify on the final answer.

    Where no test rows are named, a share of the prompts is held out by hash; prompts that are tested on are never trained on.
    An answer column that holds a worked solution is read up to its `####` or \\boxed{} mark. Raises ValueError on a missing
    column, an empty dataset, an empty split, or a row whose prompt is neither text nor a chat.
    """

    path: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name -> their name, for prompt, answer, solution, privileged_context."""
    split: str = "train"
    test_split: str | None = None
    """Of a hub dataset."""
    test_path: str | None = None
    """Another file, folder or hub id."""
    test_share: float = 0.1
    subset: str | None = None
    instruction: str = BOXED_INSTRUCTION
    rows: Iterable[Row] | None = field(default=None, repr=False)
    """Rows given in Python instead of a path."""
    isolated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for ours in self.columns:
            if ours not in OURS:
                raise ValueError(f"task.columns.{ours} is not a column of ours{nearest(ours, OURS)}; they are {', '.join(OURS)}")
        if not 0 <= self.test_share < 1:
            raise ValueError(f"task.test_share = {self.test_share} must lie in [0, 1)")
        if self.test_split and not self.test_path and _is_file(self.path):
            raise ValueError(f"the file {self.path!r} has no split {self.test_split!r}; name the file to test on as task.test_path")

    def problems(self, split: Literal["train", "test"]) -> list[Problem]:
        found = self._problems[split]
        if not found:
            n = sum(map(len, self._problems.values()))
            raise ValueError(f"the {split} split of {self._name} has 0 of {n} problems; change task.test_share = {self.test_share} or give task.test_path")
        return found

    @staticmethod
    def verify(problem: Problem, completion: str) -> float | None:
        """1 where the final answer equals the gold one; None where the row has no answer."""
        return score(completion, problem.answer) if problem.answer else None

    @cached_property
    def _problems(self) -> dict[str, list[Problem]]:
        every = self._read(list(self.rows) if self.rows is not None else load_rows(self.path, split=self.split, subset=self.subset))
        if self.test_split or self.test_path:
            test = self._read(load_rows(self.test_path or self.path, split=self.test_split or self.split, subset=self.subset))
        else:
            test = [p for p in every if _share(p) < self.test_share]
        tested = {_key(p) for p in test}
        return {"train": [p for p in every if _key(p) not in tested], "test": test}

    @property
    def _name(self) -> str:
        return f"the dataset {self.path!r}" if self.path else "the dataset of given rows"

    def _read(self, rows: Sequence[Row]) -> list[Problem]:
        if not rows:
            raise ValueError(f"{self._name} has 0 rows; check the file and task.split = {self.split!r}")
        # a column of theirs that is mapped to one of ours is not read as another one of the same name
        unclaimed = [ours for ours in OURS if ours not in self.columns and ours not in self.columns.values()]
        names = {"prompt": "prompt"} | {ours: ours for ours in unclaimed} | dict(self.columns)
        there = list(rows[0])
        for ours, theirs in names.items():
            if theirs not in there and (ours == "prompt" or ours in self.columns):
                raise ValueError(
                    f"{self._name} has no column {theirs!r} for {ours!r}{nearest(theirs, there)}; "
                    f"it has {', '.join(there)}: set task.columns.{ours} to one of them"
                )
        return [self._problem(row, names, i) for i, row in enumerate(rows)]

    def _problem(self, row: Row, names: Mapping[str, str], index: int) -> Problem:
        texts = {ours: _text(row.get(theirs), f"row {index} of {self._name}, column {theirs!r}") for ours, theirs in names.items() if ours != "prompt"}
        answer, solution = texts.get("answer", ""), texts.get("solution", "")
        gold = gold_answer(answer)
        return Problem(
            prompt=_prompt(row.get(names["prompt"]), f"row {index} of {self._name}"),
            answer=gold or answer or gold_answer(solution) or "",
            solution=solution or ("" if gold is None or BARE.match(answer) else answer),
            privileged_context=texts.get("privileged_context", ""),
            instruction=self.instruction,
            id=str(row.get("id", index)),
            columns={k: v for k, v in row.items() if k not in OURS and k != names["prompt"]},
        )


def load_rows(path: str, *, split: str, subset: str | None = None) -> list[dict[str, Any]]:
    """Rows through the `datasets` library. Raises ValueError where there is no such file, dataset or split."""
    import datasets
    from datasets.exceptions import DatasetGenerationError, DatasetsError

    datasets.disable_progress_bars()
    suffix = Path(path).suffix.lower()
    if _is_file(path) and (not Path(path).is_file() or suffix not in FORMATS):
        raise ValueError(f"the dataset {path!r} " + ("does not exist" if suffix in FORMATS else f"is not one of {', '.join(FORMATS)}"))
    if _is_file(path) and not Path(path).stat().st_size:
        return []
    if not _is_file(path) and not Path(path).is_dir():
        _ask_hub(path)
    try:
        if _is_file(path):
            return datasets.load_dataset(FORMATS[suffix], data_files=path, split="train").to_list()
        return datasets.load_dataset(path, subset, split=split).to_list()
    except (OSError, ValueError, DatasetsError) as error:
        cause = (error.__cause__ or error) if isinstance(error, DatasetGenerationError) else error
        raise ValueError(f"the dataset {path!r} cannot be read: {' '.join(str(cause).split())[:300]}") from error


def _ask_hub(path: str) -> None:
    """Raises ValueError where the hub has no such dataset; where it does not answer, what is cached is read without asking again and again."""
    from datasets import config
    from huggingface_hub import constants, dataset_info
    from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError

    try:
        dataset_info(path, timeout=HUB_SECONDS)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ValueError(f"the dataset {path!r} is neither a file here nor on the hub; a private or gated one needs: hf auth login") from error
    except (OSError, HTTPError):
        constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True


def with_templates(problems: Sequence[Problem], templates: Mapping[str, str]) -> list[Problem]:
    """The same problems under a user's own words."""
    return [replace(p, templates={**p.templates, **templates}) for p in problems]


def _is_file(path: str) -> bool:
    return Path(path).suffix.lower() in FORMATS or Path(path).is_file()


def _prompt(value: Any, where: str) -> str | tuple[dict[str, str], ...]:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list | tuple) and value and all(map(_is_message, value)) and value[-1]["role"] == "user":
        return tuple({"role": m["role"], "content": m["content"]} for m in value)
    raise ValueError(f"{where}: the prompt is neither text nor chat messages that end with the user's: {str(value)[:80]!r}")


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("content"), str) and isinstance(value.get("role"), str)


def _text(value: Any, where: str) -> str:
    """A privileged text; a chat gives its last message."""
    if isinstance(value, list | tuple) and value and isinstance(value[-1], Mapping) and "content" in value[-1]:
        return str(value[-1]["content"])
    if value is None or isinstance(value, str | int | float):
        return "" if value is None or value != value else str(value)
    raise ValueError(f"{where} is neither text, nor a number, nor chat messages: {str(value)[:80]!r}")


def _key(problem: Problem) -> str:
    return json.dumps(problem.prompt, sort_keys=True)


def _share(problem: Problem) -> float:
    """A number in [0, 1) from the prompt alone, so that a prompt stays on its side when rows are added."""
    return int.from_bytes(hashlib.sha256(_key(problem).encode()).digest()[:8]) / 2**64
