"""Pictures of a run, drawn from what it left on disk."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator, PercentFormatter

from selfdistill.atomic import parsed
from selfdistill.compare import Row
from selfdistill.evaluate import Evaluation

Series = Mapping[str, str]
PANELS: tuple[tuple[str, str, Series], ...] = (
    ("training reward", "mean reward of the step's rollouts", {"reward": "reward"}),
    ("entropy", "nats a token", {"entropy": "student", "target_entropy": "target"}),
    ("completion length", "tokens a rollout", {"mean_length": "mean length"}),
    ("rollouts", "share of the step's rollouts", {"truncated": "truncated", "taught_share": "taught"}),
    ("divergence from the target", "nats a taught token", {"divergence": "divergence"}),
)
"""Title, unit of the axis, and metrics with the names their lines bear."""
FEW = 30
"""Points that are marked each: more would be a thick line, one alone would be nothing without."""
MARGIN = 0.03
"""Of accuracy, around what the picture of two models holds: as wide as high, since a point on either axis is a point."""
OF_THE_TEACHER = ("target_entropy", "divergence")
"""Say nothing of a step without taught rollouts."""


def learning_curve(run: Path, *, title: str) -> Path | None:
    """run/learning_curve.png: accuracy on held-out problems, then reward, entropies, length, shares and divergence by step."""
    path = run / "metrics.jsonl"
    rows = [parsed(line, path) for line in path.read_text().splitlines()] if path.exists() else []
    if not rows:
        return None
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.2), layout="constrained")
    _accuracy(axes.flat[0], run)
    for axis, (name, unit, series) in zip(axes.flat[1:], PANELS, strict=True):
        _lines(axis, rows, series)
        axis.set(title=name, ylabel=unit)
    for axis in axes.flat:
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axis.grid(alpha=0.3)
    axes.flat[4].yaxis.set_major_formatter(PercentFormatter(1))
    figure.suptitle(title)
    return _saved(figure, run / "learning_curve.png")


def pareto(models: Sequence[tuple[Evaluation, Evaluation]], picture: Path, *, title: str) -> Path | None:
    """Accuracy on one domain against the other, an arrow from base to trained for each model; None where the problems are not of two domains."""
    if not models or len(models[0][0].by_domain) != 2:
        return None
    figure, axis = plt.subplots(figsize=(6.4, 6), layout="constrained")
    reach = [[bound for pair in models for e in pair for bound in [*e.by_domain.values()][i].ci95] for i in (0, 1)]
    span = 2 * MARGIN + max(max(bounds) - min(bounds) for bounds in reach)
    # an axis that would leave 100 % ends there
    lows = [min(min(bounds), 1 - span + 2 * MARGIN) - MARGIN for bounds in reach]
    for i, (pair, name) in enumerate(zip(models, ("model", "peer"), strict=True)):
        drawn = [[(e.avg_at_k, e.avg_at_k - e.ci95[0], e.ci95[1] - e.avg_at_k) for e in evaluation.by_domain.values()] for evaluation in pair]
        for ((x, *across), (y, *along)), when, filled in zip(drawn, ("base", "trained"), ("none", "full"), strict=True):
            errors: dict[str, Any] = {"xerr": [[e] for e in across], "yerr": [[e] for e in along]}
            axis.errorbar(x, y, **errors, marker="os"[i], color=f"C{i}", fillstyle=filled, capsize=3, linestyle="none", label=f"{name}, {when}")
        ends = [(domains[0][0], domains[1][0]) for domains in drawn]
        axis.annotate("", xy=ends[1], xytext=ends[0], arrowprops={"arrowstyle": "->", "color": f"C{i}"})
    one, other = models[0][0].by_domain
    axis.set(title=title, xlabel=f"accuracy on {one}, 95 % interval over problems", ylabel=f"accuracy on {other}", aspect="equal")
    axis.set(xlim=(lows[0], lows[0] + span), ylim=(lows[1], lows[1] + span))
    for direction in (axis.xaxis, axis.yaxis):
        direction.set_major_formatter(PercentFormatter(1))
    axis.grid(alpha=0.3)
    axis.legend(framealpha=0.7)
    return _saved(figure, picture)


def gains(rows: Sequence[Row], picture: Path, *, title: str) -> Path:
    """Gain over the base by method: the mean with its interval, every seed as a dot, controls in grey below their method."""
    ordered = [row for row in rows if row.gain]
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.32 * len(ordered)), layout="constrained")
    for place, row in enumerate(ordered):
        assert row.gain
        color, (low, high) = ("gray" if row.control_of else "tab:blue"), row.gain.ci95
        axis.errorbar(100 * row.gain.mean, place, xerr=[[100 * (row.gain.mean - low)], [100 * (high - row.gain.mean)]], fmt="o", color=color, capsize=3)
        axis.scatter([100 * gain for gain in row.gains.values()], [place] * len(row.gains), s=9, color="black", alpha=0.5, zorder=3)
    axis.set_yticks(range(len(ordered)), [("↳ " if row.control_of else "") + row.name for row in ordered])
    axis.set_ylim(len(ordered) - 0.4, -0.6)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(xlabel="points of avg@k over the base; 95 % intervals, a dot a seed; controls in grey", title=title)
    axis.grid(axis="x", alpha=0.3)
    return _saved(figure, picture)


def _saved(figure: Any, picture: Path) -> Path:
    """The picture, whole or not at all."""
    figure.savefig(partial := picture.with_suffix(".partial"), dpi=110, format="png")
    os.replace(partial, picture)
    plt.close(figure)
    return picture


def _lines(axis: Any, rows: Sequence[Mapping[str, float]], series: Series) -> None:
    """One line a metric, labelled where there are several; a method without a teacher has no divergence to draw."""
    drawn = {name: [(row["step"], row[name]) for row in rows if name in row and (row["taught_share"] or name not in OF_THE_TEACHER)] for name in series}
    drawn = {name: points for name, points in drawn.items() if points}
    for name, points in drawn.items():
        axis.plot(*zip(*points, strict=True), label=series[name], marker="o" if len(points) <= FEW else None)
    if len(drawn) > 1:
        axis.legend(framealpha=0.7)
    if not drawn:
        axis.text(0.5, 0.5, "not part of this method", ha="center", va="center", transform=axis.transAxes, color="gray")


def _accuracy(axis: Any, run: Path) -> None:
    """Every evaluation of the run with its 95 % interval over problems."""
    found = [_point(path) for path in sorted((run / "evaluations").glob("step_*.json"))]
    if found:
        steps, means, lows, highs = zip(*found, strict=True)
        errors: Sequence[Any] = [[m - low for m, low in zip(means, lows, strict=True)], [h - m for m, h in zip(means, highs, strict=True)]]
        axis.errorbar(steps, means, yerr=errors, marker="o", capsize=4)
        for i, side in ((0, "left"), (-1, "right")):
            axis.annotate(f"{means[i]:.1%}", (steps[i], means[i]), textcoords="offset points", xytext=(7 if side == "left" else -7, 6), ha=side)
    else:
        axis.text(0.5, 0.5, "not evaluated", ha="center", va="center", transform=axis.transAxes, color="gray")
    axis.set(title="accuracy on held-out problems", ylabel="avg@k, 95 % interval over problems")
    axis.yaxis.set_major_formatter(PercentFormatter(1))


def _point(path: Path) -> tuple[int, float, float, float]:
    evaluation = Evaluation.from_json(parsed(path.read_text(), path))
    return int(path.stem.split("_")[1]), evaluation.avg_at_k, *evaluation.ci95
