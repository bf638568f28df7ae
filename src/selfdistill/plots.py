"""Pictures of a run, drawn from what it left on disk."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

PANELS = (
    ("reward", "mean reward of the step's rollouts", ("reward",)),
    ("entropy", "nats a token", ("entropy", "target_entropy")),
    ("length", "tokens a rollout", ("mean_length",)),
    ("shares", "share of rollouts", ("truncated", "taught_share")),
    ("divergence", "nats a taught token", ("divergence",)),
)


def learning_curve(run: Path) -> Path | None:
    """run/learning_curve.png: accuracy on held-out problems, then reward, entropies, length, shares and divergence by step."""
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not rows:
        return None
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    _accuracy(axes.flat[0], run)
    for axis, (title, unit, names) in zip(axes.flat[1:], PANELS, strict=True):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            axis.plot(*zip(*points, strict=True), label=name.replace("_", " "))
        axis.set(title=title, xlabel="step", ylabel=unit)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.suptitle(run.name)
    figure.savefig(run / "learning_curve.png", dpi=110)
    plt.close(figure)
    return run / "learning_curve.png"


def _accuracy(axis: Any, run: Path) -> None:
    """Every evaluation of the run with its 95 % interval over problems."""
    found = [_point(path) for path in sorted((run / "evaluations").glob("step_*.json"))]
    if found:
        steps, means, lows, highs = zip(*found, strict=True)
        errors: Sequence[Any] = [[m - low for m, low in zip(means, lows, strict=True)], [h - m for m, h in zip(means, highs, strict=True)]]
        axis.errorbar(steps, means, yerr=errors, marker="o", capsize=4)
    axis.set(title="held-out accuracy", xlabel="step", ylabel="avg@k, 95 % interval over problems")
    axis.grid(alpha=0.3)


def _point(path: Path) -> tuple[int, float, float, float]:
    from selfdistill.evaluate import Evaluation

    evaluation = Evaluation.from_json(json.loads(path.read_text()))
    return int(path.stem.split("_")[1]), evaluation.avg_at_k, *evaluation.ci95
