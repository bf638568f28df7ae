"""`selfdistill eval`: a model in; its figures, beside those of another model where asked, on the terminal and as JSON out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from rich.console import Console
from rich.markup import escape

from selfdistill.api import load_settings_policy, worded
from selfdistill.atomic import require_file, write_whole
from selfdistill.checkpoint import latest
from selfdistill.config import Settings, make_settings, read_settings
from selfdistill.console import Console as Progress
from selfdistill.conversations import Full
from selfdistill.evaluate import Comparison, Evaluation, compare, interval
from selfdistill.imports import load_object
from selfdistill.measuring import Measurement
from selfdistill.method_names import build_conversation
from selfdistill.recipes import read_recipe
from selfdistill.tasks.loading import load_task

FORMAT = 1
"""Of what --leaderboard writes."""
SECTIONS = ("eval", "task", "reward", "sampling", "model", "seed", "output_dir")
"""Settings that an evaluation depends on, or that say where it is kept."""
TRAINING = ("eval.every", "eval.at_end", "model.path")
"""Settings of these sections that it does not: MODEL is what is measured."""
out = Console(highlight=False, soft_wrap=True)


def evaluate_model(model: str, *, recipe: str | None, vs: str | None, overrides: Mapping[str, Any], output: Path | None, leaderboard: Path | None) -> None:
    """Prints a model's figures; a run's folder brings its own settings, under which the other model is measured too."""
    for setting, path in (("--output", output), ("--leaderboard", leaderboard)):
        if path:
            require_file(path, setting=setting)
    settings = settings_of(model, recipe, overrides)
    record = measured(model, settings, setting="MODEL")
    result, k = Evaluation.from_json(record), settings.eval.num_samples
    told = f", told as {settings.eval.conversation}" if build_conversation(settings.eval.conversation) != Full() else ""
    n = len(result.scores)
    out.print(f"{model} on {n} problems of {settings.task.name}, {k} samples at temperature {settings.eval.temperature}{escape(told)}")
    _print(result)
    beside = None
    if vs is not None:
        base = Evaluation.from_json(measured(vs, settings, setting="--vs"))
        beside = compare(base, result)
        out.print(f"{vs}, measured the same way")
        _print(base)
        _print_difference(vs, beside, n)
    if output:
        write_whole(output, json.dumps(record) + "\n")
    if leaderboard:
        write_whole(leaderboard, json.dumps(as_leaderboard(model, record, settings, vs=vs, beside=beside), indent=2) + "\n")


def settings_of(model: str, recipe: str | None, overrides: Mapping[str, Any]) -> Settings:
    """The settings a model is measured under: its run's own, else the recipe's. Raises ValueError on a setting that would change nothing."""
    for key in overrides:
        if key.partition(".")[0] not in SECTIONS or key in TRAINING:
            raise ValueError(f"--{key} changes nothing that is measured; leave it out: eval takes settings of {', '.join(SECTIONS)}")
    own = Path(model) / "settings.json"
    if own.exists():
        if recipe is not None:
            raise ValueError(f"{model} is a run and measured under its own settings, so --recipe {recipe} would change nothing; leave it out")
        # the folder may have been moved since
        return make_settings(read_settings(own).model_dump() | {"output_dir": model}, overrides, origin=str(own))
    recipe = recipe or "quickstart"
    return make_settings(read_recipe(recipe), overrides, origin=recipe)


def measured(model: str, settings: Settings, *, setting: str) -> dict[str, Any]:
    """The model's record, from the cache where it was measured before. Raises ValueError where there is nothing to measure it on."""
    conversation, task = build_conversation(settings.eval.conversation), load_task(settings.task)
    policy = load_settings_policy(settings, str(latest(Path(model))) if (Path(model) / "settings.json").exists() else model, setting=setting)
    problems = list(worded(task, "test", settings))[: settings.eval.num_problems]
    if not problems:
        raise ValueError(f"the test split of {settings.task.name!r} has 0 problems to evaluate on")
    reward = load_object(settings.reward, setting="reward") if settings.reward else None
    own = Measurement(policy=policy, settings=settings, task=task, problems=problems, reward=reward, conversation=conversation)
    if found := own.kept():
        out.print(f"{model} was measured before: {own.cache}/{own.key}.json", style="dim")
        return found
    with Progress().bar(f"evaluating {model}", own.samples) as advance:
        return own.measure(advance)


def figures(result: Evaluation) -> dict[str, Any]:
    """Every figure with its 95 % interval over problems where it is a mean over problems."""
    k = len(result.scores[0])
    widths = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n < k]
    passed = {f"pass@{n}": {"value": result.pass_at(n), "ci95": interval(result.passed(n))} for n in (*widths, k)}
    found = result.figures()
    own = {f"avg@{k}": {"value": found["avg_at_k"], "ci95": found["ci95"]}, f"maj@{k}": {"value": found["maj_at_k"], "ci95": interval(result.majority)}}
    return own | passed | {name: {"value": value} for name, value in found.items() if not name.endswith("_at_k") and name != "ci95"}


def as_leaderboard(model: str, record: Mapping[str, Any], settings: Settings, *, vs: str | None, beside: Comparison | None) -> dict[str, Any]:
    """What was measured, how, and on which weights, without the samples; `eval_results` is what the hub takes as .eval_results/*.yaml."""
    found, k = figures(Evaluation.from_json(record)), settings.eval.num_samples
    note = f"selfdistill, {len(record['scores'])} problems x {k} samples, temperature {settings.eval.temperature:g}, top-p {settings.eval.top_p:g}"
    entry = EvalResultEntry(dataset_id=settings.task.name, task_id=f"avg@{k}", value=round(100 * found[f"avg@{k}"]["value"], 2), notes=note)
    versus = {"model": vs, **vars(beside)} if beside else None
    return {
        "format": FORMAT,
        "model": model,
        "dtype": record["about"]["model"]["dtype"],
        **{name: record["about"][name] for name in ("weights", "problems", "task", "decoding", "seed")},
        "num_problems": len(record["scores"]),
        "num_samples": k,
        "metrics": found,
        "versus": versus,
        "eval_results": eval_result_entries_to_yaml([entry]),
    }


def _print(result: Evaluation) -> None:
    k, f = len(result.scores[0]), result.figures()
    out.print(f"avg@{k} {f['avg_at_k']:.4f} [{', '.join(f'{end:.4f}' for end in f['ci95'])}]  pass@{k} {f['pass_at_k']:.4f}  maj@{k} {f['maj_at_k']:.4f}")
    entropy = "" if f["entropy"] is None else f"  entropy {f['entropy']:.4f} nats a token"
    out.print(f"truncated {f['truncated']:.4f}  mean length {f['mean_length']:.1f} tokens{entropy}  {f['distinct_answers']:.2f} different answers")


def _print_difference(vs: str, beside: Comparison, problems: int) -> None:
    low, high = beside.difference_ci95
    out.print(f"difference to {vs}: {100 * beside.difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], paired over {problems} problems")
    out.print(f"solved in any sample: {beside.rescued} rescued, {beside.broken} broken")
    out.print(f"by majority: {beside.majority_rescued} rescued, {beside.majority_broken} broken, McNemar p = {beside.mcnemar_p:.2g}")
