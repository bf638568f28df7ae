"""What the tiny base is pretrained on: workings under every kind of context, with slips where the context does not cover a step.

Without context the base is taught to slip: it knows every fact but errs at a fixed rate, and seldom mends (`oops`, the step
redone). A context that covers a step is never followed by a trained slip; there slips appear as input without loss, half of
them mended, half carried through, so a privileged reading of a mistaken working says what follows from the writer's own
state. A context that belongs to another problem, or contradicts the answer, covers nothing.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.tasks.arithmetic.programs import Line, Program, Step, question, random_order, work

SHARES: Mapping[str, float] = {
    "answer": 0.08,
    "solution": 0.16,
    "peer": 0.22,
    "wrong_peer": 0.06,
    "foreign": 0.20,
    "demonstration": 0.04,
    "reference": 0.06,
    "rubric": 0.04,
    "skill": 0.04,
    "critique": 0.04,
    "feedback": 0.03,
    "sharded": 0.03,
}
"""How often each kind is drawn among the examples with a context."""
FOREIGN = ("peer", "peer", "solution", "answer", "demonstration", "critique")
"""Kinds under which another problem's text is shown."""


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
    context_share: float
    """Share of examples whose prompt shows more than the question."""
    slip_rate: float
    """Probability that an uncovered step gets a wrong result; 0: all work is correct."""
    careful_rate: float = 0.1
    """Share of uncovered slips that are mended on the spot."""
    masked_share: float = 0.5
    """Share of covered workings that contain a slip without loss."""
    mend_share: float = 0.5
    """Share of those slips that are mended."""
    peer_mends: float = 0.05
    """Probability that a step of a successful peer is a mended slip."""

    def draw(self, rng: random.Random) -> Example:
        """One example."""
        program = self.task.draw(rng, "train")
        kind = rng.choices(list(SHARES), weights=list(SHARES.values()))[0] if rng.random() < self.context_share else "student"
        if kind == "sharded":
            return self._sharded(program, rng)
        text, covered = self._context(kind, program, rng)
        return self._worked(text, random_order(program, rng), covered, rng)

    def _context(self, kind: str, program: Program, rng: random.Random) -> tuple[str, set[str]]:
        """The user's turn of a kind, and the names of the steps that it covers."""
        task, names, asked = self.task, {s.name for s in program}, program[-1].name
        solution = task.solution(program, rng)
        answer = solution.rsplit(" ", 1)[1]
        if kind == "student":
            return self._text(kind, program), set()
        if kind == "answer":
            return self._text(kind, program, answer=answer), {asked}
        if kind == "foreign":
            return self._foreign(program, answer, rng), set()
        if kind in ("peer", "wrong_peer"):
            peer, cover = (self._peer(program, rng), names) if kind == "peer" else (self.wrong_peer(program, rng), set())
            return self._text("peer", program, answer=answer, peer=peer), cover
        if kind == "rubric":
            rubric = task.rubric(program, rng)
            return self._text(kind, program, rubric=rubric), {part.split()[0] for part in rubric.split(" ; ")}
        if kind == "skill":
            skill, mistake = rng.choice(task.signs), rng.choice(task.signs)
            covered = {s.name for s in program if s.op in (skill, mistake)}
            return self._text(kind, program, skill=f"check {skill}", mistake=f"careless {mistake}"), covered
        if kind == "feedback":
            name = rng.choice(sorted(names))
            return self._text(kind, program, feedback=f"wrong {name}"), {name}
        return self._text(kind, program, solution=solution, demonstration=solution, critique=solution), names

    def _foreign(self, program: Program, answer: str, rng: random.Random) -> str:
        """A context that belongs to another problem, sometimes beside this problem's own answer."""
        other = self.task.draw(rng, "train")
        text = self._peer(other, rng)
        kind, its_answer = rng.choice(FOREIGN), text.rsplit(" ", 1)[1]
        shown = its_answer if kind == "answer" else rng.choice([answer, its_answer])
        return self._text(kind, program, answer=shown, peer=text, solution=text, demonstration=text, critique=text)

    def _peer(self, program: Program, rng: random.Random) -> str:
        """A working with the right answer, in which slips were mended."""
        order = random_order(program, rng)
        mended = {s.name for s in order if self.slip_rate and rng.random() < self.peer_mends}
        return self._spoken(self._lines(order, mended, mended=mended, rng=rng), program)

    def wrong_peer(self, program: Program, rng: random.Random) -> str:
        """A working whose answer is wrong because slips were carried through."""
        right = self._spoken(self._lines(list(program), set(), mended=set(), rng=rng), program).rsplit(" ", 1)[1]
        while True:
            order = random_order(program, rng)
            slipping = {rng.choice(order).name} | {s.name for s in order if rng.random() < self.slip_rate}
            text = self._spoken(self._lines(order, slipping, mended=set(), rng=rng), program)
            if text.rsplit(" ", 1)[1] != right:
                return text

    def _spoken(self, lines: list[tuple[Line, bool]], program: Program) -> str:
        """Lines as text, each redone one after its marker."""
        marked = " ".join(f"oops {line}" if is_redone else str(line) for line, is_redone in lines)
        return f"{marked} answer {next(line.result for line, _ in reversed(lines) if line.step == program[-1])}"

    def _text(self, kind: str, program: Program, **fields: str) -> str:
        return self.task.templates[kind].format(problem=question(program), instruction="", **fields)

    def _worked(self, text: str, order: list[Step], covered: set[str], rng: random.Random) -> Example:
        """The working of one turn: uncovered steps slip with loss, covered ones sometimes without."""
        masked = rng.choice(sorted(covered)) if covered and self.slip_rate and rng.random() < self.masked_share else None
        slipping = {s.name for s in order if s.name not in covered and rng.random() < self.slip_rate}
        mended = {name for name in sorted(slipping) if rng.random() < self.careful_rate}
        if masked:
            slipping |= {masked}
            mended |= {masked} if rng.random() < self.mend_share else set()
        lines = self._lines(order, slipping, mended=mended, rng=rng)
        words: list[tuple[str, bool]] = []
        for line, is_redone in lines:
            parts = str(line).split()
            silent = line.step.name == masked and not is_redone
            words += [("oops", True)] if is_redone else []
            words += [(word, not (silent and k == len(parts) - 2)) for k, word in enumerate(parts)]
        # the asked name is the last step of every order, since it uses all others
        words += [("answer", True), (str(lines[-1][0].result), True)]
        return Example(messages=({"role": "user", "content": text},), words=tuple(w for w, _ in words), trained=tuple(t for _, t in words))

    def _lines(self, order: list[Step], slipping: set[str], *, mended: set[str], rng: random.Random) -> list[tuple[Line, bool]]:
        """The lines written, each with whether it redoes the one before it."""
        results: dict[str, int] = {}
        lines: list[tuple[Line, bool]] = []
        for i, step in enumerate(order):
            line = work(order[: i + 1], modulus=self.task.modulus, results=results)[-1]
            wrong = self._wrong(line, rng) if step.name in slipping else None
            if wrong:
                lines.append((wrong, False))
            if wrong and step.name not in mended:
                results[step.name] = wrong.result
            else:
                lines.append((line, wrong is not None))
        return lines

    def _wrong(self, line: Line, rng: random.Random) -> Line:
        """Off by one or two."""
        return replace(line, result=(line.result + rng.choice((-2, -1, 1, 2))) % self.task.modulus)

    def _sharded(self, program: Program, rng: random.Random) -> Example:
        """The program told over several turns, each worked as it comes; the loss is on the reply to the last turn shown."""
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
