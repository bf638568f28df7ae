"""Ratios and AUROCs with 95 % intervals over problems: rollouts of one problem are drawn together."""

import warnings
from collections.abc import Callable, Hashable, Sequence

import numpy
from jaxtyping import Bool, Float, Int
from scipy.stats import DegenerateDataWarning, bootstrap, mannwhitneyu

Array = numpy.ndarray
RESAMPLES = 1000


def ratio(parts: Sequence[float], wholes: Sequence[float]) -> float:
    """sum(parts) / sum(wholes); nan where there is nothing."""
    whole = float(numpy.sum(wholes))
    return float(numpy.sum(parts)) / whole if whole else float("nan")


def ratio_interval(parts: Sequence[float], wholes: Sequence[float], problems: Sequence[Hashable]) -> tuple[float, float]:
    """Percentile bootstrap over problems of `ratio`."""
    cluster = _numbered(problems)
    sums = [numpy.bincount(cluster, weights=values) for values in (parts, wholes)]

    def drawn(index: Int[Array, " clusters"]) -> float:
        return float(sums[0][index].sum() / sums[1][index].sum()) if sums[1][index].any() else float("nan")

    return _interval(drawn, len(sums[0]))


def auroc(scores: Float[Array, " items"], positive: Bool[Array, " items"]) -> float:
    """P(a positive item scores above a negative one), ties one half; nan where either kind is missing."""
    above, below = scores[positive], scores[~positive]
    if not len(above) or not len(below):
        return float("nan")
    return float(mannwhitneyu(above, below, method="asymptotic").statistic) / (len(above) * len(below))


def auroc_interval(scores: Float[Array, " items"], positive: Bool[Array, " items"], problems: Sequence[Hashable]) -> tuple[float, float]:
    """Percentile bootstrap over problems, over the draws that hold both kinds."""
    cluster = _numbered(problems)
    members = [numpy.flatnonzero(cluster == c) for c in range(cluster.max(initial=-1) + 1)]

    def drawn(index: Int[Array, " clusters"]) -> float:
        chosen = numpy.concatenate([members[c] for c in index])
        return auroc(scores[chosen], positive[chosen])

    return _interval(drawn, len(members))


def _interval(statistic: Callable[[Int[Array, " clusters"]], float], clusters: int) -> tuple[float, float]:
    if clusters < 2 or numpy.isnan(statistic(numpy.arange(clusters))):
        return float("nan"), float("nan")
    rng = numpy.random.default_rng(0)
    with warnings.catch_warnings():
        # equal problems have an interval without width, which scipy warns of
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap((numpy.arange(clusters),), statistic, n_resamples=RESAMPLES, vectorized=False, method="percentile", rng=rng)
    drawn = found.bootstrap_distribution[~numpy.isnan(found.bootstrap_distribution)]
    low, high = numpy.percentile(drawn, [2.5, 97.5]) if len(drawn) else (float("nan"), float("nan"))
    return float(low), float(high)


def _numbered(names: Sequence[Hashable]) -> Int[Array, " items"]:
    """Equal names as equal numbers from 0."""
    known: dict[Hashable, int] = {}
    return numpy.array([known.setdefault(name, len(known)) for name in names], dtype=int)
