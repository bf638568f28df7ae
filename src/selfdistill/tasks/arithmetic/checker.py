"""The exact judge of a working: which step is the first wrong one given the values the writer had, and what it should have been."""

import re
from dataclasses import dataclass, replace

from selfdistill.tasks.arithmetic.programs import Line, Program, Step, compute

LINE = re.compile(r"(?:oops )?([a-z]) = (?:([a-z]) )?(\d+) ([-+*]) (?:([a-z]) )?(\d+) = \1 (\d+)")
ANSWER = re.compile(r"answer (\d+)")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One line of a working: what was written, and whether it holds in the state its writer was in."""

    line: Line | None
    """None: the text is not a step."""
    holds: bool
    text: str
    mended: bool = False
    """The next line takes it back (`oops`) and redoes the step."""

    @property
    def wrong(self) -> bool:
        """It does not hold and was let stand."""
        return not self.holds and not self.mended


def final_answer(completion: str) -> int | None:
    """The number after `answer` at the very end of the completion; None where it does not end so."""
    found = ANSWER.fullmatch(completion.rsplit(";", 1)[-1].strip())
    return int(found[1]) if found else None


def judge(program: Program, completion: str, *, modulus: int) -> list[Verdict]:
    """A verdict a line, and one for the answer at the end."""
    steps = {step.name: step for step in program}
    values: dict[str, int] = {}
    verdicts: list[Verdict] = []
    *texts, last = (part.strip() for part in completion.split(";"))
    for text in texts:
        line = _parse(text)
        if line is None:
            verdicts.append(Verdict(line=None, holds=False, text=text))
            continue
        name = line.step.name
        if text.startswith("oops ") and verdicts and verdicts[-1].line and verdicts[-1].line.step.name == name:
            verdicts[-1] = replace(verdicts[-1], mended=True)
            values.pop(name, None)
        verdicts.append(Verdict(line=line, holds=_holds(line, steps, values, modulus), text=text))
        values[name] = line.result
    asked = program[-1].name
    return [*verdicts, Verdict(line=None, holds=final_answer(completion) is not None and values.get(asked) == final_answer(completion), text=last)]


def slips(program: Program, completion: str, *, modulus: int) -> set[int]:
    """Which words are wrong numbers: operands that are not their names' values, and results that do not follow from the operands."""
    values: dict[str, int] = {}
    found, at = set(), 0
    for text in completion.split(";")[:-1]:
        words = text.split()
        if line := _parse(text.strip()):
            numbers = [at + i for i, word in enumerate(words) if word.isdigit()]
            operands = [values.get(o, v) if isinstance(o, str) else v for o, v in zip((line.step.left, line.step.right), line.values, strict=True)]
            true = (*operands, compute(line.values[0], line.step.op, line.values[1], modulus=modulus))
            found |= {position for position, wrote, value in zip(numbers, (*line.values, line.result), true, strict=True) if wrote != value}
            values[line.step.name] = line.result
        at += len(words) + 1
    return found


def _parse(text: str) -> Line | None:
    """A worked step; None where the text is none."""
    found = LINE.fullmatch(text)
    if not found:
        return None
    values = (int(found[3]), int(found[6]))
    left, right = (name or value for name, value in zip((found[2], found[5]), values, strict=True))
    return Line(Step(found[1], left, found[4], right), values, int(found[7]))


def _holds(line: Line, steps: dict[str, Step], values: dict[str, int], modulus: int) -> bool:
    """The step is the program's and new, puts in its operands' current values, and computes."""
    step = line.step
    if steps.get(step.name) != step or step.name in values:
        return False
    operands = tuple(values.get(o) if isinstance(o, str) else o for o in (step.left, step.right))
    return line.values == operands and line.result == compute(line.values[0], step.op, line.values[1], modulus=modulus)
