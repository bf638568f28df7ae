"""How often a model voices doubt: texts of rollouts and evaluations in, words a thousand tokens out (Purified OPSD's diagnostic, 2607.02234)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from selfdistill.diagnostics.drawing import bars, panels
from selfdistill.diagnostics.statistics import ratio, ratio_interval
from selfdistill.evaluate import Evaluation
from selfdistill.types import Group

EPISTEMIC = (
    *("wait", "maybe", "perhaps", "hmm", "actually", "alternatively", "oops", "let me check", "let me double-check"),
    *("let me verify", "double-check", "not sure", "i think", "it seems", "might be", "on second thought"),
)
"""The paper names "wait", "maybe", "hmm" and "let me check" among others; [open] the rest of this list. "oops" is the testbed's only one."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How often the words stand in some texts."""

    name: str
    texts: int
    total: int
    per_1k: float
    """A thousand tokens."""
    per_1k_ci95: tuple[float, float]
    """Percentile bootstrap over problems."""
    counts: Mapping[str, int]
    """By word; a word inside a longer phrase of the list counts as the phrase."""


@dataclass(frozen=True, kw_only=True)
class Markers:
    words: tuple[str, ...]
    rollouts: tuple[Rate, ...]
    """By step of training."""
    evaluations: tuple[Rate, ...]
    """By step; 0 is the base."""


def markers(groups: Mapping[int, Sequence[Group]], evaluations: Mapping[int, Evaluation], *, words: Sequence[str] = EPISTEMIC) -> Markers:
    """Rates by step. Whole words, whatever their case. Raises ValueError without words or texts."""
    if not words or not (groups or evaluations):
        raise ValueError(f"{len(words)} words and {len(groups) + len(evaluations)} sets of texts leave nothing to count; give --words and --steps")
    return Markers(
        words=tuple(words),
        rollouts=tuple(rate(f"rollouts, step {step}", *_of_groups(found), words=words) for step, found in groups.items()),
        evaluations=tuple(rate(f"evaluation, step {step}", *_of_evaluation(found), words=words) for step, found in evaluations.items()),
    )


def rate(name: str, texts: Sequence[str], lengths: Sequence[int], problems: Sequence[str], *, words: Sequence[str]) -> Rate:
    """Of texts with their lengths in tokens and the problems they belong to."""
    found = [counted(text, words) for text in texts]
    totals = [float(sum(counts.values())) for counts in found]
    low, high = ratio_interval(totals, lengths, problems)
    return Rate(
        name=name,
        texts=len(texts),
        total=int(sum(totals)),
        per_1k=1000 * ratio(totals, lengths),
        per_1k_ci95=(1000 * low, 1000 * high),
        counts={word: sum(counts[word] for counts in found) for word in words},
    )


def counted(text: str, words: Sequence[str]) -> dict[str, int]:
    """Occurrences of whole words, the longest phrase first where several begin at one place."""
    longest = sorted(words, key=len, reverse=True)
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest)) + r")(?!\w)", re.IGNORECASE)
    counts = dict.fromkeys(words, 0)
    known = {word.lower(): word for word in words}
    for said in pattern.findall(text):
        counts[known[said.lower()]] += 1
    return counts


def _of_groups(groups: Sequence[Group]) -> tuple[list[str], list[int], list[str]]:
    rows = [(r.text, len(r.completion_ids), g.problem.id or str(g.problem.prompt)) for g in groups for r in g.rollouts]
    texts, lengths, problems = zip(*rows, strict=True) if rows else ((), (), ())
    return list(texts), list(lengths), list(problems)


def _of_evaluation(evaluation: Evaluation) -> tuple[list[str], list[int], list[str]]:
    ids = evaluation.problem_ids or tuple(map(str, range(len(evaluation.texts))))
    problems = [problem for problem, texts in zip(ids, evaluation.texts, strict=True) for _ in texts]
    return [text for texts in evaluation.texts for text in texts], list(evaluation.lengths), problems


def table(result: Markers) -> list[tuple[str, ...]]:
    rows = [("texts", "number", "words", "a thousand tokens", "most frequent")]
    for r in (*result.rollouts, *result.evaluations):
        often = sorted((word for word in r.counts if r.counts[word]), key=lambda word: -r.counts[word])[:3]
        shown = ", ".join(f"{word} {r.counts[word]}" for word in often)
        low, high = r.per_1k_ci95
        rows.append((r.name, str(r.texts), str(r.total), f"{r.per_1k:.2f} [{low:.2f}, {high:.2f}]", shown))
    return rows


def picture(result: Markers, path: Path, *, title: str) -> None:
    """The rate over training with its interval, and on held-out problems."""
    drawn = [found for found in (result.rollouts, result.evaluations) if found]
    with panels(path, len(drawn), title=title) as axes:
        for axis, rates in zip(axes, drawn, strict=True):
            if rates is result.rollouts and len(rates) > 1:
                steps = [int(r.name.rsplit(" ", 1)[1]) for r in rates]
                axis.plot(steps, [r.per_1k for r in rates], marker="o")
                axis.fill_between(steps, [r.per_1k_ci95[0] for r in rates], [r.per_1k_ci95[1] for r in rates], alpha=0.2)
                axis.set(title="training rollouts", xlabel="step", ylabel="words a thousand tokens")
                axis.set_ylim(bottom=0)
                axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
            else:
                bars(axis, {r.name: r.per_1k for r in rates}, errors={r.name: r.per_1k_ci95 for r in rates}, form="{:.2f}")
                axis.set(title="training rollouts" if rates is result.rollouts else "held-out problems", xlabel="words a thousand tokens")
