"""Every shipped recipe takes one step through the command line: its own file, with model, data and lengths replaced by ones that fit a CPU.

python benchmarks/recipes.py [opsd sdpo ...] [--model tiny]   prints the table and renews its rows of benchmarks/out/recipes.json

`selfdistill train NAME --model.path ... --task.name FILE --steps 1 ...`, by the command's own entry. FILE holds sums under the column names that
the recipe maps, beside columns of other kinds that such datasets carry. What the recipe says of its method, adapter, optimizer and sampling
stays; nothing is evaluated. That the datasets on the hub have these columns is not checked here.
"""

import argparse
import io
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from real_data import MODEL, base_folder, problems_file, teacher_folder
from rich.console import Console
from rich.table import Table
from workload import STORE, measured_before, write

from selfdistill.cli.main import main as command_line
from selfdistill.recipes import read_recipe

RECIPES = Path(__file__).parents[1] / "src" / "selfdistill" / "assets" / "recipes"
LEFT_OUT = {"tiny_base": "a recipe of `selfdistill pretrain`", "quickstart": "the testbed's own"}
RUNS = STORE / "models" / "recipes"
"""Beside the model, and not kept in git as it is not."""
LENGTH, WRITER_LENGTH = 24, 48
"""Tokens of a completion, and of what a writer says."""
BESIDE: dict[str, Any] = {"ability": "MATH", "reward_model": {"ground_truth": "0", "style": "rule"}, "source_prompt": [{"role": "user", "content": "a sum"}]}


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


def flags(name: str, recipe: Mapping[str, Any], model: str) -> dict[str, Any]:
    """What is replaced, and nothing else."""
    found = {
        "model.path": base_folder() if model == MODEL else model,
        "model.device": "cpu",
        "task.name": data_file(name, recipe),
        "eval.at_end": "false",
        "eval.every": 0,
    }
    found |= {"steps": 1, "prompts_per_step": 2, "sampling.max_completion_length": LENGTH, "output_dir": RUNS / name}
    found |= {"mini_batches": min(recipe.get("mini_batches", 1), 2)} | ({"task.test_split": "none"} if "test_split" in recipe["task"] else {})
    found["sampling.num_generations"] = min(recipe["sampling"]["num_generations"], 2)
    method = recipe["method"] if isinstance(recipe["method"], dict) else {}
    for key, value in method.items():
        if (replaced := _local(value, model)) != value:
            found[f"method.{key}"] = replaced
    return found | ({"method.cold_start": 4} if method.get("name") == "sgsd" else {})


def _local(value: Any, model: str) -> Any:
    """A method's argument with folders that are here and writers that stop early."""
    if not isinstance(value, str):
        return value
    if value.startswith("External"):
        value = f"External({str(teacher_folder() if model == MODEL else model)!r})"
    value = re.sub(r"SentenceTransformer\('[^']*'\)", "StudentStates()", value)
    value = re.sub(r"Checkpoint\('[^']*'", f"Checkpoint({str(RUNS / 'rcsd_writer' / 'checkpoints' / 'step_000001')!r}", value)
    return re.sub(r"max_completion_length=\d+", f"max_completion_length={WRITER_LENGTH}", value)


def run(name: str, model: str) -> dict[str, Any]:
    """One recipe's step by the command line's own entry: its figures, or what it said."""
    recipe = read_recipe(name)
    shutil.rmtree(RUNS / name, ignore_errors=True)
    words = ["train", name, *(word for key, value in flags(name, recipe, model).items() for word in (f"--{key}", str(value)))]
    said, code, start = io.StringIO(), 0, time.perf_counter()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            command_line(words)
        except SystemExit as left:
            code = int(left.code or 0)
        except Exception as error:  # a fault of ours, which the command line does not put into a sentence
            code, _ = 1, said.write(f"{type(error).__name__}: {error}")
    task, beside = recipe["task"], f"{STORE.parents[1]}/"
    written = [word.replace(beside, "") for word in words]
    figures: dict[str, Any] = {"seconds": time.perf_counter() - start, "exit": code, "command": written, "dataset": task["name"], "model": model}
    if code:
        return figures | {"said": said.getvalue().strip().splitlines()[-3:]}
    (metrics,) = (json.loads(line) for line in (RUNS / name / "metrics.jsonl").read_text().splitlines())
    finite = all(math.isfinite(v) for v in metrics.values()) and not metrics.get("skipped_updates")
    if name != "rcsd_writer":  # whose checkpoint writes for rcsd
        shutil.rmtree(RUNS / name)
    return figures | {"metrics": metrics, "finite": finite}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="names; none: all")
    parser.add_argument("--model", default=MODEL, help='"tiny" checks all but the model in a minute')
    a = parser.parse_args()
    every = sorted((p.stem for p in RECIPES.glob("*.toml") if p.stem not in LEFT_OUT), key=lambda name: (name != "rcsd_writer", name))
    found = {}
    for name in a.recipes or every:
        found[name] = run(name, a.model)
        print(name, {k: v for k, v in found[name].items() if k in ("seconds", "exit", "said")}, flush=True)
        write("recipes", measured_before("recipes") | {f"{name} on {a.model}": found[name]})
    table = Table(title=f"One step of every recipe on {a.model}, through the command line")
    for column in ("recipe", "exit", "loss", "grad norm", "taught", "finite", "s", "its own data"):
        table.add_column(column)
    for name, m in found.items():
        at = m.get("metrics", {})
        figures = (f"{at.get(key, 0.0):.4f}" for key in ("loss", "grad_norm", "taught_share"))
        table.add_row(name, str(m["exit"]), *figures, "yes" if m.get("finite") else "NO", f"{m['seconds']:.0f}", m["dataset"])
    Console(width=150).print(table)
    sys.exit(int(any(m["exit"] for m in found.values())))


if __name__ == "__main__":
    main()
