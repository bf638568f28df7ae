"""The exact judge of a working: which step is the first wrong one given the values the writer had, and what it should have been."""

import re
from dataclasses import dataclass, replace

from selfdistill.tasks.arithmetic.programs import Line, Program, Step, compute

LINE = re.compile(r"(oops )?([a-z]) = (\w+) ([-+*]) (\w+)(?: = (\d+) ([-+*]) (\d+))? = (\d+)")
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


def first_wrong(verdicts: list[Verdict]) -> int | None:
    """Index of the first line that does not hold and is not mended."""
    return next((i for i, verdict in enumerate(verdicts) if verdict.wrong), None)


def slips(verdicts: list[Verdict]) -> set[int]:
    """Which words of the completion are results that do not hold, mended ones included."""
    found, at = set(), 0
    for verdict in verdicts[:-1]:
        at += len(verdict.text.split())
        if verdict.line and not verdict.holds:
            found.add(at - 1)
        at += 1
    return found


def _parse(text: str) -> Line | None:
    """A worked step; None where the text is none, or repeats its operator differently."""
    found = LINE.fullmatch(text)
    if not found or (found[7] is not None and found[7] != found[4]):
        return None
    left, right = (int(o) if o.isdigit() else o for o in (found[3], found[5]))
    if found[6] is None and (isinstance(left, str) or isinstance(right, str)):
        return None
    values = (left, right) if found[6] is None else (int(found[6]), int(found[8]))
    return Line(Step(found[2], left, found[4], right), values, int(found[9]))


def _holds(line: Line, steps: dict[str, Step], values: dict[str, int], modulus: int) -> bool:
    """The step is the program's and new, puts in its operands' current values, and computes."""
    step = line.step
    if steps.get(step.name) != step or step.name in values:
        return False
    operands = tuple(values.get(o) if isinstance(o, str) else o for o in (step.left, step.right))
    return line.values == operands and line.result == compute(line.values[0], step.op, line.values[1], modulus=modulus)
