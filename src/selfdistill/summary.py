"""The result of a run as one small file: base and trained model on the same held-out problems, and what it took."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfdistill.atomic import write_whole
from selfdistill.config import Settings
from selfdistill.evaluate import Evaluation, compare


def summarize(settings: Settings, base: Evaluation, trained: Evaluation, *, seconds: Mapping[str, float], path: Path) -> dict[str, Any]:
    """Writes summary.json whole or not at all, and returns it. Seconds of the installation come from SELFDISTILL_INSTALL_SECONDS."""
    comparison = compare(base, trained)
    summary = {
        "method": settings.method.name,
        "task": settings.task.name,
        "num_problems": len(base.scores),
        "num_samples": len(base.scores[0]),
        "base": rounded(base.figures()),
        "trained": rounded(trained.figures()),
        "difference": rounded(comparison.difference),
        "difference_ci95": rounded(comparison.difference_ci95),
        "seconds": {"install": _install_seconds()} | {name: round(value, 1) for name, value in seconds.items()},
        "rescued": comparison.rescued,
        "broken": comparison.broken,
        "majority_rescued": comparison.majority_rescued,
        "majority_broken": comparison.majority_broken,
        "mcnemar_p": comparison.mcnemar_p,
        "truncated_difference_ci95": rounded(comparison.truncated_difference_ci95),
        "domains": {name: _beside(own, trained.by_domain[name]) for name, own in base.by_domain.items()},
        "settings": settings.model_dump(),
    }
    write_whole(path, json.dumps(summary, indent=2) + "\n")
    return summary


def _install_seconds() -> float | None:
    """What `make setup` measured; None where it did not, or left anything but a number."""
    given = os.environ.get("SELFDISTILL_INSTALL_SECONDS", "").strip()
    return float(given) if re.fullmatch(r"\d+(\.\d+)?", given) else None


def _beside(base: Evaluation, trained: Evaluation) -> dict[str, Any]:
    """Both models on the problems of one domain."""
    comparison = compare(base, trained)
    difference = {"difference": rounded(comparison.difference), "difference_ci95": rounded(comparison.difference_ci95)}
    return {"num_problems": len(base.scores), "base": rounded(base.figures()), "trained": rounded(trained.figures())} | difference


def rounded(value: Any) -> Any:
    """Numbers, also inside, to the four digits that summary.json shows."""
    if isinstance(value, Mapping):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value
