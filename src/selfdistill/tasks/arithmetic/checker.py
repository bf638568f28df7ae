"""The exact judge of a working: which step is the first wrong one given the values the writer had, and what it should have been."""

import re
from dataclasses import dataclass

from selfdistill.tasks.arithmetic.programs import Line, Program, Step, compute

LINE = re.compile(r"(oops )?(\w+) = (\d+) ([-+*]) (\d+) = (\d+)")
ANSWER = re.compile(r"answer (\d+)")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One line of a working: what was written, and whether it holds in the state its writer was in."""

    line: Line | None
    """None: the text is not a step."""
    holds: bool
    text: str


def final_answer(completion: str) -> int | None:
    """The number after `answer` at the very end of the completion; None where it does not end so."""
    found = ANSWER.fullmatch(completion.rsplit(";", 1)[-1].strip())
    return int(found[1]) if found else None


def judge(program: Program, completion: str, *, modulus: int) -> list[Verdict]:
    """A verdict a step, mended steps replaced by their mending, and one for the answer line at the end."""
    steps = {step.name: step for step in program}
    values: dict[str, int] = {}
    verdicts: list[Verdict] = []
    *texts, last = (part.strip() for part in completion.split(";"))
    for text in texts:
        found = LINE.fullmatch(text)
        if not found:
            verdicts.append(Verdict(line=None, holds=False, text=text))
            continue
        line = Line(found[2], int(found[3]), found[4], int(found[5]), int(found[6]))
        if found[1] and verdicts and verdicts[-1].line and verdicts[-1].line.name == line.name:
            verdicts.pop()
            values.pop(line.name, None)
        verdicts.append(Verdict(line=line, holds=_holds(line, steps, values, modulus), text=text))
        values[line.name] = line.result
    asked = program[-1].name
    return [*verdicts, Verdict(line=None, holds=final_answer(completion) is not None and values.get(asked) == final_answer(completion), text=last)]


def first_wrong(verdicts: list[Verdict]) -> int | None:
    """Index of the first verdict that does not hold."""
    return next((i for i, verdict in enumerate(verdicts) if not verdict.holds), None)


def _holds(line: Line, steps: dict[str, Step], values: dict[str, int], modulus: int) -> bool:
    """The step exists, is new, puts in its operands' current values, and computes."""
    step = steps.get(line.name)
    if step is None or line.name in values or line.op != step.op:
        return False
    operands = [values.get(o) if isinstance(o, str) else o for o in (step.left, step.right)]
    return [line.left, line.right] == operands and line.result == compute(line.left, line.op, line.right, modulus=modulus)
