"""Pictures of diagnostics in one style, whole or not there; and figures as JSON that any reader takes."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

GUIDE = {"color": "gray", "linewidth": 1, "linestyle": ":"}
"""Lines that are no data."""


@contextmanager
def panels(path: Path, count: int, *, title: str, widths: Sequence[float] | None = None) -> Iterator[list[Axes]]:
    """`count` axes side by side, written to `path` at the end."""
    figure, axes = plt.subplots(1, count, figsize=(max(4.9 * count, 6.5), 4.2), layout="constrained", width_ratios=widths, squeeze=False)
    try:
        yield list(axes[0])
        for axis in axes[0]:
            axis.grid(alpha=0.3)
            axis.set_axisbelow(True)
        figure.suptitle(title)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(partial := path.with_name(path.name + ".partial"), dpi=110, format="png")
        os.replace(partial, path)
    finally:
        plt.close(figure)


def bars(axis: Axes, values: Mapping[str, float], *, errors: Mapping[str, tuple[float, float]] | None = None, form: str = "{:.3g}") -> None:
    """Horizontal bars from the top down, each with its number; `errors` are intervals."""
    names = list(values)
    heights = [values[name] for name in names]
    axis.barh(names, heights, color="C0", alpha=0.8)
    if errors:
        spans = [[abs(values[n] - errors[n][side]) for n in names] for side in (0, 1)]
        axis.errorbar(heights, names, xerr=spans, fmt="none", ecolor="black", capsize=3)
    for name, value in values.items():
        end = max(value, errors[name][1] if errors else value, 0)
        axis.annotate(form.format(value), (end, name), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    axis.margins(x=0.2)
    axis.invert_yaxis()


def plain(value: Any) -> Any:
    """Dataclasses, tuples and numbers as JSON holds them; a number that is none is null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
