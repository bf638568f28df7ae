"""The built-in testbed: arithmetic chains with worked steps, an exact step checker and every kind of privileged text."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Literal

from selfdistill.tasks import first_wrong
from selfdistill.tasks.arithmetic.checker import Verdict, final_answer, judge, slips
from selfdistill.tasks.arithmetic.programs import (
    Program,
    canonical_hash,
    parse_question,
    question,
    random_order,
    random_program,
    work,
    written,
)
from selfdistill.templates import read_templates
from selfdistill.types import Problem

Split = Literal["train", "test"]
TEST_SHARE = 10
"""One canonical problem in ten is held out, whatever the sizes and seeds."""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Problems `a = 3 + 7 ; b = a * 5 ; b ?` modulo a prime, worked line by line, answered tersely."""

    operations: int = 5
    modulus: int = 19
    operators: str | tuple[str, ...] = "+-*"
    """Of every problem; several, such as ("+-", "*"), are domains, one of which is drawn for each problem."""
    num_train: int = 4000
    num_test: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.operations <= 20 or not 5 <= self.modulus <= 100:
            raise ValueError(f"operations = {self.operations} must lie in 2..20 and modulus = {self.modulus} in 5..100")

    @cached_property
    def templates(self) -> Mapping[str, str]:
        """The words around privileged text, in the tiny base's own vocabulary."""
        return read_templates(files("selfdistill") / "assets" / "templates" / "arithmetic.toml")

    def problems(self, split: Split) -> list[Problem]:
        """The split's problems; no canonical problem is in both."""
        rng = random.Random(f"{self.seed}/{split}")
        found: dict[int, Problem] = {}
        while len(found) < (self.num_train if split == "train" else self.num_test):
            program = self.draw(rng, split)
            found.setdefault(canonical_hash(program), self.problem(program, rng))
        return list(found.values())

    def draw(self, rng: random.Random, split: Split) -> Program:
        """A program that belongs to the split."""
        while True:
            operators = self.operators if isinstance(self.operators, str) else rng.choice(self.operators)
            program = random_program(rng, operations=self.operations, operators=operators, modulus=self.modulus)
            if (canonical_hash(program) % TEST_SHARE == 0) == (split == "test"):
                return program

    def problem(self, program: Program, rng: random.Random) -> Problem:
        """A program as a problem with all its privileged texts."""
        solution, demonstration = self.solution(program, rng), self.solution(program, rng)
        operator = rng.choice([step.op for step in program])
        return Problem(
            prompt=question(program),
            answer=str(final_answer(solution)),
            solution=solution,
            id=f"arithmetic-{canonical_hash(program):016x}",
            columns={
                "demonstration": demonstration,
                "rubric": self.rubric(program, rng),
                "skill": f"check {operator}",
                "mistake": f"careless {rng.choice([o for o in self.signs if o != operator] or [operator])}",
                "domain": self.domain(program),
                "shards": (*(f"{step} ;" for step in program), f"{program[-1].name} ?"),
            },
            templates=self.templates,
        )

    @property
    def signs(self) -> str:
        """Every operator of the task."""
        return "".join(dict.fromkeys("".join(self.operators)))

    def domain(self, program: Program) -> str:
        """The operators that a problem is made of: the first of the task's domains that has all of them."""
        used = {step.op for step in program}
        return next(d for d in ([self.operators] if isinstance(self.operators, str) else self.operators) if used <= set(d))

    def concepts(self, problem: Problem) -> list[str]:
        """What a problem is about: the names of its steps."""
        assert isinstance(problem.prompt, str)
        return [step.name for step in parse_question(problem.prompt)]

    def solution(self, program: Program, rng: random.Random) -> str:
        """One correct working, in a random valid order."""
        return written(work(random_order(program, rng), modulus=self.modulus), asked=program[-1].name)

    def rubric(self, program: Program, rng: random.Random) -> str:
        """Half of the intermediate values a good working shows."""
        lines = work(program, modulus=self.modulus)
        shown = sorted(rng.sample(range(len(lines)), max(len(lines) // 2, 1)))
        return " ; ".join(f"{lines[i].step.name} {lines[i].result}" for i in shown)

    def verify(self, problem: Problem, completion: str) -> float:
        """1 where the completion ends in `answer` and the right number."""
        return float(final_answer(completion) == int(problem.answer))

    def judge(self, problem: Problem, completion: str) -> list[Verdict]:
        """A verdict on every step of a completion and on its answer."""
        assert isinstance(problem.prompt, str)
        return judge(parse_question(problem.prompt), completion, modulus=self.modulus)

    def slips(self, problem: Problem, completion: str) -> set[int]:
        """Which words of a completion are wrong numbers given what was written before them."""
        assert isinstance(problem.prompt, str)
        return slips(parse_question(problem.prompt), completion, modulus=self.modulus)

    def critique(self, problem: Problem, completion: str) -> str:
        """The completion word for word up to its first error, that step mended, and on from there correctly."""
        verdicts = self.judge(problem, completion)
        if (wrong := first_wrong(verdicts)) is None:
            return completion
        assert isinstance(problem.prompt, str)
        program = parse_question(problem.prompt)
        steps = {step.name: step for step in program}
        kept = [v.line.step.name for v in verdicts[:wrong] if v.line and not v.mended]
        name = verdicts[wrong].text.removeprefix("oops ").partition(" ")[0]
        # the wrong or unfinished step comes next where it is a step whose operands are known by then
        order = [steps[n] for n in kept] + ([steps[name]] if self._ready(steps, kept, name) else [])
        rest = [step for step in random_order(program, random.Random(completion)) if step not in order]
        lines = work([*order, *rest], modulus=self.modulus)
        copied = "".join(f"{part};" for part in completion.split(";")[:wrong])
        # the line before is a slip that the wrong step was to take back
        redone = "oops " if wrong and verdicts[wrong - 1].mended else ""
        onward = redone + " ".join(map(str, lines[len(kept) :]))
        return " ".join(filter(None, [copied, onward, f"answer {next(line.result for line in lines if line.step == program[-1])}"]))

    def feedback(self, problem: Problem, completion: str) -> str:
        """What an environment would say: the name of the first wrong step, or that the answer is missing."""
        verdicts = self.judge(problem, completion)
        wrong = first_wrong(verdicts)
        if wrong is None:
            return "right"
        line = verdicts[wrong].line
        return f"wrong {line.step.name}" if line else "wrong answer"

    def lessons(self, problem: Problem, completion: str) -> list[Mapping[str, str]]:
        """One skill for each operator whose steps a right completion worked out, one mistake for each that a wrong one broke."""
        right = self.verify(problem, completion) == 1
        verdicts = [v for v in self.judge(problem, completion) if v.line and (v.holds if right else v.wrong)]
        operators = dict.fromkeys(v.line.step.op for v in verdicts if v.line)
        return [self._skill(op) if right else self._mistake(op) for op in operators]

    def _skill(self, operator: str) -> dict[str, str]:
        principle = f"Work the {operator} out modulo {self.modulus} before writing its result."
        return {"title": f"check {operator}", "principle": principle, "when": f"A step joins two values by {operator}."}

    def _mistake(self, operator: str) -> dict[str, str]:
        avoid = f"Work it out modulo {self.modulus}, and take back a wrong line with oops."
        return {"description": f"careless {operator}", "why": f"The result of a {operator} was written without working it out.", "avoid": avoid}

    def _ready(self, steps: Mapping, known: list[str], name: str) -> bool:
        step = steps.get(name)
        return step is not None and name not in known and all(not isinstance(o, str) or o in known for o in (step.left, step.right))
