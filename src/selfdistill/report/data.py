"""Runs as a page shows them: folders in, plain JSON-able values out. The browser formats, sorts and draws; every figure is computed here."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import selfdistill
from selfdistill.config import INCIDENTAL, Settings
from selfdistill.errors import sentence
from selfdistill.evaluate import Evaluation, compare
from selfdistill.report.selection import Selection
from selfdistill.runs import SavedRun, open_run

PANELS = (
    ("reward", "mean over a step's rollouts", "reward"),
    ("divergence from the target", "nats a taught token", "divergence"),
    ("entropy of the student", "nats a token", "entropy"),
    ("entropy of the target", "nats a taught token", "target_entropy"),
    ("completion length", "tokens", "mean_length"),
    ("truncated", "share of rollouts", "truncated"),
    ("taught", "share of rollouts", "taught_share"),
    ("groups with contrast", "share of problems", "mixed_groups_share"),
    ("KL to the start", "nats a token", "reference_kl"),
    ("gradient norm", "before clipping", "grad_norm"),
)
"""Title, unit and metric; a panel whose numbers no run has, or all are 0, is not drawn. Other metrics are drawn when asked for."""
OF_THE_TEACHER = ("target_entropy", "divergence", "log_ratio")
"""Say nothing of a step without taught rollouts."""
APART = ("seed", *INCIDENTAL)
"""Settings in which runs of one experiment differ."""


def page_model(folders: Sequence[Path], selection: Selection, *, colourless: str | None = None, following: bool = False) -> dict[str, Any]:
    """Everything on the page. `colourless` says why tokens are not read again, None where they are. Raises ValueError where a folder is no whole run."""
    from selfdistill.report.tokens import token_view

    if not folders:
        raise ValueError("give the folder of a run, or several: selfdistill report runs/quickstart")
    runs = [open_run(folder) for folder in folders]
    names = short_names(folders)
    groups = _groups([run.settings for run in runs])
    share = replace(selection, tokens=selection.tokens // len(runs))
    shown = [_run(run, name, group) | {"tokens": token_view(run, share, colourless=colourless)} for run, name, group in zip(runs, names, groups, strict=True)]
    panels = [{"title": title, "unit": unit, "key": key} for title, unit, key in PANELS]
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return {"version": selfdistill.__version__, "made": made, "following": following, "panels": panels, "runs": shown}


def finished(run: SavedRun) -> bool:
    """All steps are done, and measured where the run measures its end."""
    steps = run.metrics[-1]["step"] if run.metrics else 0
    return steps >= run.settings.steps and (not run.settings.eval.at_end or (run.folder / "summary.json").exists())


def short_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    for length in range(1, max(len(f.resolve().parts) for f in folders) + 1):
        names = ["/".join(f.resolve().parts[-length:]) for f in folders]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"{folders[0]} is given twice; name each run once")


def _run(run: SavedRun, name: str, group: str) -> dict[str, Any]:
    settings = run.settings
    return {
        "name": name,
        "group": group,
        "method": settings.method.name,
        "task": settings.task.name,
        "seed": settings.seed,
        "steps": int(run.metrics[-1]["step"]),
        "planned": settings.steps,
        "finished": finished(run),
        "figures": _figures(run),
        "accuracy": [_accuracy(step, evaluation) for step, evaluation in sorted(run.evaluations.items())],
        "metrics": _columns(run.metrics),
        "settings": _flat(settings.model_dump(mode="json")),
        **_parts(settings),
    }


def _figures(run: SavedRun) -> dict[str, Any]:
    """The run's row in the comparison: its last evaluation beside that of its base; None where it was not measured."""
    seconds = sum(row.get("seconds", 0.0) for row in run.metrics)
    found: dict[str, Any] = {"seconds": seconds, "reward": _finite(run.metrics[-1].get("reward"))}
    if not run.evaluations:
        return found
    last = max(run.evaluations)
    base, trained = run.evaluations.get(0), run.evaluations[last]
    found |= {"k": len(trained.scores[0]), "problems": len(trained.scores), "at": last}
    found |= {"base": base.figures()} if base else {}
    if not last or base is None:
        return found
    found |= {"trained": trained.figures()}
    try:
        comparison = compare(base, trained)
    except ValueError as error:
        # a resumed run may be measured otherwise than it was before
        return found | {"unpaired": str(error)}
    return found | {
        "gain": comparison.difference,
        "gain_ci95": list(comparison.difference_ci95),
        "rescued": comparison.rescued,
        "broken": comparison.broken,
    }


def _accuracy(step: int, evaluation: Evaluation) -> dict[str, float]:
    low, high = evaluation.ci95
    return {"step": step, "value": evaluation.avg_at_k, "low": low, "high": high}


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Metrics by name, one number a step; None where a step has none, is not finite, or has no taught rollout to speak of."""
    names = dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, int | float))
    return {name: [None if _untaught(row, name) else _finite(row.get(name)) for row in rows] for name in names}


def _untaught(row: Mapping[str, Any], name: str) -> bool:
    return name in OF_THE_TEACHER and not row.get("taught_share")


def _finite(value: float | None) -> float | None:
    """Five digits are more than a plot shows."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def _parts(settings: Settings) -> dict[str, Any]:
    """The method's parts, or why they are not known: a user's own method may be gone."""
    from selfdistill.method import describe
    from selfdistill.method_names import build_method

    try:
        method = build_method(settings.method.name, settings.method.arguments, max_completion_length=settings.sampling.max_completion_length)
    except (ValueError, OSError, ImportError) as error:
        return {"parts": {}, "parts_note": sentence(error) or str(error)}
    return {"parts": describe(method), "parts_note": None}


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings by their dotted names, as text."""
    found: dict[str, str] = {}
    for key, value in data.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else None
        found |= inner if inner is not None else {prefix + key: value if isinstance(value, str) else json.dumps(value)}
    return found


def _groups(settings: Sequence[Settings]) -> list[str]:
    """A name for each run's experiment, shared by runs that differ in seed alone: its method, and what else sets it apart from others of that method."""
    flat = [{k: v for k, v in _flat(s.model_dump(mode="json")).items() if k not in APART} for s in settings]
    names = []
    for one, own in zip(settings, flat, strict=True):
        alike = [other for s, other in zip(settings, flat, strict=True) if s.method.name == one.method.name]
        keys = sorted({k for other in alike for k in other})
        apart = [k for k in keys if len({other.get(k) for other in alike}) > 1]
        names.append(", ".join([one.method.name, *(f"{k.removeprefix('method.')} = {own.get(k, 'not set')}" for k in apart)]))
    return names
