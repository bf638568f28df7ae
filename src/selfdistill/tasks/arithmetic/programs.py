"""Chains of assignments and their working: what a problem of the testbed is, every valid order of solving it, and slips.

A program is a tuple of steps like `c = a * 7`; the last one uses all others. Working it means one line a step, in any order in
which operands are known: `c = a * 7 = 19 * 7 = 18 ;`, values modulo a small prime.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NAMES = "abcdefghijklmnopqrstuvwxyz"
Operand = int | str


@dataclass(frozen=True)
class Step:
    """name = left op right, operands being numbers or names of other steps."""

    name: str
    left: Operand
    op: str
    right: Operand

    def __str__(self) -> str:
        return f"{self.name} = {self.left} {self.op} {self.right}"


Program = tuple[Step, ...]


@dataclass(frozen=True)
class Line:
    """One worked step: the values put in for its operands, and the result written."""

    step: Step
    values: tuple[int, int]
    result: int

    def __str__(self) -> str:
        # a value always stands right behind its name, so reading it back is one step of induction
        step = self.step
        left, right = (str(o) if isinstance(o, int) else f"{o} {v}" for o, v in zip((step.left, step.right), self.values, strict=True))
        return f"{step.name} = {left} {step.op} {right} = {step.name} {self.result} ;"


def compute(left: int, op: str, right: int, *, modulus: int) -> int:
    """left op right modulo the modulus."""
    return {"+": left + right, "-": left - right, "*": left * right}[op] % modulus


def random_program(rng: random.Random, *, operations: int, operators: Sequence[str], modulus: int) -> Program:
    """A program whose every step reaches the last one; two or more open branches make several orders valid."""
    names = rng.sample(NAMES, operations)
    steps: list[Step] = []
    open_names: list[str] = []
    for i, name in enumerate(names):
        left_over = operations - i - 1
        # a step may open one more branch only if enough steps remain to join them all
        uses = _uses(rng, len(open_names), left_over)
        operands: list[Operand] = list(rng.sample(open_names, uses))
        open_names = [n for n in open_names if n not in operands] + [name]
        operands += [rng.randrange(modulus) for _ in range(2 - uses)]
        rng.shuffle(operands)
        steps.append(Step(name, operands[0], rng.choice(operators), operands[1]))
    return tuple(steps)


def _uses(rng: random.Random, branches: int, left_over: int) -> int:
    """How many open branches the next step consumes, so that exactly one is open after the last."""
    allowed = [k for k in (0, 1, 2) if k <= branches and 1 <= branches - k + 1 <= left_over + 1]
    return rng.choice(allowed)


def question(program: Program) -> str:
    """The problem as text, ending in the name that is asked for."""
    return " ; ".join(map(str, program)) + f" ; {program[-1].name} ?"


def parse_question(text: str) -> Program:
    """The program of a question. Raises ValueError on any other text."""
    words = [statement.split() for statement in text.split(" ; ")[:-1]]
    program = tuple(Step(w[0], _operand(w[2]), w[3], _operand(w[4])) for w in words if len(w) == 5)
    if not program or question(program) != text:
        raise ValueError(f"{text!r} is not a question of the arithmetic task, such as 'a = 3 + 7 ; b = a * 5 ; b ?'")
    return program


def _operand(word: str) -> Operand:
    return int(word) if word.isdigit() else word


def canonical_hash(program: Program) -> int:
    """Equal for programs that compute one expression, whatever its names, order of steps and of commuting operands."""
    texts: dict[Operand, str] = {}
    for step in program:
        sides = [texts.get(o, str(o)) for o in (step.left, step.right)]
        left, right = sides if step.op == "-" else sorted(sides)
        texts[step.name] = f"({left}{step.op}{right})"
    return int.from_bytes(hashlib.sha256(texts[program[-1].name].encode()).digest()[:8])


def random_order(program: Program, rng: random.Random) -> list[Step]:
    """A uniformly drawn next step among those whose operands are known, again and again."""
    left, known, order = list(program), set(), []
    while left:
        step = rng.choice([s for s in left if all(not isinstance(o, str) or o in known for o in (s.left, s.right))])
        left.remove(step)
        known.add(step.name)
        order.append(step)
    return order


def work(order: Sequence[Step], *, modulus: int, results: Mapping[str, int] | None = None) -> list[Line]:
    """The lines of a working, where `results` overrides a step's result and every later step carries it through."""
    values: dict[str, int] = {}
    lines = []
    for step in order:
        left, right = (values[o] if isinstance(o, str) else o for o in (step.left, step.right))
        result = (results or {}).get(step.name, compute(left, step.op, right, modulus=modulus))
        values[step.name] = result
        lines.append(Line(step, (left, right), result))
    return lines


def written(lines: Sequence[Line], *, asked: str) -> str:
    """A completion: the lines and the terse answer they lead to."""
    answer = next(line.result for line in reversed(lines) if line.step.name == asked)
    return " ".join([*map(str, lines), f"answer {answer}"])
