"""Whether a high loss means another way on: probed positions with both windows in, loss beside transport distance out (TOPD, 2606.00305)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from scipy.stats import pearsonr

from selfdistill.diagnostics.drawing import panels
from selfdistill.method import Method
from selfdistill.windows import Probed, TransportWindows

KINDS = ("high", "random", "low")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A position of a rollout from which student and teacher both wrote on."""

    kind: str
    """high, random or low, by its loss among all positions."""
    position: int
    loss: float
    """Nats."""
    distance: float
    """D_OT, from 0 to 2."""


@dataclass(frozen=True, kw_only=True)
class KindOfProbe:
    kind: str
    probes: int
    loss: float
    """Median, nats."""
    distance: float
    """Median of D_OT."""


@dataclass(frozen=True, kw_only=True)
class TransportResult:
    kinds: tuple[KindOfProbe, ...]
    threshold: float
    """The quantile of D_OT at low-loss probes above which a probe counts as diverging."""
    false_alarms: float
    """Share of high-loss probes at or below it: both would go on alike."""
    pearson: float | None
    """Of loss and D_OT over all probes; None where one of them is constant."""
    probes: tuple[Probe, ...]


def stage_of(method: Method) -> TransportWindows:
    """The stage that writes windows. Raises ValueError for a method without one."""
    found = next((stage for stage in method.feedback if isinstance(stage, TransportWindows)), None)
    if found is None:
        raise ValueError("this method writes no windows, so there is no transport to measure; choose --method topd_self, or topd in a run of it")
    return found


def transport(probed: Sequence[Probed], *, quantile: float) -> TransportResult:
    """Raises ValueError where nothing was probed."""
    if not probed:
        raise ValueError("no rollout is taught, so no position was probed; choose other --steps or another --method")
    probes = tuple(Probe(kind=p.kind, position=p.position, loss=p.divergence, distance=p.distance) for p in probed)
    of_kind = {kind: [p for p in probes if p.kind == kind] for kind in KINDS}
    threshold = float(numpy.quantile([p.distance for p in of_kind["low"]], quantile))
    losses, distances = [p.loss for p in probes], [p.distance for p in probes]
    constant = len(set(losses)) == 1 or len(set(distances)) == 1
    found: Any = None if constant else pearsonr(losses, distances)
    return TransportResult(
        kinds=tuple(_kind(kind, found) for kind, found in of_kind.items()),
        threshold=threshold,
        false_alarms=float(numpy.mean([p.distance <= threshold for p in of_kind["high"]])),
        pearson=found and float(found.statistic),
        probes=probes,
    )


def _kind(kind: str, probes: Sequence[Probe]) -> KindOfProbe:
    loss, distance = (float(numpy.median([getattr(p, name) for p in probes])) for name in ("loss", "distance"))
    return KindOfProbe(kind=kind, probes=len(probes), loss=loss, distance=distance)


def table(result: TransportResult) -> list[tuple[str, ...]]:
    rows = [("loss of the probe", "probes", "median loss, nats", "median D_OT")]
    rows += [(k.kind, str(k.probes), f"{k.loss:.3f}", f"{k.distance:.3f}") for k in result.kinds]
    pearson = "constant" if result.pearson is None else f"{result.pearson:+.3f}"
    rows += [("false alarms among high", "", "", f"{result.false_alarms:.1%}"), ("threshold of D_OT", "", "", f"{result.threshold:.3f}")]
    return [*rows, ("Pearson of loss and D_OT", "", "", pearson)]


def picture(result: TransportResult, path: Path, *, title: str) -> None:
    """Loss against distance, and the distances of each kind."""
    with panels(path, 2, title=title, widths=(1.4, 1)) as (scatter, boxes):
        # a loss of 0 has no logarithm, and what lies below rounding says nothing
        floor = 1e-6
        for i, kind in enumerate(KINDS):
            points = [(max(p.loss, floor), p.distance) for p in result.probes if p.kind == kind]
            scatter.scatter(*zip(*points, strict=True), s=12, alpha=0.5, color=f"C{i}", label="at random" if kind == "random" else f"{kind} loss")
        scatter.axhline(result.threshold, color="black", linewidth=1, linestyle="--", label="threshold")
        scatter.set(title=f"{result.false_alarms:.0%} of high-loss probes are false alarms", xscale="log", xlabel="loss, nats", ylabel="D_OT")
        scatter.legend(framealpha=0.7, fontsize=8, loc="upper center")
        boxes.boxplot([[p.distance for p in result.probes if p.kind == kind] for kind in KINDS], tick_labels=list(KINDS))
        boxes.axhline(result.threshold, color="black", linewidth=1, linestyle="--")
        boxes.set(title="transport distance by loss", ylabel="D_OT")
