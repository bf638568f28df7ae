"""What the papers claim against what was measured: claims as data, finished runs and their diagnostics in, a figure with its interval and a verdict out."""

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from math import isfinite, sqrt
from statistics import fmean, stdev
from typing import Any, Literal

from scipy.stats import t as student_t

from selfdistill.compare import TOKENS_APART, Difference, Entry, difference, paired
from selfdistill.config import MethodSettings, Settings
from selfdistill.pairing import same_but_seed

Verdict = Literal["holds", "does not hold", "cannot tell"]
VERDICTS: tuple[Verdict, ...] = ("holds", "does not hold", "cannot tell")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A directional claim, between two methods (`more`, `than`) or about a figure of a diagnostic (`diagnostic`, `value`).

    A method is written as after --method; with arguments, `rcsd(rubrics=RandomRubric)`, it is the run whose arguments begin so, and the bare
    name is then every other one. `than = "base"` is the model before training.
    """

    paper: str
    statement: str
    above: float | None = None
    """The figure lies above this: 0 where neither bound is given."""
    below: float | None = None
    seeds: int = 3
    """Fewer cannot tell."""
    more: str = ""
    than: str = ""
    equal_tokens: bool = False
    """The claim is about equal rollout tokens: shares further apart than TOKENS_APART cannot tell."""
    diagnostic: str = ""
    value: str = ""
    """A place in the diagnostic's result, `profiles.hsd.inside`; `minus` and `over` are others, taken off and divided by."""
    minus: str = ""
    over: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)
    """What must stand in the diagnostic's file, such as `checkpoint = 0`."""
    run: str = ""
    """The method whose runs the diagnostic must be of; of any run where none is named."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seeds of one method under one model, task and evaluation, with what diagnostics found in each seed's folder."""

    settings: Settings
    entry: Entry
    diagnostics: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """By seed, the diagnostics' JSON files."""

    @property
    def bed(self) -> tuple[str, str]:
        """Model and task, as a reader knows them."""
        own = {key: value for key, value in self.settings.task.model_dump().items() if key not in ("name", "templates", "instruction")}
        return self.settings.model.path.rpartition("/")[2], self.settings.task.name + "".join(f", {key} {value}" for key, value in own.items())


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What was measured of a claim on one bed."""

    bed: tuple[str, str]
    of: str
    """Between what, where that is not in the claim's own words."""
    mean: float
    ci95: tuple[float, float] | None
    """None where there is no interval: a single seed of a figure that has none over problems."""
    seeds: int
    problems: int | None
    tokens_apart: float = 0.0
    """Share by which the first method's rollout tokens exceed the second's."""
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
    names = {name for claim in claims for name in (claim.more, claim.than, claim.run) if name}
    owned = {name: [m for m in measured if _owner(m.settings.method, names) == name] for name in names}
    found = []
    for claim in claims:
        figures = _of_diagnostic(claim, owned[claim.run] if claim.run else measured) if claim.diagnostic else _between(claim, owned)
        found.append(Judged(claim=claim, figures=tuple((figure, verdict(claim, figure)) for figure in figures)))
    return found


def verdict(claim: Claim, figure: Figure) -> Verdict:
    """Where the interval lies wholly on one side of the claim's bound; fewer seeds than stated, no interval or unequal tokens cannot tell."""
    uneven = claim.equal_tokens and abs(figure.tokens_apart) > TOKENS_APART
    if figure.ci95 is None or figure.seeds < claim.seeds or uneven:
        return "cannot tell"
    low, high = figure.ci95
    if claim.below is not None:
        return "holds" if high < claim.below else "does not hold" if low > claim.below else "cannot tell"
    bound = claim.above or 0.0
    return "holds" if low > bound else "does not hold" if high < bound else "cannot tell"


def unplaced(settings: Settings) -> Settings:
    """The same with another model's folder taken out of the method's arguments: a teacher trained beside each seed is one teacher."""
    arguments = {
        key: re.sub(r"External\([^)]*\)", "External()", value) if isinstance(value, str) else value for key, value in settings.method.arguments.items()
    }
    return settings.model_copy(update={"method": MethodSettings(name=settings.method.name, **arguments)})


def _owner(method: MethodSettings, names: set[str]) -> str | None:
    """The most specific of the names that are this method's."""
    return max((name for name in names if _is(method, name)), key=len, default=None)


def _is(method: MethodSettings, name: str) -> bool:
    bare, _, wanted = name.removesuffix(")").partition("(") if "=" in name else (name, "", "")
    asked = [argument.strip().partition("=") for argument in wanted.split(";") if argument]
    return method.name == bare and all(str(method.arguments.get(key, "")).startswith(value) for key, _, value in asked)


def _between(claim: Claim, owned: Mapping[str, Sequence[Measured]]) -> list[Figure]:
    """A figure for every group of the better method, against the most alike of the other one's."""
    found = []
    for one in owned.get(claim.more, ()):
        runs = one.entry.seeds
        if claim.than == "base":
            found += _figure(one, difference([(run.base, run.trained) for run in runs.values()]), seeds=list(runs), of=f"`{one.entry.method}` - base")
            continue
        alike = [m for m in owned.get(claim.than, ()) if _bed_key(m) == _bed_key(one) and set(m.entry.seeds) & set(runs)]
        if alike:
            other = min(alike, key=lambda m: len(_apart(one.settings, m.settings)))
            shared = [seed for seed in runs if seed in other.entry.seeds]
            written = [fmean(entry.seeds[seed].rollout_tokens for seed in shared) for entry in (one.entry, other.entry)]
            apart = written[0] / written[1] - 1 if written[1] else 0.0
            found += _figure(one, paired(other.entry, one.entry), seeds=shared, of=_named(one, other), tokens_apart=apart)
    return found


def _figure(one: Measured, found: Difference | None, *, seeds: Sequence[int], of: str, tokens_apart: float = 0.0) -> list[Figure]:
    """None where no seed finished."""
    if found is None:
        return []
    problems = len(one.entry.seeds[seeds[0]].base.scores)
    return [Figure(bed=one.bed, of=of, mean=found.mean, ci95=found.ci95, seeds=len(seeds), problems=problems, tokens_apart=tokens_apart, points=True)]


def _named(one: Measured, other: Measured) -> str:
    """Both sides as they were run, with the settings in which they differ beyond the method."""
    differing = ", ".join(f"{key} {ours} against {theirs}" for key, (ours, theirs) in _apart(one.settings, other.settings).items() if "method." not in key)
    return f"`{one.entry.method}` - `{other.entry.method}`" + (f"; {differing}" if differing else "")


def _bed_key(measured: Measured) -> tuple[Any, ...]:
    own = measured.settings
    return own.model.path, repr(own.task.model_dump()), *next(iter(measured.entry.seeds.values())).base.problem_ids


def _apart(one: Settings, other: Settings) -> dict[str, tuple[Any, Any]]:
    """Settings in which two runs differ, the seed and the method's name aside."""
    ours, theirs = _flat(same_but_seed(one)), _flat(same_but_seed(other))
    keys = [key for key in [*ours, *(k for k in theirs if k not in ours)] if key != "method.name"]
    return {key: (ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def _of_diagnostic(claim: Claim, measured: Sequence[Measured]) -> list[Figure]:
    """One figure a bed: the mean over seeds, each seed once, with the widest span of their intervals over problems, else Student's t over seeds."""
    beds: dict[tuple[str, str], dict[int, tuple[float, tuple[float, float] | None]]] = {}
    for one in measured:
        for seed, data in ((seed, data) for seed, found in one.diagnostics.items() for data in found):
            fits = data["diagnostic"] == claim.diagnostic and all(data.get(k, data["result"].get(k)) == v for k, v in claim.where.items())
            if fits and (value := _value(claim, data["result"])) is not None:
                beds.setdefault(one.bed, {}).setdefault(seed, value)
    return [_pooled(bed, list(found.values())) for bed, found in beds.items()]


def _pooled(bed: tuple[str, str], values: Sequence[tuple[float, tuple[float, float] | None]]) -> Figure:
    means, intervals = [mean for mean, _ in values], [ci for _, ci in values if ci is not None]
    mean, ci95 = fmean(means), None
    if len(intervals) == len(values):
        ci95 = min(low for low, _ in intervals), max(high for _, high in intervals)
    elif len(values) > 1:
        half = float(student_t.ppf(0.975, len(means) - 1)) * stdev(means) / sqrt(len(means))
        ci95 = mean - half, mean + half
    return Figure(bed=bed, of="", mean=mean, ci95=ci95, seeds=len(values), problems=None)


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
