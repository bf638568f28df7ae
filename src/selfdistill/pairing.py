"""Which runs belong together: settings of runs in, groups of seeds out, each control beside the method that it controls."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

from selfdistill.api import members
from selfdistill.config import INCIDENTAL, MethodSettings, Settings
from selfdistill.methods import CONTROLS, shuffled_context

ARGUMENTS = {f.__name__: tuple(signature(f).parameters)[1:] for f in (shuffled_context, *CONTROLS)}
"""What each control takes beside the method."""
FREE = ("seed", *INCIDENTAL, "eval")
"""Settings in which seeds of one method may differ; those of `eval` are compared apart."""
MEASURED = ("num_problems", "num_samples", "conversation", "temperature", "top_p", "max_completion_length", "thinking")
"""Settings of `eval` that all runs of a table share."""


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """Runs that differ in nothing but their seed."""

    name: str
    settings: Settings
    folders: Mapping[int, Path]
    control_of: str | None = None
    peer_of: str | None = None
    """Of the other model of a pair: the first one's group."""

    @property
    def method(self) -> str:
        """As it would be written in Python."""
        return written(self.settings.method)


def written(method: MethodSettings) -> str:
    """A method and its arguments as a call; of a part's call, the part."""
    arguments = ", ".join(f"{key}={value}" for key, value in method.arguments.items())
    return f"{method.name}{f'({arguments})' if arguments else ''}"


def group(runs: Sequence[tuple[Path, Settings]], nulls: Sequence[tuple[Path, Settings]] = ()) -> list[Seeds]:
    """Runs by their settings without the seed. A control is known by its wrapper; one in `nulls` by its method's name, whatever its arguments.

    Raises ValueError where runs cannot stand in one table, one seed is there twice, or a null belongs to no method or to several.
    """
    _check_comparable([*runs, *nulls])
    known = _seeds(runs)
    found = [replace(one, control_of=owner.name if (owner := _controlled(one, known)) else None) for one in known]
    methods = [one for one in found if one.control_of is None]
    return found + [replace(one, control_of=_owner(one, methods).name) for one in _seeds(nulls, taken=[one.name for one in found])]


def with_peers(groups: Sequence[Seeds]) -> list[Seeds]:
    """Behind every group of pairs that of their other models, whose runs lie in the folders of the first ones."""
    found: list[Seeds] = []
    for one in groups:
        found.append(one)
        if one.settings.peer and not any((folder.parent / "settings.json").exists() for folder in one.folders.values()):
            inside = {seed: folder / "peer" for seed, folder in one.folders.items()}
            owner, (_, settings) = one.control_of and f"{one.control_of}, peer", members(one.settings)
            found.append(Seeds(name=f"{one.name}, peer", settings=settings, folders=inside, control_of=owner, peer_of=one.name))
    return found


def same_but_seed(settings: Settings) -> dict[str, Any]:
    """What all seeds of a method share; a teacher of each seed's own, External("runs/grpo_0/..."), is one teacher."""
    shared = {key: value for key, value in settings.model_dump().items() if key not in FREE}
    return shared | {"method": {key: _seedless(value, settings.seed) for key, value in shared["method"].items()}}


def _seedless(value: Any, seed: int) -> Any:
    """An argument without the seed in the path of its teacher."""
    if not isinstance(value, str) or not value.startswith("External("):
        return value
    return re.sub(r"[^/\"']+", lambda part: _seed_of(seed).sub(r"\1SEED", part[0]), value.replace("'", '"'))


def uncontrolled(method: MethodSettings) -> MethodSettings | None:
    """The method inside a control, without the control's own arguments: shuffled_context(opsd) -> opsd; None for what holds no control."""
    names = re.findall(r"[^()]+", method.name)
    controls = [name for name in names if name in ARGUMENTS]
    if not controls:
        return None
    rest = [name for name in names if name not in ARGUMENTS]
    own = {argument for name in controls for argument in ARGUMENTS[name]}
    arguments = {key: value for key, value in method.arguments.items() if key not in own}
    return MethodSettings(name="(".join(rest) + ")" * (len(rest) - 1), **arguments)


def _seeds(runs: Sequence[tuple[Path, Settings]], *, taken: Sequence[str] = ()) -> list[Seeds]:
    """In the order in which each group comes first."""
    groups: list[tuple[dict[str, Any], dict[int, Path], Settings]] = []
    for folder, settings in runs:
        key = same_but_seed(settings)
        entry = next((known for known in groups if known[0] == key), None)
        if entry is None:
            groups.append(entry := (key, {}, settings))
        if settings.seed in entry[1]:
            raise ValueError(f"{entry[1][settings.seed]} and {folder} are the same run twice, seed {settings.seed} under the same settings; give one of them")
        entry[1][settings.seed] = folder
    names = [_label(*next(iter(folders.items()))) for _, folders, _ in groups]
    clear = [name if [*names, *taken].count(name) == 1 else str(next(iter(g[1].values()))) for name, g in zip(names, groups, strict=True)]
    return [Seeds(name=name, settings=settings, folders=folders) for name, (_, folders, settings) in zip(clear, groups, strict=True)]


def _seed_of(seed: int) -> re.Pattern[str]:
    """The seed at the end of a folder's name."""
    return re.compile(rf"(^|[-_.])(seed[-_.]?)?{seed}$")


def _label(seed: int, folder: Path) -> str:
    """A folder's name without its seed: runs/opsd_0 and runs/opsd/0 are both opsd."""
    name = _seed_of(seed).sub("", folder.name)
    return name or folder.absolute().parent.name


def _controlled(one: Seeds, among: Sequence[Seeds]) -> Seeds | None:
    """The group of the method inside a control, under otherwise equal settings."""
    inner = uncontrolled(one.settings.method)
    if inner is None:
        return None
    wanted = same_but_seed(one.settings.model_copy(update={"method": inner}))
    return next((other for other in among if same_but_seed(other.settings) == wanted), None)


def _owner(null: Seeds, methods: Sequence[Seeds]) -> Seeds:
    """Whose null control one given by hand is: the method of its name that differs in arguments alone."""
    if owner := _controlled(null, methods):
        return owner
    name = (uncontrolled(null.settings.method) or null.settings.method).name
    alike = [m for m in methods if m.settings.method.name == name]
    same = [m for m in alike if same_but_seed(m.settings) | {"method": 0} == same_but_seed(null.settings) | {"method": 0}]
    if len(same) != 1:
        beside = ", ".join(m.name for m in same or alike) or "none"
        raise ValueError(
            f"--null {null.name} ({null.method}) must belong to exactly one method of the same name that differs from it in the method's arguments alone; "
            f"of that name there is {beside}: give that method's runs and no others of its name"
        )
    return same[0]


def _check_comparable(runs: Sequence[tuple[Path, Settings]]) -> None:
    """Raises ValueError where two runs have another model, task or way of being measured."""
    if not runs:
        raise ValueError("there is nothing to compare; give recipes, or folders of finished runs")
    first_folder, first = runs[0]
    shared = {"model.path": first.model.path, "task": first.task.model_dump()} | {f"eval.{key}": getattr(first.eval, key) for key in MEASURED}
    for folder, settings in runs[1:]:
        own = {"model.path": settings.model.path, "task": settings.task.model_dump()} | {f"eval.{key}": getattr(settings.eval, key) for key in MEASURED}
        if differing := [key for key in shared if own[key] != shared[key]]:
            key = differing[0]
            raise ValueError(f"{first_folder} and {folder} differ in {key} ({shared[key]!r} and {own[key]!r}) and cannot stand in one table")
