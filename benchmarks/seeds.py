"""Runs beside their null controls, seed by seed: each gain over the base, and the paired difference of the two trained models.

python benchmarks/seeds.py RUN:CONTROL [RUN:CONTROL ...]   prints the table of docs/results.md and writes benchmarks/out/seeds.json
"""

import json
import sys
from pathlib import Path

from selfdistill.evaluate import Evaluation, compare


def last_evaluation(run: Path) -> Evaluation:
    """What the run's trained model scored."""
    return Evaluation.from_json(json.loads(max((run / "evaluations").glob("step_*.json")).read_text()))


def row(run: Path, control: Path) -> dict[str, object]:
    """One seed's figures, in points."""
    own, null = (json.loads((folder / "summary.json").read_text()) for folder in (run, control))
    beside = compare(last_evaluation(control), last_evaluation(run))
    return {
        "seed": own["settings"]["seed"],
        "base": own["base"]["avg_at_k"],
        "trained": own["trained"]["avg_at_k"],
        "gain": own["difference"],
        "gain_ci95": own["difference_ci95"],
        "pass_at_k": [own["base"]["pass_at_k"], own["trained"]["pass_at_k"]],
        "truncated": [own["base"]["truncated"], own["trained"]["truncated"]],
        "length": [own["base"]["mean_length"], own["trained"]["mean_length"]],
        "control_gain": null["difference"],
        "over_control": beside.difference,
        "over_control_ci95": list(beside.difference_ci95),
        "seconds": own["seconds"],
    }


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    rows = [row(*(Path(part) for part in pair.split(":"))) for pair in sys.argv[1:]]
    print("| seed | base | trained | gain, points | control's gain | over the control | pass@8 | truncated | tokens |")
    print("|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        gain, over = r["gain_ci95"], r["over_control_ci95"]
        print(
            f"| {r['seed']} | {r['base']:.1%} | {r['trained']:.1%} | {100 * r['gain']:+.1f} [{100 * gain[0]:+.1f}, {100 * gain[1]:+.1f}] "
            f"| {100 * r['control_gain']:+.1f} | {100 * r['over_control']:+.1f} [{100 * over[0]:+.1f}, {100 * over[1]:+.1f}] "
            f"| {r['pass_at_k'][0]:.1%} → {r['pass_at_k'][1]:.1%} | {r['truncated'][0]:.1%} → {r['truncated'][1]:.1%} "
            f"| {r['length'][0]:.1f} → {r['length'][1]:.1f} |"
        )
    out = Path(__file__).parent / "out" / "seeds.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
