"""Feedback from the other model of two that learn in lockstep: who may speak, what of it is kept, and how often it leads astray.

Flows in: the step's groups, each with the other model's group on the same problem. Flows out: feedback["peer"], and shares a step (OPCoD, 2606.14368).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import ClassVar

import torch

from selfdistill.contexts import without_thinking, worded
from selfdistill.tasks import Task, asking
from selfdistill.tasks.answers import NUMBER, in_words, number
from selfdistill.tasks.grading import verified
from selfdistill.tools import Tools
from selfdistill.types import Group, Problem, Rollout
from selfdistill.writers import Peer, Writer, peer_of

PEER = "peer"
"""The feedback under which the other model's is kept."""

Gate = Callable[[Group], bool]
"""The other model's own group on a problem -> whether its feedback on that problem is used."""
Anchor = Callable[[str, Problem, Task], str | None]
"""(feedback, problem, task) -> what of it is shown; None: nothing."""
LETTERS = 4
"""Of the shortest word of a question that counts as one of its concepts."""
EMPTY = frozenset(
    (
        *("about", "also", "answer", "been", "between", "calculate", "compute", "determine", "does", "each", "evaluate", "every", "exactly", "express"),
        *("find", "from", "give", "given", "have", "here", "into", "many", "more", "most", "much", "only", "other", "over", "same", "show", "solve", "some"),
        *("such", "suppose", "than", "that", "their", "them", "then", "there", "these", "they", "this", "those", "through", "under", "value", "very", "well"),
        *("were", "what", "when", "where", "which", "while", "whose", "will", "with", "would", "your"),
    )
)
"""Words of four letters and more that name nothing: a question's grammar, and what it asks to be done."""

MARK = r"(?:(?:\bfinal\s+)?\banswer\b(?:\s+is)?\s*[:=]?\s*|####\s*)?"
"""What stands before an answer."""
BOX = r"\\boxed\{\s*(?P<said>(?:[^{}]|\{[^{}]*\})*?)\s*\}"


@dataclass(frozen=True)
class Cognizance:
    """acc_j(q) >= threshold: the share of right ones among the other model's graded rollouts on the problem (OPCoD). 0 admits every tutor."""

    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"Cognizance(threshold={self.threshold}): threshold is a share of rollouts and lies in 0..1; 0 admits every tutor")

    def __call__(self, group: Group) -> bool:
        return accuracy(group) >= self.threshold


@dataclass(frozen=True)
class Anchored:
    """Feedback without the final answer, if it names one of the problem's concepts; rules only, no model is asked (OPCoD).

    [open] Whatever stands for the gold answer is taken out, as a word of its own, in a box or behind `answer`: also where it means another number.
    So is a number or a box that the task's verifier calls right, such as 7.0 or 14/2 for 7, and a whole number in words.
    """

    def __call__(self, text: str, problem: Problem, task: Task) -> str | None:
        kept = without_answer(text, problem.answer, right=partial(_right, problem=problem, task=task))
        return kept if any(_named(concept, kept) for concept in concepts(problem, task)) else None


@dataclass(frozen=True)
class AsWritten:
    """The ablation: every word of the feedback, answers included, whatever it is about."""

    def __call__(self, text: str, problem: Problem, task: Task) -> str | None:
        return text


@dataclass(frozen=True, kw_only=True)
class PeerFeedback:
    """feedback["peer"]: what the other model writes about each rollout, on problems where the gate admits it, as far as the anchor keeps it.

    The writer is shown the question, the best rollout of its own group and the student's attempt. Raises ValueError where the student learns alone.
    """

    gate: Gate = Cognizance()
    anchor: Anchor = Anchored()
    writer: Writer = Peer()
    reads_peer: ClassVar[bool] = True

    def __call__(self, groups: list[Group], tools: Tools) -> None:
        peers = [_peer(group, tools) for group in groups]
        admitted = [group for group, peer in zip(groups, peers, strict=True) if self.gate(peer)]
        pairs = [(rollout, group) for group in admitted for rollout in group.rollouts]
        written = self.write(pairs, tools)
        kept = [self.anchor(text, group.problem, tools.task) for text, (_, group) in zip(written, pairs, strict=True)]
        for text, (rollout, _) in zip(kept, pairs, strict=True):
            if text:
                rollout.feedback[PEER] = text
        shares = {
            "peer_accuracy": [accuracy(peer) for peer in peers],
            "admitted_share": [float(self.gate(peer)) for peer in peers],
            "unanchored_share": [float(not text) for text in kept],
            "edited_share": [float(bool(text) and text != said) for text, said in zip(kept, written, strict=True)],
        }
        tools.metrics.update({name: sum(values) / max(len(values), 1) for name, values in shares.items()})

    def write(self, pairs: Sequence[tuple[Rollout, Group]], tools: Tools) -> list[str]:
        """What the writer says of each rollout, as it says it."""
        shown = [{"solution": without_thinking(best(_peer(g, tools)).text), "attempt": without_thinking(r.text)} for r, g in pairs]
        chats = [worded(group.problem, "feedback_request", fields) for (_, group), fields in zip(pairs, shown, strict=True)]
        return self.writer(chats, tools) if chats else []


@dataclass(frozen=True, kw_only=True)
class BreakRates:
    """Metrics break_rate_admitted, break_rate_excluded: share of right rollouts whose writer, shown its rollout and the feedback on it, answers wrongly.

    Excluded tutors write for this alone, and what they write is never kept. One sample a right rollout and a tutor's text that the anchor keeps, each
    `every` steps by the rollouts' own count, at the rollouts' temperature; the random state is as before. A rate without rollouts is left out.
    """

    feedback: PeerFeedback
    every: int = 10
    """Steps; 0: never."""
    measures: ClassVar[bool] = True

    def __call__(self, groups: list[Group], tools: Tools) -> None:
        version = max((r.policy_version for g in groups for r in g.rollouts), default=0)
        if not self.every or version % self.every:
            return
        right = [(rollout, group) for group in groups for rollout in group.rollouts if (rollout.reward or 0) >= 1]
        devices = [tools.policy.device] if tools.policy.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            for name, admits in (("admitted", True), ("excluded", False)):
                tutored = [(rollout, group) for rollout, group in right if self.feedback.gate(_peer(group, tools)) == admits]
                rewards = self._again(tutored, tools)
                tools.metrics.update({f"break_rate_{name}": sum(r < 1 for r in rewards) / len(rewards)} if rewards else {})

    def _again(self, pairs: list[tuple[Rollout, Group]], tools: Tools) -> list[float]:
        """Rewards of one more answer a rollout, written under that rollout and the feedback on it."""
        known = [rollout.feedback.get(PEER) for rollout, _ in pairs]
        asked = [pair for pair, text in zip(pairs, known, strict=True) if text is None]
        said = iter(self.feedback.write(asked, tools))
        texts = [text or self.feedback.anchor(next(said), group.problem, tools.task) for text, (_, group) in zip(known, pairs, strict=True)]
        heard = [(rollout, group, text) for (rollout, group), text in zip(pairs, texts, strict=True) if text]
        if not heard:
            return []
        chats = [worded(g.problem, "solution_feedback", {"solution": without_thinking(r.text), "feedback": text}) for r, g, text in heard]
        sampler = tools.sampler.decoding(temperature=heard[0][0].temperature)
        answers = sampler.sample([Problem(prompt=tuple(chat)) for chat in chats], 1)
        graded = [Group(problem=group.problem, rollouts=answer.rollouts) for (_, group, _), answer in zip(heard, answers, strict=True)]
        tools.grade(graded)
        return [r.reward for g in graded for r in g.rollouts if r.reward is not None]


def accuracy(group: Group) -> float:
    """Share of right ones among the graded rollouts; 0 where none is graded."""
    rewards = [r.reward for r in group.rollouts if r.reward is not None]
    return sum(reward >= 1 for reward in rewards) / max(len(rewards), 1)


def best(group: Group) -> Rollout:
    """The first of the rollouts with the largest reward."""
    return max(group.rollouts, key=lambda rollout: rollout.reward or 0.0)


def concepts(problem: Problem, task: Task) -> list[str]:
    """What a problem is about: the task's own `concepts(problem)`, else the column `concepts`.

    [open] Else the words of the question with four letters or more that are not its grammar. Raises ValueError where the task raises.
    """
    if getattr(task, "concepts", None) is not None:
        with asking(task, "concepts", otherwise="leave concepts out") as known:
            return list(known(problem))
    if given := problem.columns.get("concepts"):
        return [given] if isinstance(given, str) else [str(concept) for concept in given]
    words = re.findall(rf"[^\W\d_]{{{LETTERS},}}", problem.question.lower())
    return [word for word in dict.fromkeys(words) if word not in EMPTY]


def without_answer(text: str, answer: str, *, right: Callable[[Sequence[str]], Sequence[bool]] = lambda said: [False] * len(said)) -> str:
    """The text without the answer, the box around it and the mark before it; 7 is not in 17, 3.7 or x7.

    The answer is its own words, a number of its value in digits or as an English word, and any number or box that is `right`.
    """
    if not (gold := answer.strip()):
        return text
    value = number(gold)
    spelled = _spelled(gold, value)
    patterns = [re.compile(MARK + pattern, re.IGNORECASE) for pattern in (BOX, rf"(?:{spelled}|(?P<said>{NUMBER}))")]
    said = list(dict.fromkeys(found["said"] for pattern in patterns for found in pattern.finditer(text) if found["said"]))
    known = {token for token, holds in zip(said, right(said) if said else [], strict=True) if holds}
    known |= {token for token in said if (value is not None and number(token) == value) or re.fullmatch(spelled, token, re.IGNORECASE)}
    for pattern in patterns:
        text = pattern.sub(lambda found: "" if found["said"] is None or found["said"] in known else found[0], text)
    return re.sub(r"[ \t]+", " ", text).strip()


def _peer(group: Group, tools: Tools) -> Group:
    """The other model's group on the same problem. Raises ValueError where the student learns alone."""
    peer_of(tools)
    assert group.peer is not None, "groups are exchanged before they are annotated"
    return group.peer


def _spelled(gold: str, value: Fraction | None) -> str:
    """A pattern of the answer's own words, or of its number in English ones; of nothing for other numbers."""
    if value is None:
        return rf"(?<![\w.]){re.escape(gold)}(?!\w|\.\d)"
    words = in_words(int(value)) if value.denominator == 1 else []
    # seven is not in seventy-seven, nor in seven-sided
    return r"(?<![\w-])" + r"[\s-]+(?:and\s+)?".join(words) + r"(?![\w-])" if words else "$^"


def _right(said: Sequence[str], *, problem: Problem, task: Task) -> list[bool]:
    """Which of these the task's verifier takes for the answer, boxed or behind `answer`; one that it cannot read is none."""
    texts = [(problem, form.format(token)) for token in said for form in (r"\boxed{{{}}}", "answer {}")]
    try:
        rewards = verified(texts, task)
    except ValueError:  # a verifier that raises on what no model wrote stops no run
        return [False] * len(said)
    return [any((reward or 0) >= 1 for reward in pair) for pair in zip(rewards[::2], rewards[1::2], strict=True)]


def _named(concept: str, text: str) -> bool:
    """Whether a text holds a concept as words of its own, in either case."""
    return bool(concept) and re.search(rf"(?<!\w){re.escape(concept)}(?!\w)", text, re.IGNORECASE) is not None
