"""Any generator of the reasoning-gym library as a task: fresh problems by seed, right where its scorer gives full marks."""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, Literal

from selfdistill.imports import nearest
from selfdistill.tasks.answers import final_answer
from selfdistill.types import Problem

log = logging.getLogger(__name__)

Split = Literal["train", "test"]
Entry = Mapping[str, Any]
INSTRUCTION = "Think step by step. End with a line 'Answer: ' followed by the final answer alone."
TEST_SHARE = 5
"""One question in five is held out by its hash, whatever the sizes, seeds and knobs."""
CHUNK = 500
"""Problems made at a time: the library's own default, which every generator can make."""
PATIENCE = 4
"""Draws beyond those expected after which a generator has no more new questions."""
DIGITS = re.compile(r"(?!.*\*\s*\*)(?!.*\d{7})[-+*/(). \d]{1,200}")
NAME = r"(?<![A-Za-z])(?:[A-Za-z]|a?(?:sin|cos|tan)h?|exp|log|sqrt|Abs|pi)(?![A-Za-z])"
FORMULA = re.compile(rf"(?!.*\d{{10}})(?!.*\*\*[\s(]*-?\d+[\s)]*\*\*)(?:{NAME}|\*\*\s*\(?-?\d{{1,2}}(?!\d)|\d|\*(?!\s*\*)|[-+/(). ]){{1,400}}")
EVALUATED: Mapping[str, re.Pattern[str]] = {
    **dict.fromkeys(("countdown", "puzzle24"), DIGITS),
    **dict.fromkeys(("polynomial_multiplication", "simple_integration", "intermediate_integration"), FORMULA),
    **dict.fromkeys(("string_insertion", "spiral_matrix", "binary_matrix", "n_queens"), re.compile(r"[^()*]*")),
}
"""Generators whose scorer executes the answer as Python: all it is ever given are plain formulas, or text without a call."""
EXACT = frozenset({"game_of_life_halting"})
"""Generators whose scorer calls any text right."""


@dataclass(frozen=True, kw_only=True)
class ReasoningGym:
    """Problems of one generator; no question of the test split is in the training split of any seed.

    Raises ValueError on an unknown generator or a setting it refuses.
    """

    generator: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    """The generator's own settings."""
    num_train: int = 2000
    num_test: int = 500
    """Both at most: a generator with few questions gives fewer."""
    seed: int = 0
    instruction: str = INSTRUCTION
    isolated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        from reasoning_gym.factory import DATASETS

        if self.generator not in DATASETS:
            raise ValueError(f"reasoning-gym has no generator {self.generator!r}{nearest(self.generator, DATASETS)}")
        _make(self.generator, self.knobs, seed=0, size=1)

    def __getstate__(self) -> dict[str, Any]:
        """The settings alone: the rest is made again from them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def problems(self, split: Split) -> list[Problem]:
        return self._problems[split]

    def verify(self, problem: Problem, completion: str) -> float:
        """1 where the library's scorer gives the final answer full marks; partial credit for substrings counts as 0."""
        gold = problem.answer
        answer = final_answer(completion, multiline="\n" in gold or not gold)
        if answer is None:
            return 0.0
        if gold and _bare(answer) == _bare(gold):
            return 1.0
        return float(any(self._scores(text, problem.columns["entry"]) for text in dict.fromkeys((answer, _bare(answer)))))

    @cached_property
    def _scorer(self) -> Any:
        return _make(self.generator, self.knobs, seed=0, size=1)

    @cached_property
    def _problems(self) -> dict[Split, list[Problem]]:
        wanted: dict[Split, int] = {"train": self.num_train, "test": self.num_test}
        found: dict[Split, dict[str, Problem]] = {"train": {}, "test": {}}
        for i, entry in enumerate(self._entries()):
            split: Split = "test" if _hash(entry["question"]) % TEST_SHARE == 0 else "train"
            if len(found[split]) < wanted[split]:
                found[split].setdefault(entry["question"], self._problem(entry, f"{self.generator}-{self.seed}-{i}"))
            if all(len(found[s]) >= wanted[s] for s in wanted):
                break
        for name, n in wanted.items():
            if len(found[name]) < n:
                log.warning("%s has only %d different questions for the %s split, not %d", self.generator, len(found[name]), name, n)
        return {s: list(problems.values()) for s, problems in found.items()}

    def _entries(self) -> Iterator[Entry]:
        """The generator's rows in order, from a stretch of its random streams that belongs to this seed."""
        expected = max(self.num_test * TEST_SHARE, self.num_train * TEST_SHARE // (TEST_SHARE - 1))
        for start in range(0, PATIENCE * expected + CHUNK, CHUNK):
            # row i of the library's seed s is drawn from s + i, so chunks lie end to end and seeds far apart
            dataset = _make(self.generator, self.knobs, seed=self.seed * 1_000_000_007 + start, size=CHUNK)
            yield from (dataset[i] for i in range(CHUNK))

    def _problem(self, entry: Entry, name: str) -> Problem:
        answer = entry["answer"]
        return Problem(
            prompt=entry["question"],
            answer="" if answer is None else str(answer),
            solution=_solution(self.generator, entry),
            instruction=self.instruction,
            id=name,
            columns={"entry": dict(entry)},
        )

    def _scores(self, answer: str, entry: Entry) -> bool:
        """Whether the library's scorer gives full marks."""
        allowed = EVALUATED.get(self.generator)
        if self.generator in EXACT or (allowed and not allowed.fullmatch(answer)):
            return False
        if self.generator == "puzzle24" and Counter(map(int, re.findall(r"\d+", answer))) != Counter(entry["metadata"]["numbers"]):
            return False
        try:
            return self._scorer.score_answer(answer, dict(entry)) == 1
        except Exception as error:  # scorers raise anything on text that is no answer
            log.debug("the scorer of %s raised %r on %.80r", self.generator, error, answer)
            return False


def _make(generator: str, knobs: Mapping[str, Any], *, seed: int, size: int) -> Any:
    """The library's dataset. Raises ValueError where it refuses its settings."""
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(generator, size=size, seed=seed, **knobs)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"reasoning-gym's {generator!r} refuses the settings {dict(knobs)}: {error}") from error


def _bare(text: str) -> str:
    """Without the marks that models put around an answer."""
    return text.strip("`*$. \n")


def _hash(question: str) -> int:
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:8])


def _solution(generator: str, entry: Entry) -> str:
    """A worked solution that ends as the instruction asks: the library's own, or running sums for chains of + and -."""
    worked = entry["metadata"].get("answer_cot")
    if worked:
        return re.sub(r"\n*####\s*.*$", f"\nAnswer: {entry['answer']}", str(worked))
    return running_sums(entry["metadata"]["expression"]) if generator == "chain_sum" else ""


def running_sums(expression: str) -> str:
    """A line a sum, then the answer: "3 + 4 - 2" gives "3 + 4 = 7", "7 - 2 = 5", "Answer: 5"."""
    first, *rest = expression.split()
    total, lines = int(first), []
    for operator, number in zip(rest[::2], rest[1::2], strict=True):
        following = total + int(number) if operator == "+" else total - int(number)
        lines.append(f"{total} {operator} {number} = {following}")
        total = following
    return "\n".join([*lines, f"Answer: {total}"])
