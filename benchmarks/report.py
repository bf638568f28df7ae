"""How large the report of a long run is and how fast it opens: 200 steps, 2,000 rollouts, in headless Chromium.

python benchmarks/report.py [--steps 200] [--chromium chromium]   prints a table and writes benchmarks/out/report.json

A run of two real steps of HSD on the shipped base is drawn out: its rollouts return under new steps, its metrics and evaluations with noise. Needs playwright.
"""

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from workload import positive, write

from selfdistill.config import load_settings
from selfdistill.report import Selection, write_page
from selfdistill.report.data import page_model
from selfdistill.runner import execute
from selfdistill.runs import SavedRun, open_run

PER_STEP = {"prompts_per_step": 2, "sampling.num_generations": 5}
EVERY = 10
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def long_run(folder: Path, steps: int) -> SavedRun:
    """A folder such as `selfdistill train quickstart` leaves it, of as many steps as asked."""
    evaluation = {"eval.every": 1, "eval.num_problems": 200, "eval.num_samples": 4}
    execute(load_settings("quickstart", {"steps": 2, "output_dir": str(folder), "checkpoint_every": 1} | PER_STEP | evaluation))
    rng = random.Random(0)
    kept = [(folder / "rollouts" / f"step_{step:06d}.jsonl").read_text() for step in (1, 2)]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = json.loads((folder / "evaluations" / "step_000002.json").read_text())
    lines = []
    for step in range(1, steps + 1):
        rows = [json.loads(line) | {"step": step} for line in kept[step % 2].splitlines()]
        (folder / "rollouts" / f"step_{step:06d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        lines.append(json.dumps({name: value * rng.uniform(0.9, 1.1) for name, value in metrics[step % 2].items()} | {"step": step}) + "\n")
        if step % EVERY == 0:
            scores = [[float(rng.random() < 0.4 + 0.4 * step / steps) for _ in row] for row in measured["scores"]]
            (folder / "evaluations" / f"step_{step:06d}.json").write_text(json.dumps(measured | {"scores": scores}))
    (folder / "metrics.jsonl").write_text("".join(lines))
    settings = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps(settings | {"steps": steps}))
    return open_run(folder)


def opening(page_file: Path, chromium: str, repeats: int) -> dict[str, float]:
    """Medians of fresh browsers' own clocks, from the start of the navigation: first paint, and everything drawn."""
    from playwright.sync_api import sync_playwright

    found: dict[str, list[float]] = {"paint": [], "drawn": [], "choice": []}
    with sync_playwright() as running:
        for _ in range(repeats):
            browser = running.chromium.launch(executable_path=chromium, args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(f"file://{page_file}")
            page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
            found["paint"].append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
            found["drawn"].append(float(page.evaluate("document.documentElement.dataset.ready")))
            # another rollout: from the click to the page drawn again
            found["choice"].append(
                page.evaluate("(() => { const t = performance.now(); document.getElementById('rollout-1').click(); return performance.now() - t; })()")
            )
            browser.close()
    return {name: statistics.median(values) / 1000 for name, values in found.items()}


def measure(run: SavedRun, selection: Selection, arguments: argparse.Namespace) -> dict[str, Any]:
    start = time.process_time()
    model = page_model([run.folder], selection)
    path = run.folder / "report.html"
    size = write_page(model, path)
    made = time.process_time() - start
    rollouts = [r for s in model["runs"][0]["tokens"]["steps"] for p in s["problems"] for r in p["rollouts"]]
    tokens = sum(r["length"] for r in rollouts)
    return {"rollouts": len(rollouts), "tokens": tokens, "bytes": size, "made": made} | opening(path, arguments.chromium, arguments.repeats)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=positive, default=200)
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    arguments = parser.parse_args()
    table, rows = Table("on the page", "rollouts", "tokens", "size, MB", "made in, CPU s", "first paint, s", "all drawn, s", "another rollout, s"), []
    with tempfile.TemporaryDirectory() as folder:
        run = long_run(Path(folder) / "run", arguments.steps)
        everything = Selection(steps=tuple(run.steps), problems=PER_STEP["prompts_per_step"])
        for name, selection in {"first, middle and last step": Selection(), "every step": everything}.items():
            found = measure(run, selection, arguments)
            rows.append({"shown": name, **found})
            figures = [f"{found[key]:.2f}" for key in ("made", "paint", "drawn", "choice")]
            table.add_row(name, f"{found['rollouts']:,}", f"{found['tokens']:,}", f"{found['bytes'] / 1e6:.2f}", *figures)
    Console().print(f"a run of {arguments.steps} steps, medians of {arguments.repeats} fresh browsers")
    Console(width=140).print(table)
    write("report", {"steps": arguments.steps, "rows": rows})


if __name__ == "__main__":
    main()
