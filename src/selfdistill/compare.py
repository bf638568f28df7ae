"""Methods side by side: evaluations of several methods and seeds in, one row a method out, with its gain, its controls and what they cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy
from jaxtyping import Float
from scipy.stats import bootstrap

from selfdistill.evaluate import RESAMPLED_VALUES, RESAMPLES, Comparison, Evaluation, compare, interval, require_pairs

TOKENS_APART = 0.05
"""Rows whose rollout tokens are further than this from the table's median are named."""
Scores = Float[numpy.ndarray, "seeds problems"]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One training seed: base and trained model on the same problems, and what the run took."""

    base: Evaluation
    trained: Evaluation
    rollout_tokens: float
    """That the machine wrote while it trained."""
    seconds: float
    """Of all training steps."""
    training_entropy: float | None = None
    """Nats a token of the student on the last step's rollouts, before its update."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method as it was run, by seed; a control names the entry that it controls."""

    name: str
    method: str
    seeds: Mapping[int, Trained]
    control_of: str | None = None
    peer_of: str | None = None
    """The entry of the model beside which this one learned."""
    failed: Mapping[int, str] | None = None
    """Why seeds are missing."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of two mean accuracies, paired by seed and problem."""

    mean: float
    ci95: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Row:
    """An entry's figures: means over its seeds, paired differences of avg@k, and what each seed gained."""

    name: str
    method: str
    control_of: str | None
    peer_of: str | None
    seeds: tuple[int, ...]
    failed: Mapping[int, str]
    figures: Mapping[str, float | None]
    """Means over seeds, by name; those of the base begin with `base_`."""
    gain: Difference | None
    """Trained minus base; None where no seed finished."""
    gains: Mapping[int, float]
    """By seed."""
    over_reference: Difference | None
    """Minus the reference's trained model; None for the reference itself, for controls, and where there is no reference."""
    under_method: Difference | None
    """The method's trained model minus this control's; None for what is no control."""
    versus_base: Mapping[int, Comparison]


def side_by_side(entries: Sequence[Entry], *, reference: str = "opsd") -> list[Row]:
    """One row an entry, the largest gain first, every control behind its method and every peer behind its pair's first model.

    A peer is paired with the reference's peer, which began with the same weights. Raises ValueError where evaluations cannot be paired.
    """
    named = {entry.name: entry for entry in entries}
    first = reference_of(entries, reference)
    beside = next((entry for entry in entries if first and entry.peer_of == first.name), None)
    rows = [_row(entry, beside if entry.peer_of else first, named.get(entry.control_of or "")) for entry in entries]
    ordered = sorted((row for row in rows if row.control_of is None and row.peer_of is None), key=lambda row: -row.gain.mean if row.gain else 1.0)
    models = [r for own in ordered for r in (own, *(peer for peer in rows if peer.peer_of == own.name))]
    return [r for own in models for r in (own, *(control for control in rows if control.control_of == own.name))]


def reference_of(entries: Sequence[Entry], name: str) -> Entry | None:
    """The entry of that name, else the first that runs the method of that name."""
    methods = [entry for entry in entries if entry.control_of is None and entry.peer_of is None]
    own = [entry for entry in methods if entry.name == name]
    alike = [entry for entry in methods if entry.method.partition("(")[0] == name]
    return next(iter([*own, *alike]), None)


def tokens_apart(rows: Sequence[Row]) -> dict[str, float]:
    """By name, how far a row's rollout tokens are from the median of all, of those that are further than TOKENS_APART."""
    tokens = {row.name: found for row in rows if (found := row.figures.get("rollout_tokens")) is not None}
    middle = median(tokens.values()) if tokens else 0
    shares = {name: found / middle - 1 for name, found in tokens.items() if middle}
    return {name: share for name, share in shares.items() if abs(share) > TOKENS_APART}


def seeds_interval(differences: Scores) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean over seeds and problems, both drawn with replacement and crossed (Owen 2007); one seed: problems alone.

    Few seeds are drawn from few, so their share of the width is too small by (n - 1) / n for n of them.
    """
    if len(differences) == 1 or differences.max() == differences.min():
        return interval(differences.mean(axis=0).tolist())

    def mean(seeds: Any, problems: Any, axis: int) -> Any:
        return differences[seeds[..., :, None], problems[..., None, :]].mean(axis=(-2, -1))

    places = tuple(numpy.arange(n) for n in differences.shape)
    batch, rng = max(RESAMPLED_VALUES // differences.size, 1), numpy.random.default_rng(0)
    found = bootstrap(places, mean, n_resamples=RESAMPLES, batch=batch, method="percentile", vectorized=True, axis=-1, rng=rng)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _row(entry: Entry, reference: Entry | None, controlled: Entry | None) -> Row:
    beside = {seed: compare(run.base, run.trained) for seed, run in entry.seeds.items()}
    return Row(
        name=entry.name,
        method=entry.method,
        control_of=entry.control_of,
        peer_of=entry.peer_of,
        seeds=tuple(entry.seeds),
        failed=entry.failed or {},
        figures=_figures(entry, beside),
        gain=difference([(run.base, run.trained) for run in entry.seeds.values()]),
        gains={seed: found.difference for seed, found in beside.items()},
        over_reference=paired(reference, entry) if reference and reference is not entry and controlled is None else None,
        under_method=paired(entry, controlled) if controlled else None,
        versus_base=beside,
    )


def paired(one: Entry, other: Entry) -> Difference | None:
    """The other's trained models minus the one's, over the seeds that both have."""
    return difference([(one.seeds[seed].trained, other.seeds[seed].trained) for seed in one.seeds if seed in other.seeds])


def difference(pairs: Sequence[tuple[Evaluation, Evaluation]]) -> Difference | None:
    """Of the second ones over the first ones; None where there are none."""
    if not pairs:
        return None
    for one, other in pairs:
        require_pairs(one, other)
    if len({evaluation.problem_ids for pair in pairs for evaluation in pair}) > 1:
        raise ValueError("the seeds were measured on different problems, which cannot be paired; use the same task and task.seed for all")
    rows = numpy.stack([_by_problem(other) - _by_problem(one) for one, other in pairs])
    return Difference(mean=float(rows.mean()), ci95=seeds_interval(rows))


def _by_problem(evaluation: Evaluation) -> numpy.ndarray:
    return numpy.array([fmean(scores) for scores in evaluation.scores])


def _figures(entry: Entry, beside: Mapping[int, Comparison]) -> dict[str, float | None]:
    runs = list(entry.seeds.values())
    if not runs:
        return {}
    own = {
        "rollout_tokens": fmean(run.rollout_tokens for run in runs),
        "seconds": fmean(run.seconds for run in runs),
        "training_entropy": _mean([run.training_entropy for run in runs]),
        "rescued": fmean(found.rescued for found in beside.values()),
        "broken": fmean(found.broken for found in beside.values()),
        "majority_rescued": fmean(found.majority_rescued for found in beside.values()),
        "majority_broken": fmean(found.majority_broken for found in beside.values()),
    }
    trained, base = _of_models([run.trained for run in runs]), _of_models([run.base for run in runs])
    return trained | own | {f"base_{name}": value for name, value in base.items()}


def _of_models(evaluations: Sequence[Evaluation]) -> dict[str, float | None]:
    """Means over seeds; an interval is of one seed's problems and has none."""
    each = [evaluation.figures() for evaluation in evaluations]
    return {name: _mean([figures[name] for figures in each]) for name in each[0] if name != "ci95"}


def _mean(values: Sequence[float | None]) -> float | None:
    """None where one is missing."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None
