"""Every shipped recipe takes one step through the command line: its own file, with model, data and lengths replaced by ones that fit a CPU.

python benchmarks/recipes.py [opsd sdpo ...]   prints the table and writes benchmarks/out/recipes.json

`selfdistill train NAME --model.path ... --task.name FILE --steps 1 ...` runs in a process of its own. FILE holds sums under the column names that
the recipe maps, beside columns of other kinds that such datasets carry. What the recipe says of its method, adapter, optimizer, sampling and
evaluation stays. That the datasets on the hub have these columns is not checked here.
"""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from real_data import OUT, base_folder, problems_file, teacher_folder
from rich.console import Console
from rich.table import Table

from selfdistill.config import read_recipe

RECIPES = Path(__file__).parents[1] / "src" / "selfdistill" / "assets" / "recipes"
LEFT_OUT = {"tiny_base": "a recipe of `selfdistill pretrain`", "quickstart": "the testbed's own"}
RUNS = OUT / "models" / "recipes"
"""Beside the model, and not kept in git as it is not."""
LENGTH, WRITER_LENGTH = 32, 48
"""Tokens of a completion, and of what a writer says."""
BESIDE: Mapping[str, Any] = {"ability": "MATH", "reward_model": {"ground_truth": "0", "style": "rule"}, "source_prompt": [{"role": "user", "content": "a sum"}]}


def data_file(name: str, recipe: Mapping[str, Any]) -> str:
    """The task of a recipe, as it is where it needs no hub, else sums under the names that it maps."""
    task = recipe["task"]
    if task["name"].startswith("reasoning_gym:"):
        return task["name"]
    columns = {ours: task.get("columns", {}).get(ours, ours) for ours in ("prompt", "answer", "solution")}
    mapped = task.get("columns", {"prompt": "", "answer": "", "solution": ""})
    rows = []
    for line in problems_file().read_text().splitlines():
        row = json.loads(line)
        kept = {columns[ours]: row[ours] for ours in columns if ours in mapped}
        rows.append(kept | BESIDE | {"shards": row["shards"]})
    path = RUNS / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def flags(name: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What is replaced, and nothing else."""
    evaluated = {"eval.at_end": "true", "eval.num_problems": 1, "eval.num_samples": 2, "eval.max_completion_length": LENGTH}
    found = {"model.path": base_folder(), "model.device": "cpu", "task.name": data_file(name, recipe), "task.test_share": 0.3} | evaluated
    if found["task.name"].startswith("reasoning_gym:"):
        del found["task.test_share"]
    found |= {"steps": 1, "prompts_per_step": 2, "sampling.max_completion_length": LENGTH, "output_dir": RUNS / name}
    found["sampling.num_generations"] = min(recipe["sampling"]["num_generations"], 2)
    method = recipe["method"] if isinstance(recipe["method"], dict) else {}
    for key, value in method.items():
        if (replaced := _local(value)) != value:
            found[f"method.{key}"] = replaced
    return found | ({"method.cold_start": 4} if method.get("name") == "sgsd" else {})


def _local(value: Any) -> Any:
    """A method's argument with folders that are here and writers that stop early."""
    if not isinstance(value, str):
        return value
    value = re.sub(r"External\('[^']*'\)", f"External({str(teacher_folder())!r})", value)
    value = re.sub(r"Checkpoint\('[^']*'", f"Checkpoint({str(RUNS / 'rcsd_writer' / 'checkpoints' / 'step_000001')!r}", value)
    return re.sub(r"max_completion_length=\d+", f"max_completion_length={WRITER_LENGTH}", value)


def run(name: str) -> dict[str, Any]:
    """One recipe's step: its figures, or the last lines of what it said."""
    recipe = read_recipe(name)
    shutil.rmtree(RUNS / name, ignore_errors=True)
    given = [word for key, value in flags(name, recipe).items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "selfdistill", "train", name, *given]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    figures: dict[str, Any] = {"seconds": time.perf_counter() - start, "exit": done.returncode, "command": command[1:]}
    task = recipe["task"]
    figures["dataset"] = task["name"] if isinstance(task, dict) else task
    if done.returncode:
        return figures | {"said": done.stderr.strip().splitlines()[-3:]}
    (metrics,) = (json.loads(line) for line in (RUNS / name / "metrics.jsonl").read_text().splitlines())
    finite = all(math.isfinite(v) for v in metrics.values()) and not metrics.get("skipped_updates")
    left = sorted(p.name for p in (RUNS / name).iterdir())
    if name != "rcsd_writer":  # whose checkpoint writes for rcsd
        shutil.rmtree(RUNS / name)
    return figures | {"metrics": metrics, "finite": finite, "left": left}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="names; none: all")
    chosen = parser.parse_args().recipes
    every = sorted((p.stem for p in RECIPES.glob("*.toml") if p.stem not in LEFT_OUT), key=lambda name: (name != "rcsd_writer", name))
    found = {}
    for name in chosen or every:
        found[name] = run(name)
        print(name, {k: v for k, v in found[name].items() if k in ("seconds", "exit", "said")}, flush=True)
    table = Table(title="One step of every recipe on SmolLM2-135M-Instruct, through the command line")
    for column in ("recipe", "exit", "loss", "grad norm", "taught", "finite", "s", "its own data"):
        table.add_column(column)
    for name, m in found.items():
        at = m.get("metrics", {})
        figures = (f"{at.get(key, math.nan):.4f}" for key in ("loss", "grad_norm", "taught_share"))
        table.add_row(name, str(m["exit"]), *figures, "yes" if m.get("finite") else "NO", f"{m['seconds']:.0f}", m["dataset"])
    Console(width=150).print(table)
    if not chosen:
        (OUT / "recipes.json").write_text(json.dumps(found, indent=2, default=str) + "\n")
    sys.exit(int(any(m["exit"] for m in found.values())))


if __name__ == "__main__":
    main()
