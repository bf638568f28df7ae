"""Finished runs side by side: what each gained over its base, with the null control of those that have one.

python benchmarks/table.py RUN[:CONTROL] ...   prints the table of docs/results.md, best first
"""

import json
import sys
from pathlib import Path

from seeds import last_evaluation

from selfdistill.evaluate import compare


def points(difference: float, interval: tuple[float, float] | list[float]) -> str:
    return f"{100 * difference:+.1f} [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"


def row(run: Path, control: Path | None) -> tuple[float, str]:
    """The gain to sort by, and the line."""
    own = json.loads((run / "summary.json").read_text())
    trained = own["trained"]
    cells = [f"`{run.name}`", f"{trained['avg_at_k']:.1%}", points(own["difference"], own["difference_ci95"])]
    if control:
        beside = compare(last_evaluation(control), last_evaluation(run))
        cells += [f"{100 * json.loads((control / 'summary.json').read_text())['difference']:+.1f}", points(beside.difference, beside.difference_ci95)]
    else:
        cells += ["", ""]
    cells += [f"{trained['pass_at_k']:.1%}", f"{trained['truncated']:.1%}", f"{trained['mean_length']:.1f}", f"{own['rescued']}, {own['broken']}"]
    return own["difference"], f"| {' | '.join(cells)} |"


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    pairs = [argument.partition(":") for argument in sys.argv[1:]]
    rows = [row(Path(run), Path(control) if control else None) for run, _, control in pairs]
    print("| run | trained | gain, points | control's gain | over the control | pass@8 | truncated | tokens | problems rescued, broken |")
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(line for _, line in sorted(rows, reverse=True)))


if __name__ == "__main__":
    main()
