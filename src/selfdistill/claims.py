"""What the papers claim against what was measured: claims as data, finished runs and their diagnostics in, a figure with its interval and a verdict out."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from math import isfinite, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from scipy.stats import t as student_t

from selfdistill.compare import TOKENS_APART, Difference, Entry, difference, paired
from selfdistill.config import MethodSettings, Settings
from selfdistill.pairing import MEASURED, same_but_seed, uncontrolled, written
from selfdistill.recognition import innermost, is_of, unplaced

Verdict = Literal["holds", "does not hold", "cannot tell"]
Named = str | Mapping[str, Any]
"""A method as a recipe writes it: its name, or a table with arguments."""
MACHINE = tuple(f"model.{key}" for key in ("device", "attention", "layout", "gradient_checkpointing", "teacher_offload"))
ON_WHAT = (*MACHINE, "tokens_per_batch", "sampling.batch_size", "sampling.cuda_graphs")
"""Settings of how a machine does the same work."""
Column = Literal["testbed", "real model", ""]
COLUMNS: tuple[Column, ...] = ("testbed", "real model")
TESTBED = "arithmetic"
"""The testbed's task."""
VERDICTS: tuple[Verdict, ...] = ("holds", "does not hold", "cannot tell")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A directional claim, between two methods (`more`, `than`) or about a figure of a diagnostic (`diagnostic`, `value`).

    A method is written as in a recipe, as its name or as a table with arguments, and known in runs by what it builds (recognition.py).
    `than = "base"` is the model before training.
    """

    paper: str
    statement: str
    above: float | None = None
    """The figure lies above this: 0 where neither bound is given."""
    below: float | None = None
    seeds: int = 3
    """Fewer cannot tell."""
    more: Named = ""
    than: Named = ""
    instead: Named = ""
    """Where there is no run of `than`, what its place is shown by: another comparison than the claim's, which cannot tell."""
    equal_tokens: bool = False
    """The claim is about equal rollout tokens: shares further apart than TOKENS_APART cannot tell."""
    diagnostic: str = ""
    value: str = ""
    """A place in the diagnostic's result, `profiles.hsd.inside`; `minus` and `over` are others, taken off and divided by."""
    minus: str = ""
    over: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)
    """What must stand in the diagnostic's file, such as `checkpoint = 0`."""
    run: Named = ""
    """The method whose runs the diagnostic must be of. Where none is named, it is about what no training has touched: runs of any method."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seeds of one method under one model, task and evaluation, with what diagnostics found in each seed's folder."""

    settings: Settings
    entry: Entry
    diagnostics: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """By seed, the diagnostics' JSON files."""
    tiny: bool = False
    """The model is the shipped base or one of its kind, trained from scratch on the testbed's task: no pretrained language model."""

    @property
    def method(self) -> str:
        """As it would be written in Python."""
        return written(unplaced(self.settings.method))

    @property
    def label(self) -> str:
        """The name of its runs' folders, without the seed."""
        return Path(self.entry.name).name

    @property
    def column(self) -> Column:
        """Where its figures stand: the testbed is the tiny base on arithmetic; on another task such a base shows neither."""
        return "real model" if not self.tiny else "testbed" if self.settings.task.name == TESTBED else ""

    @property
    def bed(self) -> tuple[str, str]:
        """Model and task, as a reader knows them."""
        own = {key: value for key, value in self.settings.task.model_dump().items() if key not in ("name", "templates", "instruction")}
        return self.settings.model.path.rpartition("/")[2], self.settings.task.name + "".join(f", {key} {value}" for key, value in own.items())


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What was measured of a claim on one bed."""

    bed: tuple[str, str]
    column: Column
    of: str
    """The name under which its runs are listed."""
    mean: float
    ci95: tuple[float, float] | None
    """None where there is no interval: a single seed of a figure that has none over problems."""
    seeds: int
    tokens_apart: float = 0.0
    """Share by which the first method's rollout tokens exceed the second's."""
    differing: tuple[str, ...] = ()
    """Settings in which the two differ beyond what the claim is about, and who stands in for whom."""
    points: bool = False
    """A difference of accuracies, told in points."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    claim: Claim
    figures: tuple[tuple[Figure, Verdict], ...]
    """None of them: not measured, so it cannot be told."""


def read_claims() -> list[Claim]:
    """All claims of the papers, in their order."""
    text = files("selfdistill").joinpath("assets/claims.toml").read_text(encoding="utf-8")
    return [Claim(**{"paper": paper["name"], **row}) for paper in tomllib.loads(text)["paper"] for row in paper["claim"]]


def judge_claims(claims: Sequence[Claim], measured: Sequence[Measured]) -> list[Judged]:
    """Every claim with what was measured of it; beds in the order in which they are given."""
    found = []
    for claim in claims:
        figures = _of_diagnostic(claim, runs_of(claim.run, measured) if claim.run else measured) if claim.diagnostic else _between(claim, measured)
        found.append(Judged(claim=claim, figures=tuple((figure, verdict(claim, figure)) for figure in figures)))
    return found


def verdict(claim: Claim, figure: Figure) -> Verdict:
    """Where the interval lies wholly on one side of the claim's bound."""
    if figure.ci95 is None or untold(claim, figure):
        return "cannot tell"
    low, high = figure.ci95
    if claim.below is not None:
        return "holds" if high < claim.below else "does not hold" if low > claim.below else "cannot tell"
    bound = claim.above or 0.0
    return "holds" if low > bound else "does not hold" if high < bound else "cannot tell"


def untold(claim: Claim, figure: Figure) -> str:
    """Why a figure cannot tell wherever its interval lies: other settings, too few seeds, no interval, unequal tokens; empty where it could."""
    if figure.differing:
        return "; ".join(figure.differing)
    if figure.seeds < claim.seeds:
        return f"{figure.seeds} of {claim.seeds} seeds"
    if figure.ci95 is None:
        return "no interval"
    return f"rollout tokens {figure.tokens_apart:+.1%}" if claim.equal_tokens and abs(figure.tokens_apart) > TOKENS_APART else ""


def runs_of(named: Named, measured: Sequence[Measured]) -> list[Measured]:
    """The groups of runs that trained a claimed method."""
    return [one for one in measured if is_of(one.settings, _method(named))]


def _method(named: Named) -> MethodSettings:
    return MethodSettings(name=named) if isinstance(named, str) else MethodSettings(**named)


def _between(claim: Claim, measured: Sequence[Measured]) -> list[Figure]:
    """A figure for every group of the better method, against the most alike of the other one's; of unlike ones only where none of the bed is alike."""
    found = []
    others = [] if claim.than == "base" else [(one, "") for one in runs_of(claim.than, measured)]
    if claim.instead:
        others += [(one, f"{one.method} in place of {written(_method(claim.than))}") for one in runs_of(claim.instead, measured)]
    about = {key for named in (claim.more, claim.than) for key in _method(named).arguments}
    for one in runs_of(claim.more, measured):
        runs = one.entry.seeds
        if claim.than == "base":
            found += _figure(one, difference([(run.base, run.trained) for run in runs.values()]), seeds=list(runs))
            continue
        alike = [(other, why) for other, why in others if _bed_key(other) == _bed_key(one) and set(other.entry.seeds) & set(runs)]
        if not alike:
            continue
        differing = {id(other): (*([why] if why else []), *_apart(one.settings, other.settings, about)) for other, why in alike}
        other = min((m for m, _ in alike), key=lambda m: (len(differing[id(m)]), -len(set(m.entry.seeds) & set(runs)), m.method, differing[id(m)]))
        shared = [seed for seed in runs if seed in other.entry.seeds]
        wrote = [fmean(entry.seeds[seed].rollout_tokens for seed in shared) for entry in (one.entry, other.entry)]
        apart = wrote[0] / wrote[1] - 1 if wrote[1] else 0.0
        found += _figure(one, paired(other.entry, one.entry), seeds=shared, tokens_apart=apart, differing=differing[id(other)])
    alone = {figure.bed for figure in found if not figure.differing}
    return [figure for figure in found if not (figure.differing and figure.bed in alone)]


def _figure(one: Measured, found: Difference | None, *, seeds: Sequence[int], tokens_apart: float = 0.0, differing: tuple[str, ...] = ()) -> list[Figure]:
    """None where no seed finished."""
    if found is None:
        return []
    about = {"bed": one.bed, "column": one.column, "of": one.label, "seeds": len(seeds)}
    return [Figure(**about, mean=found.mean, ci95=found.ci95, tokens_apart=tokens_apart, differing=differing, points=True)]


def _bed_key(measured: Measured) -> tuple[Any, ...]:
    own = measured.settings
    decoding = [repr(getattr(own.eval, key)) for key in MEASURED]
    return own.model.path, repr(own.task.model_dump()), *decoding, *next(iter(measured.entry.seeds.values())).base.problem_ids


def _apart(one: Settings, other: Settings, about: set[str]) -> list[str]:
    """Settings beyond the method in which two runs differ, the seed aside; of one method's two forms, its arguments that the claim does not name too."""
    ours, theirs = (_flat(same_but_seed(settings)) for settings in (one, other))
    arguments = [uncontrolled(s.method) or s.method for s in (one, other)]
    if innermost(one.method) == innermost(other.method):
        shared = {f"method.{key}" for method in arguments for key in method.arguments if key not in about}
    else:
        # two methods that both learn from another model have the same one
        shared = {"method.teacher"} if all("External" in str(method.arguments.get("teacher")) for method in arguments) else set()
    beyond = [key for key in dict.fromkeys([*ours, *theirs]) if not key.startswith("method.") and key not in ON_WHAT]
    return [f"{key} {ours.get(key)} against {theirs.get(key)}" for key in [*beyond, *sorted(shared)] if ours.get(key) != theirs.get(key)]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def _of_diagnostic(claim: Claim, measured: Sequence[Measured]) -> list[Figure]:
    """A figure for every group of runs, the mean over its seeds, with the widest span of their intervals over problems, else Student's t over seeds."""
    found = []
    for one in measured:
        values = {}
        for seed, data in ((seed, data) for seed, written_by in one.diagnostics.items() for data in written_by):
            fits = data["diagnostic"] == claim.diagnostic and all(data.get(k, data["result"].get(k)) == v for k, v in claim.where.items())
            if fits and (value := _value(claim, data["result"])) is not None:
                values.setdefault(seed, value)
        if values:
            mean, ci95 = _pooled(list(values.values()))
            found.append(Figure(bed=one.bed, column=one.column, of=one.label, mean=mean, ci95=ci95, seeds=len(values)))
    return found


def _pooled(values: Sequence[tuple[float, tuple[float, float] | None]]) -> tuple[float, tuple[float, float] | None]:
    means, intervals = [mean for mean, _ in values], [ci for _, ci in values if ci is not None]
    mean, ci95 = fmean(means), None
    if len(intervals) == len(values):
        ci95 = min(low for low, _ in intervals), max(high for _, high in intervals)
    elif len(values) > 1:
        half = float(student_t.ppf(0.975, len(means) - 1)) * stdev(means) / sqrt(len(means))
        ci95 = mean - half, mean + half
    return mean, ci95


def _value(claim: Claim, result: Mapping[str, Any]) -> tuple[float, tuple[float, float] | None] | None:
    """The claim's figure in one file with its interval over problems; None where the file has none. A combined figure has no interval."""
    value, ci95 = _found(result, claim.value)
    combine: Mapping[str, Callable[[float, float], float]] = {claim.minus: lambda a, b: a - b, claim.over: lambda a, b: a / b}
    for path, together in combine.items():
        if path and value is not None:
            other, _ = _found(result, path)
            value, ci95 = (None if other is None else together(value, other)), None
    return None if value is None or not isfinite(value) else (value, ci95)


def _found(result: Any, path: str) -> tuple[float | None, tuple[float, float] | None]:
    """What stands at a path, where a list's items go by their name, kind, reference or checkpoint; with the interval beside it."""
    *outer, leaf = path.split(".")
    for key in outer:
        if isinstance(result, list):
            names = ("name", "kind", "reference", "checkpoint")
            result = next((item for item in result if key in [str(item[name]) for name in names if name in item]), {})
        else:
            result = result.get(key, {})
    value, interval = result.get(leaf), result.get(f"{leaf}_ci95", result.get("ci95"))
    return value, (float(interval[0]), float(interval[1])) if interval is not None and None not in interval else None
