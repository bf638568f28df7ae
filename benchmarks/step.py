"""What a training step costs, by phase, and beside TRL's SDPOTrainer or SDFTTrainer: same model, prompts, words, groups, type and method, one process a side.

python benchmarks/step.py [--method sdft] [--device cuda --dtype bfloat16] [--models tiny wide smollm2-135m qwen3-0.6b] [--sides ours dynamic]
prints tables and writes benchmarks/out/step.json after every side's process; results under --attention stand beside those without it

A side that fails is said and left out. Where ours was asked for and is missing, or the peer was and is missing under each of its caches, the exit status is 1.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from workload import OUT, PEERS, RANDOM, WARM_UP, device_here, measured_before, measured_on, model_folder, peer_environment, positive, write

PHASES = ("sample", "grade", "annotate", "teach", "pack", "score", "objective", "step")
SHAPES = {
    "tiny": {"prompts": 16, "generations": 8, "tokens": 112, "steps": 7, "top_k": 32},
    "wide": {"prompts": 8, "generations": 8, "tokens": 128, "steps": 3, "top_k": 100},
    "smollm2-135m": {"prompts": 4, "generations": 8, "tokens": 64, "steps": 4, "top_k": 100},
    "qwen3-0.6b": {"prompts": 8, "generations": 16, "tokens": 1024, "steps": 2, "top_k": 100, "micro_batches": 16},
    "qwen3-1.7b": {"prompts": 8, "generations": 16, "tokens": 1024, "steps": 2, "top_k": 100, "micro_batches": 16},
}
"""wide: 8,192 trained tokens under 49,152 words. qwen3: random weights of those sizes, for an accelerator; one step after one of warm-up."""
SIDES = {"ours": "ours", "static": "trl, static cache", "dynamic": "trl, dynamic cache"}
ATTENTIONS = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
console = Console(width=120)


def run(side: str, environment: dict[str, str], **options: object) -> dict:
    """One side's process, and the line of JSON it ends with. Raises RuntimeError with its last words where it fails."""
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    script = Path(__file__).with_name(f"step_{side}.py")
    done = subprocess.run([sys.executable, script, *flags], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{script.name} {' '.join(flags)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(model: str, lengths: str, peer: dict[str, str] | None, arguments: argparse.Namespace) -> Iterator[dict]:
    """The sides in turn, `repeats` times; after each process, what is known by then."""
    options = SHAPES[model] | {"folder": model_folder(model), "method": arguments.method, "lengths": lengths}
    options |= {"device": arguments.device, "dtype": arguments.dtype}
    if arguments.device == "cpu":
        # one is timed between those of warm-up and of memory
        options["steps"] = max(options["steps"], WARM_UP + 2)
    found: dict[str, list[dict]] = {}
    for _ in range(arguments.repeats):
        for side in arguments.sides:
            if side == "ours":
                script, environment, own = "ours", dict(os.environ), {"attention": arguments.attention or "auto"}
            else:
                script, environment, own = "trl", peer, {"cache": side}
            if environment is None:
                continue
            try:
                figures = run(script, environment, **options, **own)
            except RuntimeError as error:
                console.print(f"{SIDES[side]}: {error}", markup=False)
                continue
            found.setdefault(SIDES[side], []).append(figures)
            yield compared(found)


def compared(found: Mapping[str, Sequence[dict]]) -> dict:
    """Sides by the medians of their processes; and ours beside the peer under the cache that suits it better."""
    result: dict = {side: medians(each) for side, each in found.items()}
    theirs = [side for side in result if side != "ours"]
    if theirs and "ours" in result:
        best = max(theirs, key=lambda side: result[side]["tokens_per_s"]["step"])
        result["fastest_trl"] = best
        # sampling against the cache under which the peer samples fastest, learning likewise
        fastest = {part: max(result[side]["tokens_per_s"][part] for side in theirs) for part in ("step", "sampling", "learning")}
        result["ratio"] = {part: result["ours"]["tokens_per_s"][part] / rate for part, rate in fastest.items()}
        result["memory_ratio"] = result["ours"]["seconds"]["memory_mib"] / min(result[side]["seconds"]["memory_mib"] for side in theirs)
    return result


def medians(found: Sequence[dict]) -> dict:
    """Repeated processes as one: the median of each figure, and what they all were set to."""
    figures = {group: {key: statistics.median(f[group][key] for f in found) for key in found[0][group]} for group in ("tokens_per_s", "seconds")}
    return {**figures, "settings": found[0]["settings"]}


def lacking(result: dict, sides: Sequence[str]) -> bool:
    """Whether ours, or each side of the peer's, is missing though asked for."""
    theirs = [SIDES[side] for side in sides if side != "ours"]
    return ("ours" in sides and "ours" not in result) or (bool(theirs) and not any(side in result for side in theirs))


def show(title: str, result: dict) -> None:
    """Tokens a second of every side, what it was set to, and where our step's time goes."""
    table = Table("side", "step, tokens/s", "sampling", "learning", "peak above weights and optimizer, MiB", title=title)
    sides = {side: result[side] for side in SIDES.values() if side in result}
    for side, found in sides.items():
        rates = found["tokens_per_s"]
        table.add_row(side, *(f"{rates[part]:,.0f}" for part in ("step", "sampling", "learning")), f"{found['seconds']['memory_mib']:,.0f}")
    if "ratio" in result:
        table.add_row("ours / fastest TRL", *(f"{result['ratio'][part]:.2f}" for part in ("step", "sampling", "learning")), f"{result['memory_ratio']:.2f}")
    console.print(table)
    for side, found in sides.items():
        settings = {name.replace("_", " "): {True: "on", False: "off"}.get(value, value) for name, value in found["settings"].items()}
        console.print(f"{side}: {', '.join(f'{name} {value}' for name, value in settings.items())}", highlight=False)
    if "ours" not in result:
        return
    seconds = result["ours"]["seconds"]
    phases = Table("phase of ours", "seconds", "share", "tokens/s")
    for phase in PHASES:
        spent = seconds[f"phase_{phase}"]
        phases.add_row(phase, f"{spent:.3f}", f"{spent / seconds['step']:.1%}", f"{seconds['tokens'] / spent:,.0f}" if spent else "")
    console.print(phases)


def summary(results: dict[str, dict[str, dict]]) -> dict:
    """The headline of a method: the first model that has natural lengths, and the memory of the widest vocabulary."""
    ordered = [results[model] for model in SHAPES if model in results]
    natural = next((r for r in ordered if all("ratio" in r.get(lengths, {}) for lengths in ("natural", "forced"))), None)
    wide = results.get("wide", {}).get("forced", {})
    if natural is None:
        return {"ratio_vs_trl": None, "memory_ratio_vs_trl": wide.get("memory_ratio")}
    forced = natural["forced"]["ratio"]
    ratios = {"natural": natural["natural"]["ratio"]["step"], "forced": forced["step"], "learning": forced["learning"], "sampling": forced["sampling"]}
    return {"ratio_vs_trl": ratios, "memory_ratio_vs_trl": wide.get("memory_ratio")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=("sdpo", "sdft"), default="sdpo", help="and with it TRL's trainer")
    parser.add_argument("--device", type=device_here, default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--models", nargs="+", default=["tiny", "wide"], choices=tuple(SHAPES))
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=tuple(SIDES), help="ours, and TRL by its cache")
    parser.add_argument("--attention", choices=ATTENTIONS, help="our side's model.attention; left out: its own choice")
    parser.add_argument("--repeats", type=positive, default=2)
    arguments = parser.parse_args()
    about = {"cpus": os.cpu_count(), "device": arguments.device, "dtype": arguments.dtype, "threads": torch.get_num_threads()}
    machine, missing = measured_on(arguments.device, **about), False
    # results by method, model and lengths
    results = measured_before("step", machine=machine, peer=PEERS["trl"][1]).get("results", {})
    peer = peer_environment("trl") if {"static", "dynamic"} & set(arguments.sides) else None
    for model in arguments.models:
        name = f"{model}, {arguments.attention}" if arguments.attention else model
        for lengths in ("forced",) if model in RANDOM else ("natural", "forced"):
            found = {}
            for found in measure(model, lengths, peer, arguments):
                results.setdefault(arguments.method, {}).setdefault(name, {})[lengths] = found
                save(results, machine)
            if found:
                show(f"{arguments.method}, {name}, {lengths} lengths", found)
                console.print(f"wrote {OUT / 'step.json'}")
            missing |= lacking(found, arguments.sides)
    sys.exit(int(missing))


def save(results: dict[str, dict[str, dict[str, dict]]], machine: dict[str, object]) -> None:
    """All that is known by now, so that a call that is cut off leaves it."""
    found = {
        **summary(results.get("sdpo", {})),
        "by_method": {method: summary(of) for method, of in results.items()},
        "meaning": "ratio_vs_trl: our tokens a second over TRL's (above 1: faster); memory_ratio_vs_trl: our peak over TRL's (below 1: less)",
        "peer": PEERS["trl"][1],
        "machine": machine,
        "shapes": SHAPES,
        "results": results,
    }
    write("step", found)


if __name__ == "__main__":
    main()
