"""Whether the student can carry on from what its teacher would have written: graded branches to what predicts that it can (PW-OPSD, 2605.21606).

Two controls beside the paper's test: the same draws without a forced token, and what the mere distance to the end would give.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from selfdistill.diagnostics.drawing import GUIDE, panels
from selfdistill.diagnostics.statistics import auroc, auroc_interval
from selfdistill.evaluate import interval

Array = numpy.ndarray
LOW, HIGH = 0.40, 0.75
"""Viability below which a child fails, and from which it succeeds (paper)."""
SIMULATIONS = 200
PREDICTORS = ("position", "teacher_entropy", "margin", "student_entropy", "kl")


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A position of a right rollout at which the teacher hesitates."""

    problem: str
    position: float
    """Share of the rollout's length that lies before it."""
    remaining: int
    """Tokens from here to the rollout's end."""
    teacher_entropy: float
    margin: float
    """Teacher's best minus second-best probability."""
    student_entropy: float
    kl: float
    """KL(T || S) in nats."""
    draws: int
    """Continuations a child."""
    forced: tuple[float, ...]
    """Viability of each child: the share of its continuations that are right."""
    unforced: tuple[float, ...]
    """The same number of draws from the prefix alone."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """How well something ranks branches of diversity above those of low viability."""

    name: str
    auroc: float
    ci95: tuple[float, float]
    """Percentile bootstrap over problems."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Branches by what became of their children."""

    low: int
    """All children below LOW."""
    diverse: int
    """At least two children at HIGH or above."""
    dropped: int
    mean: float
    """Mean viability."""
    predictions: tuple[Prediction, ...]


@dataclass(frozen=True, kw_only=True)
class Viability:
    branches: int
    problems: int
    forced: Labelled
    unforced: Labelled
    """The control: no token is forced."""
    difference: float
    """Mean viability forced minus unforced."""
    difference_ci95: tuple[float, float]
    """Percentile bootstrap over problems."""
    hazard: float
    """Of failing, a token: the horizon null's only parameter, fitted to the unforced draws."""
    horizon: float
    """AUROC of position where every continuation is right with probability exp(-hazard remaining), mean over simulations."""
    horizon_range: tuple[float, float]
    """95 % of the simulations."""


def verdict(children: Sequence[float]) -> bool | None:
    """True: diversity, at least two children >= 0.75; False: low viability, all children < 0.40; None: neither."""
    if all(child < LOW for child in children):
        return False
    return True if sum(child >= HIGH for child in children) >= 2 else None


def viability(branches: Sequence[Branch]) -> Viability:
    """[open] The positive class is diversity; predictors count as they are, larger first. Raises ValueError without a branch."""
    if not branches:
        raise ValueError("the teacher hesitates nowhere in the right rollouts, so nothing branches; choose other --steps or raise --problems")
    differences: dict[str, list[float]] = {}
    for b in branches:
        differences.setdefault(b.problem, []).append(float(numpy.mean(b.forced) - numpy.mean(b.unforced)))
    hazard = _hazard(branches)
    horizon, low, high = _horizon(branches, hazard)
    return Viability(
        branches=len(branches),
        problems=len(differences),
        forced=_labelled(branches, lambda b: b.forced),
        unforced=_labelled(branches, lambda b: b.unforced),
        difference=float(numpy.mean([numpy.mean(d) for d in differences.values()])),
        difference_ci95=interval([float(numpy.mean(d)) for d in differences.values()]),
        hazard=hazard,
        horizon=horizon,
        horizon_range=(low, high),
    )


def _labelled(branches: Sequence[Branch], children: Callable[[Branch], Sequence[float]]) -> Labelled:
    verdicts = [verdict(children(b)) for b in branches]
    kept = [(b, v) for b, v in zip(branches, verdicts, strict=True) if v is not None]
    positive, problems = numpy.array([v for _, v in kept], dtype=bool), [b.problem for b, _ in kept]
    columns = {name: numpy.array([float(getattr(b, name)) for b, _ in kept]) for name in PREDICTORS}
    return Labelled(
        low=sum(v is False for v in verdicts),
        diverse=sum(v is True for v in verdicts),
        dropped=sum(v is None for v in verdicts),
        mean=float(numpy.mean([numpy.mean(children(b)) for b in branches])),
        predictions=tuple(Prediction(name=n, auroc=auroc(x, positive), ci95=auroc_interval(x, positive, problems)) for n, x in columns.items()),
    )


def _hazard(branches: Sequence[Branch]) -> float:
    """The rate under which the unforced draws are likeliest."""
    remaining, right, drawn = _counts(branches)

    def loss(log_rate: float) -> float:
        chance = numpy.clip(numpy.exp(-numpy.exp(log_rate) * remaining), 1e-9, 1 - 1e-9)
        return -float(binom.logpmf(right, drawn, chance).sum())

    found: Any = minimize_scalar(loss, bounds=(-14, 2), method="bounded")
    return float(numpy.exp(found.x))


def _counts(branches: Sequence[Branch]) -> tuple[Float[Array, " branches"], Float[Array, " branches"], Float[Array, " branches"]]:
    """Tokens to go, right draws and all draws of every branch without a forced token."""
    rows = [(float(b.remaining), round(sum(b.unforced) * b.draws), float(b.draws * len(b.unforced))) for b in branches]
    remaining, right, drawn = numpy.array(rows, dtype=float).T
    return remaining, right, drawn


def _horizon(branches: Sequence[Branch], hazard: float) -> tuple[float, float, float]:
    """(mean, low, high) of position's AUROC where only the distance to the end decides."""
    rng, found = numpy.random.default_rng(0), []
    chance = numpy.exp(-hazard * numpy.array([b.remaining for b in branches]))
    position = numpy.array([b.position for b in branches])
    shape = (len(branches), len(branches[0].forced))
    for _ in range(SIMULATIONS):
        children = rng.binomial(branches[0].draws, chance[:, None], size=shape) / branches[0].draws
        verdicts = [verdict(row) for row in children.tolist()]
        kept = [i for i, v in enumerate(verdicts) if v is not None]
        found.append(auroc(position[kept], numpy.array([verdicts[i] for i in kept], dtype=bool)))
    real = [value for value in found if value == value]
    if not real:
        return float("nan"), float("nan"), float("nan")
    low, high = numpy.percentile(real, [2.5, 97.5])
    return float(numpy.mean(real)), float(low), float(high)


def table(result: Viability) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("AUROC of", "forced", "unforced control")]
    for one, other in zip(result.forced.predictions, result.unforced.predictions, strict=True):
        rows.append((one.name, *(f"{p.auroc:.2f} [{p.ci95[0]:.2f}, {p.ci95[1]:.2f}]" for p in (one, other))))
    rows.append(("position, horizon null", f"{result.horizon:.2f} [{result.horizon_range[0]:.2f}, {result.horizon_range[1]:.2f}]", ""))
    for name in ("low", "diverse", "dropped"):
        rows.append((f"{name} branches", str(getattr(result.forced, name)), str(getattr(result.unforced, name))))
    low, high = result.difference_ci95
    rows.append(("mean viability", f"{result.forced.mean:.3f}", f"{result.unforced.mean:.3f}"))
    return [*rows, ("forced minus unforced, by problem", f"{result.difference:+.3f} [{low:+.3f}, {high:+.3f}]", "")]


def picture(result: Viability, path: Path, *, title: str) -> None:
    """AUROCs of both labellings with the horizon null, and what became of the branches."""
    groups: Mapping[str, Labelled] = {"forced": result.forced, "unforced control": result.unforced}
    with panels(path, 2, title=title, widths=(1.5, 1)) as (rocs, counts):
        for shift, (name, labelled) in zip((-0.12, 0.12), groups.items(), strict=True):
            for i, p in enumerate(labelled.predictions):
                color = f"C{list(groups).index(name)}"
                rocs.plot(p.auroc, i + shift, "o", color=color, label=name if i == 0 else None)
                rocs.plot(p.ci95, [i + shift] * 2, color=color, linewidth=1.5)
        rocs.axvline(0.5, **GUIDE)
        rocs.plot(result.horizon, 0.33, "kx", label="horizon null")
        rocs.plot(result.horizon_range, [0.33, 0.33], color="black", linewidth=1)
        rocs.set_yticks(range(len(PREDICTORS)), [name.replace("_", " ") for name in PREDICTORS])
        rocs.set(title="AUROC: diversity above low viability", xlim=(-0.03, 1.03))
        rocs.invert_yaxis()
        rocs.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncol=3)
        kinds = ("low", "diverse", "dropped")
        for shift, (name, labelled) in zip((-0.2, 0.2), groups.items(), strict=True):
            drawn = counts.bar([i + shift for i in range(3)], [getattr(labelled, kind) for kind in kinds], width=0.38, label=name, alpha=0.8)
            counts.bar_label(drawn, fontsize=9)
        counts.set_xticks(range(3), kinds)
        counts.set(title=f"{result.branches} branches of {result.problems} problems", ylabel="branches")
        counts.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncol=2)
