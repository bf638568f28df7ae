"""Whether a student begins to speak of references it never saw, and on what kind of token and where in the rollout its teacher's KL falls."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy

from selfdistill.diagnostics.drawing import bars, panels
from selfdistill.diagnostics.markers import Markers, Rate, counted, markers
from selfdistill.diagnostics.readings import TokenReading
from selfdistill.diagnostics.statistics import ratio
from selfdistill.evaluate import Evaluation
from selfdistill.types import Group

REFERENCES = (
    *("reference solution", "the reference", "given solution", "provided solution", "the solution above", "solution provided"),
    *("given answer", "provided answer", "known answer", "the answer is known", "answer key", "the expert", "demonstration"),
    *("the attempt", "correct attempt", "the feedback", "the rubric", "the criteria", "the review", "the critique"),
)
"""[open] What speaks of the shipped templates' privileged texts; a task with words of its own needs its own list."""
PARTS = 10
"""Equal parts of a rollout's own length."""
STYLE = (
    *("so", "then", "thus", "therefore", "hence", "now", "first", "next", "finally", "since", "because", "but", "however", "also", "okay", "ok"),
    *("alright", "well", "let", "us", "we", "i", "need", "to", "wait", "maybe", "perhaps", "hmm", "actually", "alternatively", "oops", "check"),
    *("verify", "think", "answer", "solution", "step", "note", "that", "this", "is"),
)
"""[open] Words that carry the telling, not the mathematics."""
SYMBOLS = re.compile(r"[0-9=+\-*/^<>\\_{}|%$()\[\]]")


@dataclass(frozen=True, kw_only=True)
class Share:
    """Some tokens' part of the divergence."""

    name: str
    tokens: int
    mean: float
    """Nats a token."""
    share: float
    """Of the sum over all tokens."""


@dataclass(frozen=True, kw_only=True)
class Leakage:
    spoken: Markers
    """How often the student speaks of references, by step."""
    of_prompt: int
    """Such words in the problems themselves, where speaking of them is no leak."""
    classes: tuple[Share, ...]
    """KL by class of token."""
    positions: tuple[Share, ...]
    """KL by tenth of the rollout."""


def leakage(
    readings: Sequence[TokenReading],
    groups: Mapping[int, Sequence[Group]],
    evaluations: Mapping[int, Evaluation],
    *,
    decode: Callable[[Sequence[int]], str],
    words: Sequence[str] = REFERENCES,
) -> Leakage:
    """Shares of the readings' divergence (an unclipped KL, or shares may be negative), and rates of the words in the student's own texts."""
    classes = numpy.array([token_class(decode([r.rollout.completion_ids[t]])) for r in readings for t in r.position])
    places = numpy.concatenate([r.position * PARTS // len(r.rollout.completion_ids) for r in readings])
    divergence = numpy.concatenate([r.divergence for r in readings])
    prompts = {str(r.group.problem.prompt) for r in readings}
    return Leakage(
        spoken=markers(groups, evaluations, words=words),
        of_prompt=sum(sum(counted(prompt, words).values()) for prompt in prompts),
        classes=tuple(_share(name, divergence, classes == name) for name in ("style", "maths", "other")),
        positions=tuple(_share(f"{k * 100 // PARTS}-{(k + 1) * 100 // PARTS} %", divergence, places == k) for k in range(PARTS)),
    )


def token_class(text: str) -> str:
    """maths: digits, operators, brackets, single letters but "a", "A" and "I"; style: connectives and punctuation; other: all else ([open])."""
    word = text.strip()
    if SYMBOLS.search(word) or (len(word) == 1 and word.isalpha() and word not in "aAI"):
        return "maths"
    return "style" if word.lower() in STYLE or (word and not any(letter.isalnum() for letter in word)) else "other"


def _share(name: str, divergence: numpy.ndarray, mask: numpy.ndarray) -> Share:
    own = divergence[mask]
    return Share(name=name, tokens=len(own), mean=ratio([float(own.sum())], [float(len(own))]), share=ratio([float(own.sum())], [float(divergence.sum())]))


def table(result: Leakage) -> list[tuple[str, ...]]:
    rows = [("tokens", "number", "KL, nats a token", "share of KL")]
    rows += [(s.name, str(s.tokens), f"{s.mean:.4f}", f"{s.share:.1%}") for s in (*result.classes, *result.positions)]
    rows += [("", "", "", ""), ("speaks of references", "texts", "words", "a thousand tokens")]
    spoken = (*result.spoken.rollouts, *result.spoken.evaluations)
    return [*rows, *((r.name, str(r.texts), str(r.total), f"{r.per_1k:.2f}") for r in spoken), ("the problems themselves", "", str(result.of_prompt), "")]


def picture(result: Leakage, path: Path, *, title: str) -> None:
    """KL by class and by place, and what the student says."""
    with panels(path, 3, title=title) as (classes, places, spoken):
        bars(classes, {f"{s.name} ({s.share:.0%} of KL)": s.mean for s in result.classes if s.tokens}, form="{:.4f}")
        classes.set(title="KL by class of token", xlabel="nats a token")
        middles = [(k + 0.5) / PARTS for k in range(PARTS)]
        places.bar(middles, [s.share for s in result.positions], width=0.9 / PARTS, alpha=0.8)
        places.axhline(1 / PARTS, color="gray", linestyle=":", linewidth=1)
        places.set(title="KL by place in the rollout", xlabel="share of the rollout's length", ylabel="share of all KL")
        rates: tuple[Rate, ...] = (*result.spoken.rollouts, *result.spoken.evaluations)
        bars(spoken, {r.name: r.per_1k for r in rates}, errors={r.name: r.per_1k_ci95 for r in rates}, form="{:.2f}")
        spoken.set(title="speaks of references it never saw", xlabel="words a thousand tokens")
