"""Any generator of the reasoning-gym library as a task: fresh problems by seed, right where its scorer says 1 on the final answer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from selfdistill.imports import nearest
from selfdistill.tasks.answers import final_answer
from selfdistill.tasks.isolation import Isolated
from selfdistill.templates import ENGLISH
from selfdistill.types import Problem

INSTRUCTION = "Think step by step. End with a line 'Answer: ' followed by the final answer alone."
PLAIN = re.compile(r"[-+*/(). \d]{1,200}")
POWER = re.compile(r"\*\*|\d{7,}")


def score_entry(generator: str, knobs: dict[str, Any], answer: str, entry: dict[str, Any]) -> float:
    """1 where the library's scorer gives full marks; partial credit for substrings counts as 0."""
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(generator, size=1, seed=0, **knobs)
    return float(dataset.score_answer(answer, entry) == 1)


_score = Isolated(score_entry, timeout_s=10.0, late=0.0)


@dataclass(frozen=True, kw_only=True)
class ReasoningGym:
    """Problems of one generator. No question of the test split is in the training split."""

    generator: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    """The generator's own settings."""
    num_train: int = 2000
    num_test: int = 500
    seed: int = 0
    instruction: str = INSTRUCTION

    def __post_init__(self) -> None:
        from reasoning_gym.factory import DATASETS

        if self.generator not in DATASETS:
            raise ValueError(f"reasoning-gym has no generator {self.generator!r}{nearest(self.generator, DATASETS)}")

    @property
    def templates(self) -> Mapping[str, str]:
        return ENGLISH

    @cached_property
    def _problems(self) -> tuple[list[Problem], list[Problem]]:
        test = self._draw(self.num_test, seed=2 * self.seed + 1, without=set())
        return self._draw(self.num_train, seed=2 * self.seed, without={str(p.prompt) for p in test}), test

    def problems(self, split: Literal["train", "test"]) -> list[Problem]:
        return self._problems[split == "test"]

    def _draw(self, n: int, *, seed: int, without: set[str]) -> list[Problem]:
        import reasoning_gym

        try:
            dataset = reasoning_gym.create_dataset(self.generator, size=2 * n, seed=seed, **self.knobs)
        except (TypeError, AssertionError) as error:
            raise ValueError(f"reasoning-gym's {self.generator!r} refuses the settings {dict(self.knobs)}: {error}") from error
        found: dict[str, Problem] = {}
        for i, entry in enumerate(dataset):
            if len(found) < n and entry["question"] not in without:
                found.setdefault(entry["question"], self._problem(entry, f"{self.generator}-{seed}-{i}"))
        return list(found.values())

    def _problem(self, entry: Mapping[str, Any], name: str) -> Problem:
        return Problem(
            prompt=entry["question"],
            answer=str(entry["answer"]),
            solution=_solution(self.generator, entry),
            instruction=self.instruction,
            id=name,
            columns={"entry": dict(entry)},
        )

    def verify(self, problem: Problem, completion: str) -> float:
        """Scored in a killable process; a generator whose scorer executes the answer only ever sees plain arithmetic."""
        answer = final_answer(completion)
        if answer is None or (self.generator == "countdown" and (not PLAIN.fullmatch(answer) or POWER.search(answer))):
            return 0.0
        if answer == problem.answer:
            return 1.0
        return _score(self.generator, dict(self.knobs), answer, problem.columns["entry"])


def _solution(generator: str, entry: Mapping[str, Any]) -> str:
    """A worked solution: the library's own, or running sums for chains of + and -."""
    worked = entry.get("metadata", {}).get("answer_cot")
    if worked:
        return str(worked)
    return _running_sums(str(entry["question"]), str(entry["answer"])) if generator == "chain_sum" else ""


def _running_sums(question: str, answer: str) -> str:
    """"3 + 4 = 7", "7 - 2 = 5", ... and the answer."""
    terms = re.findall(r"([-+]?)\s*(\d+)", question.split(":")[-1])
    total, lines = 0, []
    for i, (sign, digits) in enumerate(terms):
        value = -int(digits) if sign == "-" else int(digits)
        if i:
            lines.append(f"{total} {sign} {digits} = {total + value}")
        total += value
    assert str(total) == answer, (question, answer)
    return "\n".join([*lines, f"Answer: {answer}"])
