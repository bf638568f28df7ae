"""What the tiny base is pretrained on: workings under every kind of context, with slips where the context does not cover a step.

Without context the base is taught to slip: it knows every fact but errs at a fixed rate. A context that covers a step is never
followed by a trained slip; there slips appear as input without loss, half of them mended (`oops`, the step redone), half carried
through, so a privileged reading of a mistaken working says what follows from the writer's own state. A context that
belongs to another problem covers nothing.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.tasks.arithmetic.programs import Line, Program, Step, compute, question, random_order, work, written

SHARES: Mapping[str, float] = {
    "student": 0.30,
    "answer": 0.06,
    "solution": 0.12,
    "peer": 0.13,
    "wrong_peer": 0.06,
    "foreign": 0.12,
    "demonstration": 0.03,
    "reference": 0.04,
    "rubric": 0.03,
    "skill": 0.03,
    "critique": 0.03,
    "feedback": 0.02,
    "sharded": 0.03,
}
"""How often each kind of context is drawn."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A chat and the completion that follows it, word by word, with the words that carry loss."""

    messages: tuple[Mapping[str, str], ...]
    words: tuple[str, ...]
    trained: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Draws examples of the training split."""

    task: Arithmetic
    slip_rate: float
    """Probability that an uncovered step gets a wrong result; 0: all work is correct."""
    masked_share: float = 0.5
    """Share of covered workings that contain a slip without loss."""
    mend_share: float = 0.5
    """Share of those slips that are mended on the spot."""

    def draw(self, rng: random.Random) -> Example:
        """One example of a kind drawn by SHARES."""
        program = self.task.draw(rng, "train")
        kind = rng.choices(list(SHARES), weights=list(SHARES.values()))[0]
        if kind == "sharded":
            return self._sharded(program, rng)
        order = random_order(program, rng)
        text, covered = self._context(kind, program, order, rng)
        return self._worked(text, order, covered, rng)

    def _context(self, kind: str, program: Program, order: list[Step], rng: random.Random) -> tuple[str, set[str]]:
        """The user's turn of a kind, and the names of the steps that it covers."""
        task, names, steps = self.task, {s.name for s in program}, {s.name: s for s in program}
        solution = task.solution(program, rng)
        answer = solution.rsplit(" ", 1)[1]
        if kind in ("student", "answer"):
            return self._text(kind, program, answer=answer), set()
        if kind == "foreign":
            return self._foreign(program, answer, rng), set()
        if kind == "wrong_peer":
            wrong = written(self._slipped(random_order(program, rng), rng, at_least=1), asked=program[-1].name)
            return self._text(rng.choice(["peer", "solution"]), program, answer=answer, peer=wrong, solution=wrong), names
        if kind == "rubric":
            rubric = task.rubric(program, rng)
            return self._text(kind, program, rubric=rubric), {part.split()[0] for part in rubric.split(" ; ")}
        if kind == "skill":
            skill, mistake = rng.choice(task.operators), rng.choice(task.operators)
            covered = {n for n in names if steps[n].op in (skill, mistake)}
            return self._text(kind, program, skill=f"check {skill}", mistake=f"careless {mistake}"), covered
        if kind == "feedback":
            name = rng.choice(sorted(names))
            return self._text(kind, program, feedback=f"wrong {name}"), {name}
        return self._text(kind, program, solution=solution, answer=answer, peer=solution, demonstration=solution, critique=solution), names

    def _foreign(self, program: Program, answer: str, rng: random.Random) -> str:
        """A context that belongs to another problem, sometimes beside this problem's own answer."""
        other = self.task.solution(self.task.draw(rng, "train"), rng)
        other_answer = rng.choice([answer, other.rsplit(" ", 1)[1]])
        return self._text(rng.choice(["peer", "peer", "solution", "answer"]), program, answer=other_answer, peer=other, solution=other)

    def _text(self, kind: str, program: Program, **fields: str) -> str:
        return self.task.templates[kind].format(problem=question(program), instruction="", **fields)

    def _worked(self, text: str, order: list[Step], covered: set[str], rng: random.Random) -> Example:
        """The working of one turn: uncovered steps slip with loss, covered ones sometimes without."""
        masked = rng.choice(sorted(covered)) if covered and self.slip_rate and rng.random() < self.masked_share else None
        mended = masked is not None and rng.random() < self.mend_share
        slipping = {s.name for s in order if s.name not in covered and rng.random() < self.slip_rate} | ({masked} if masked else set())
        words: list[tuple[str, bool]] = []
        lines = self._lines(order, slipping, mended={masked} if mended else set(), rng=rng)
        for line, is_redone in lines:
            parts = str(line).split()
            silent = line.step.name == masked and not is_redone and line.result != self._true(line)
            words += [("oops", True)] if is_redone else []
            words += [(word, not (silent and i == len(parts) - 2)) for i, word in enumerate(parts)]
        # the asked name is the last step of every order, since it uses all others
        words += [("answer", True), (str(lines[-1][0].result), True)]
        return Example(messages=({"role": "user", "content": text},), words=tuple(w for w, _ in words), trained=tuple(t for _, t in words))

    def _lines(self, order: list[Step], slipping: set[str], *, mended: set, rng: random.Random) -> list[tuple[Line, bool]]:
        """The lines written, each with whether it redoes the one before it."""
        results: dict[str, int] = {}
        lines: list[tuple[Line, bool]] = []
        for i, step in enumerate(order):
            line = work(order[: i + 1], modulus=self.task.modulus, results=results)[-1]
            if step.name in slipping:
                wrong = self._wrong(line, rng)
                lines.append((wrong, False))
                if step.name in mended:
                    lines.append((line, True))
                else:
                    results[step.name] = wrong.result
            else:
                lines.append((line, False))
        return lines

    def _slipped(self, order: list[Step], rng: random.Random, *, at_least: int) -> list[Line]:
        """A working with carried slips at that many steps or more."""
        names = set(rng.sample([s.name for s in order], at_least)) | {s.name for s in order if rng.random() < self.slip_rate}
        return [line for line, _ in self._lines(order, names, mended=set(), rng=rng)]

    def _wrong(self, line: Line, rng: random.Random) -> Line:
        shift = rng.randrange(1, self.task.modulus)
        return replace(line, result=(line.result + shift) % self.task.modulus)

    def _true(self, line: Line) -> int:
        return compute(line.values[0], line.step.op, line.values[1], modulus=self.task.modulus)

    def _sharded(self, program: Program, rng: random.Random) -> Example:
        """The program told over several turns, each worked as it comes; the loss is on the last turn's answer and one earlier reply."""
        slipping = {s.name for s in program if rng.random() < self.slip_rate}
        lines = [line for line, _ in self._lines(list(program), slipping, mended=set(), rng=rng)]
        upto = rng.randrange(len(program) + 1)
        turns: list[Mapping[str, str]] = []
        for step, line in list(zip(program, lines, strict=True))[:upto]:
            turns += [{"role": "user", "content": f"{step} ;"}, {"role": "assistant", "content": str(line)}]
        if upto == len(program):
            turns.append({"role": "user", "content": f"{program[-1].name} ?"})
            words = ("answer", str(lines[-1].result))
        else:
            turns.append({"role": "user", "content": f"{program[upto]} ;"})
            words = tuple(str(lines[upto]).split())
        return Example(messages=tuple(turns), words=words, trained=(True,) * len(words))
