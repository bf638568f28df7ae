"""reasoning-gym's chains of sums, whose workings can be checked line by line: exact judge and critique."""

import re
from dataclasses import dataclass

from selfdistill.steps import ClosedBy
from selfdistill.tasks import first_wrong
from selfdistill.tasks.answers import final_answer
from selfdistill.tasks.reasoning_gym import ReasoningGym, running_sums
from selfdistill.types import Problem

SUM = re.compile(r"\s*(-?\d+(?:\s*[-+]\s*-?\d+)+)\s*=\s*(-?\d+)\s*\.?\s*")
TERM = re.compile(r"(?:^|([-+]))\s*(-?\d+)\s*")


@dataclass(frozen=True)
class Line:
    """A line of a completion with its line end; behind it `done` operations of the chain are worked out and come to `total`."""

    text: str
    wrong: bool
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class ChainSum(ReasoningGym):
    """Chains of + and -; a line "7 + 9 = 16" holds where it goes on from the sum before it with the question's next numbers, and is true.

    Words are not judged. Raises what ReasoningGym raises.
    """

    def judge(self, problem: Problem, completion: str) -> list[Line]:
        """A verdict on every line and, where none is the right answer, on what is missing."""
        terms = _terms(_expression(problem))
        verdicts: list[Line] = []
        done, total = 0, terms[0]
        for text in ClosedBy("\n")(completion):
            wrong = False
            if found := SUM.fullmatch(text):
                left, result = _terms(found[1]), int(found[2])
                following = [total, *terms[done + 1 : done + len(left)]]
                wrong = left != following or result != sum(left)
                done, total = done + len(left) - 1, result
            elif (answer := final_answer(text)) is not None:
                wrong = self.verify(problem, f"Answer: {answer}") != 1
            verdicts.append(Line(text=text, wrong=wrong, done=done, total=total))
        missing = self.verify(problem, completion) != 1 and first_wrong(verdicts) is None
        return [*verdicts, Line(text="", wrong=True, done=done, total=total)] if missing else verdicts

    def critique(self, problem: Problem, completion: str) -> str:
        """The completion line for line up to its first error, and on from there correctly."""
        verdicts = self.judge(problem, completion)
        if (wrong := first_wrong(verdicts)) is None:
            return completion
        kept = "".join(v.text for v in verdicts[:wrong])
        kept += "\n" if kept and not kept.endswith("\n") else ""
        first, *others = _expression(problem).split()
        done, total = (verdicts[wrong - 1].done, verdicts[wrong - 1].total) if wrong else (0, int(first))
        return kept + running_sums(" ".join([str(total), *others[2 * done :]]))


def _expression(problem: Problem) -> str:
    return problem.columns["entry"]["metadata"]["expression"]


def _terms(chain: str) -> list[int]:
    """The signed numbers of a chain: "8 - 5 + 2" gives 8, -5, 2."""
    return [-int(number) if sign == "-" else int(number) for sign, number in TERM.findall(chain)]
