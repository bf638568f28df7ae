"""Two models in lockstep, by domain: run folders in, a table out, base and trained side by side.

python benchmarks/pair.py runs/opcod runs/alone
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MEASURED = ("admitted_share", "break_rate_admitted", "break_rate_excluded")


def rows(run: Path) -> list[str]:
    """A line for the model and one for its peer."""
    found = []
    for folder, who in ((run, "model"), (run / "peer", "peer")):
        summary = json.loads((folder / "summary.json").read_text())
        steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        cells = [_cell(figures) for figures in summary["domains"].values()] + [_mean(steps, name) for name in MEASURED]
        found.append(f"| `{run.name}` | {who} | " + " | ".join(cells) + " |")
    return found


def _cell(figures: Mapping[str, Any]) -> str:
    low, high = (100 * x for x in figures["difference_ci95"])
    before, after = figures["base"]["avg_at_k"], figures["trained"]["avg_at_k"]
    return f"{before:.1%} → {after:.1%}, {100 * figures['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"


def _mean(steps: Sequence[Mapping[str, float]], name: str) -> str:
    values = [step[name] for step in steps if name in step]
    return f"{sum(values) / len(values):.0%}" if values else ""


def main(runs: Sequence[str]) -> None:
    domains = json.loads((Path(runs[0]) / "summary.json").read_text())["domains"]
    print("| run | | " + " | ".join([*(f"on {name}" for name in domains), "admitted", "breaks, admitted", "breaks, excluded"]) + " |")
    print("|" + "---|" * (len(domains) + 5))
    for run in runs:
        print("\n".join(rows(Path(run))))


if __name__ == "__main__":
    main(sys.argv[1:])
