"""`selfdistill compare`: recipes and folders of runs in; a table on the terminal, compare.json, compare.md and compare.png out."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from selfdistill.atomic import require_writable, write_whole
from selfdistill.compare import Entry, Trained, reference_of, side_by_side
from selfdistill.config import MethodSettings, Settings, load_settings, read_settings
from selfdistill.imports import nearest
from selfdistill.launcher import Job, launch
from selfdistill.method_names import build_method
from selfdistill.pairing import Seeds, group, uncontrolled, with_peers
from selfdistill.plots import gains
from selfdistill.runs import SavedRun, open_run
from selfdistill.tables import WIDE, as_json, markdown, notes, terminal
from selfdistill.variants import null_kind

REFERENCE = "opsd"
"""Whom all others are paired with where nobody else is named."""
out = Console(highlight=False, soft_wrap=True)


def finished(folder: Path) -> Trained:
    """A run's first and last evaluation and what it took. Raises ValueError where it has not come to its end."""
    run = open_run(folder)
    last = int(run.metrics[-1]["step"])
    if last < run.settings.steps or not {0, last} <= run.evaluations.keys():
        at = f"is at step {last} of {run.settings.steps} with evaluations of steps {sorted(run.evaluations) or 'none'}"
        raise ValueError(f"{folder} {at}; a comparison needs the base's and the last step's: finish it with selfdistill train --resume, or leave it out")
    return Trained(
        base=run.evaluations[0],
        trained=run.evaluations[last],
        rollout_tokens=_rollout_tokens(run),
        seconds=sum(row["seconds"] for row in run.metrics),
        training_entropy=run.metrics[-1].get("entropy"),
    )


def models(folders: Iterable[Path]) -> list[Path]:
    """The folders, each with that of the other model where two learned."""
    return [one for folder in folders for one in (folder, *([folder / "peer"] if (folder / "peer" / "settings.json").exists() else []))]


def _rollout_tokens(run: SavedRun) -> float:
    """Tokens that were written while it trained; of runs that did not count them, those of the rollouts that were kept."""
    if all("generated_tokens" in row for row in run.metrics):
        return sum(row["generated_tokens"] for row in run.metrics)
    lines = {step: (run.folder / "rollouts" / f"step_{step:06d}.jsonl").read_bytes().count(b"\n") for step in run.steps}
    return sum(row["mean_length"] * lines.get(int(row["step"]), 0) for row in run.metrics)


def entries(groups: Sequence[Seeds], done: Mapping[Path, Trained], failed: Mapping[Path, str]) -> list[Entry]:
    """Every group's finished seeds, and why the others are missing."""
    return [
        Entry(
            name=one.name,
            method=one.method,
            seeds={seed: done[folder] for seed, folder in sorted(one.folders.items()) if folder in done},
            control_of=one.control_of,
            peer_of=one.peer_of,
            failed={seed: failed[folder] for seed, folder in sorted(one.folders.items()) if folder in failed},
        )
        for one in groups
    ]


def write_table(found: Sequence[Entry], settings: Settings, *, reference: str, output: Path) -> None:
    """compare.json, compare.md and compare.png in the folder, and the table on the terminal."""
    rows = side_by_side(found, reference=reference)
    write_whole(output / "compare.json", json.dumps(as_json(rows, settings, reference=reference), indent=2) + "\n")
    write_whole(output / "compare.md", markdown(rows, settings, reference=reference))
    gains(rows, output / "compare.png", title=f"{settings.model.path} on {settings.task.name}")
    width = out.width if out.is_terminal else max(out.width, WIDE)
    Console(highlight=False, width=width).print(terminal(rows, k=settings.eval.num_samples, reference=reference, width=width))
    out.print("\n".join(notes(rows)), markup=False)
    out.print(f"wrote {', '.join(str(output / f'compare.{kind}') for kind in ('json', 'md', 'png'))}")


def compare_methods(
    names: Sequence[str],
    *,
    nulls: Sequence[str],
    seeds: int,
    output: Path,
    jobs: int | None,
    controls: bool,
    reference: str | None,
    overrides: Mapping[str, Any],
) -> None:
    """Trains the recipes, reads the folders, writes the table. Raises ValueError at the end where a run failed."""
    recipes, folders = ([n for n in names if _is_run(n) is run] for run in (False, True))
    null_recipes, null_folders = ([n for n in nulls if _is_run(n) is run] for run in (False, True))
    if overrides and not (recipes or null_recipes):
        raise ValueError(f"--{next(iter(overrides))} is a setting of runs to be trained, and all that is given is trained already; leave it out")
    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs {jobs} trains nothing; give at least 1, or leave it out for as many as the machine has room for")
    by_hand = plan(null_recipes, seeds=seeds, output=output, overrides=overrides)
    planned = plan(recipes, seeds=seeds, output=output, overrides=overrides)
    planned += [control for job in planned if controls and (control := null_control(job, by_hand))]
    own = [*((job.folder, job.settings) for job in planned), *map(_with_settings, folders)]
    given = [*((job.folder, job.settings) for job in by_hand), *map(_with_settings, null_folders)]
    groups = with_peers(group(own, given))
    if reference is not None:
        _require_row(groups, reference)
    require_writable(output, setting="--output")
    # read before anything is trained, which may take hours
    done = {folder: finished(folder) for folder in models(map(Path, (*folders, *null_folders)))}
    jobs_to_do = [*planned, *by_hand]
    failed = launch(jobs_to_do, at_once=jobs, say=lambda line: out.print(line, markup=False))
    done |= {folder: finished(folder) for folder in models(job.folder for job in jobs_to_do if job.folder not in failed)}
    why = failed | {folder / "peer": reason for folder, reason in failed.items()}
    write_table(entries(groups, done, why), groups[0].settings, reference=reference or REFERENCE, output=output)
    if failed:
        raise ValueError(f"{len(failed)} of {len(jobs_to_do)} runs failed, as the table says; the same command trains them again and no others")


def _require_row(groups: Sequence[Seeds], reference: str) -> None:
    """Raises ValueError where no method's row would have that name."""
    rows = entries(groups, {}, {})
    if reference_of(rows, reference) is None:
        names = [row.name for row in rows if reference_of([row], row.name)]
        raise ValueError(f"--reference {reference!r} is no row of this table{nearest(reference, names)}; give one of {', '.join(names)}, or a method of theirs")


def plan(recipes: Sequence[str], *, seeds: int, output: Path, overrides: Mapping[str, Any]) -> list[Job]:
    """Every recipe with seeds 0 to seeds - 1, each into output/recipe/seed."""
    if seeds < 1:
        raise ValueError(f"--seeds {seeds} leaves nothing to train; give at least 1")
    for key, knob in (("seed", "--seeds N trains seeds 0 to N - 1"), ("output_dir", "--output FOLDER holds all runs")):
        if key in overrides:
            raise ValueError(f"--{key} {overrides[key]} would be the same for every run; {knob}")
    found: list[Job] = []
    for recipe in recipes:
        for seed in range(seeds):
            folder = output / Path(recipe).with_suffix("").name / str(seed)
            own = {"eval.cache": str(output / ".evaluations"), **overrides, "seed": seed, "output_dir": str(folder)}
            settings = load_settings(recipe, own)
            if not settings.eval.at_end:
                raise ValueError(f"recipe {recipe!r} has eval.at_end = false, so nothing is measured that could be compared; give --eval.at_end true")
            if folder in (job.folder for job in found):
                raise ValueError(f"two recipes would both be trained into {folder.parent}; rename one of the files")
            found.append(Job(folder=folder, settings=settings))
    return found


def null_control(job: Job, by_hand: Sequence[Job]) -> Job | None:
    """The same run under `null_context`, of `null_kind`; None where the teacher reads nothing, or a null was given by hand."""
    method = job.settings.method
    if any(null.settings.method.name == method.name for null in by_hand) or uncontrolled(method):
        return None
    length = job.settings.sampling.max_completion_length
    kind = null_kind(build_method(method.name, method.arguments, max_completion_length=length))
    arguments = method.arguments | ({} if kind == "shuffled" else {"kind": kind})
    try:
        build_method(name := f"null_context({method.name})", arguments, max_completion_length=length)
    except ValueError:
        return None
    folder = job.folder.parent.with_name(f"{job.folder.parent.name}.null") / job.folder.name
    control = MethodSettings(name=name, **arguments)
    return Job(folder=folder, settings=job.settings.model_copy(update={"method": control, "output_dir": str(folder)}))


def _is_run(name: str) -> bool:
    """A folder, which must then hold a run; anything else is a recipe."""
    return Path(name).is_dir()


def _with_settings(folder: str) -> tuple[Path, Settings]:
    return Path(folder), read_settings(Path(folder) / "settings.json")
