"""What each context is worth before training: the accuracy under a teacher's prompt minus that under the student's, on the same problems."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from scipy.stats import spearmanr

from selfdistill.api import Assembled, make_eval_sampler
from selfdistill.config import Settings
from selfdistill.diagnostics.drawing import GUIDE, bars, panels
from selfdistill.evaluate import interval
from selfdistill.types import Group, Rollout, View, Weights

Scores = dict[str, list[float]]
"""Rewards of 1 or 0 by problem."""


@dataclass(frozen=True, kw_only=True)
class ContextGap:
    """One context, on the problems for which it has something to show."""

    name: str
    problems: int
    without: float
    """Accuracy of the student's own prompt."""
    under: float
    """Accuracy of the teacher's prompts, read by the teacher's weights."""
    difference: float
    difference_ci95: tuple[float, float]
    """Paired percentile bootstrap over problems."""
    gain: float | None
    """avg@k that a run of this method gained, where one is given."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    samples: int
    """Completions a problem and prompt."""
    contexts: tuple[ContextGap, ...]
    spearman: float | None
    """Rank correlation of difference and gain over the runs that are given; None below 3."""


def gap(without: Scores, under: Mapping[str, Scores], *, samples: int, gains: Mapping[str, float]) -> Gap:
    """Differences by context. Raises ValueError without a context, or on one that no problem has."""
    if not under:
        raise ValueError("none of the problems has a context of any kind, so there is no gap to measure; choose other --steps")
    contexts = tuple(_context(name, without, scores, gains.get(name)) for name, scores in under.items())
    known = [(c.difference, c.gain) for c in contexts if c.gain is not None]
    found: Any = spearmanr([difference for difference, _ in known], [gain for _, gain in known]) if len(known) > 2 else None
    return Gap(samples=samples, contexts=contexts, spearman=found and float(found.statistic))


def _context(name: str, without: Scores, under: Scores, gain: float | None) -> ContextGap:
    shared = [problem for problem in under if problem in without]
    if not shared:
        raise ValueError(f"no rollout has a context of {name!r}, so there is no gap to measure; choose another --method, --context or --steps")
    plain, told = ([float(numpy.mean(scores[p])) for p in shared] for scores in (without, under))
    differences = [t - p for t, p in zip(told, plain, strict=True)]
    return ContextGap(
        name=name,
        problems=len(shared),
        without=float(numpy.mean(plain)),
        under=float(numpy.mean(told)),
        difference=float(numpy.mean(differences)),
        difference_ci95=interval(differences),
        gain=gain,
    )


def accuracy_without(
    parts: Assembled, groups: Sequence[Group], settings: Settings, *, samples: int, on_progress: Callable[[int, int], None] | None = None
) -> Scores:
    """The student on every group's problem, decoded as in evaluations; `on_progress` is called with (texts written, all of them)."""
    asked = [(group, group.rollouts[0].prompt_ids) for group in groups for _ in range(samples)]
    return _graded(parts, asked, make_eval_sampler(parts.policy, settings, on_progress=on_progress).complete([ids for _, ids in asked]))


def accuracy_under(
    parts: Assembled, groups: Sequence[Group], settings: Settings, *, samples: int, on_progress: Callable[[int, int], None] | None = None
) -> Scores:
    """The teacher's prompts of each group's first `samples` rollouts, one completion a prompt, written by the weights that read it.

    Of a view with several roles "teacher" is meant. A rollout that is not taught has no prompt.
    """
    found = [(g, t.views["teacher"]) for g in groups for r in g.rollouts[:samples] for t in parts.method.context(r, g) if "teacher" in t.views]
    scores: Scores = {}
    named: list[Weights] = sorted({view.weights for _, view in found})
    for weights in named:
        asked = [(g, _ids(parts, view)) for g, view in found if view.weights == weights]
        with parts.trainer.readers[weights].reading() as policy:
            written = make_eval_sampler(policy, settings, on_progress=on_progress).complete([ids for _, ids in asked])
        scores |= _graded(parts, asked, written)
    return scores


def _ids(parts: Assembled, view: View) -> list[int]:
    return list(view.prompt_ids) if view.prompt_ids is not None else parts.policy.chat.encode(view.messages, view.thinking)


def _graded(parts: Assembled, asked: Sequence[tuple[Group, list[int]]], written: Sequence[Rollout]) -> Scores:
    groups = [Group(problem=group.problem, rollouts=[rollout]) for (group, _), rollout in zip(asked, written, strict=True)]
    parts.trainer.grade(groups)
    scores: Scores = {}
    for group in groups:
        scores.setdefault(group.problem.id or str(group.problem.prompt), []).append(float((group.rollouts[0].reward or 0) >= 1))
    return scores


def table(result: Gap) -> list[tuple[str, ...]]:
    gained = any(c.gain is not None for c in result.contexts)
    rows: list[tuple[str, ...]] = [("context", "problems", "without", "with", "gap, points", *(["its run's gain"] if gained else []))]
    for c in result.contexts:
        low, high = c.difference_ci95
        gain = "" if c.gain is None else f"{100 * c.gain:+.1f}"
        gap = f"{100 * c.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        rows.append((c.name, str(c.problems), f"{c.without:.1%}", f"{c.under:.1%}", gap, *([gain] if gained else [])))
    return rows if result.spearman is None else [*rows, ("rank correlation of gap and gain", "", "", "", "", f"{result.spearman:+.2f}")]


def picture(result: Gap, path: Path, *, title: str) -> None:
    """Gaps with their intervals; beside them gap against gain where runs are given."""
    known = [c for c in result.contexts if c.gain is not None]
    with panels(path, 2 if known else 1, title=title) as axes:
        values = {c.name: 100 * c.difference for c in result.contexts}
        errors = {c.name: (100 * c.difference_ci95[0], 100 * c.difference_ci95[1]) for c in result.contexts}
        bars(axes[0], values, errors=errors, form="{:+.1f}")
        axes[0].axvline(0, **GUIDE)
        axes[0].set(title="accuracy with the context minus without", xlabel="points")
        if known:
            for c in known:
                axes[1].scatter(100 * c.difference, 100 * (c.gain or 0), label=c.name)
            axes[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
            rank = "" if result.spearman is None else f", rank correlation {result.spearman:+.2f}"
            axes[1].set(title=f"what training made of it{rank}", xlabel="gap, points", ylabel="gain of the run, points")
