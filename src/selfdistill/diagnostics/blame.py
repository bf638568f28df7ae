"""Whether a reading blames failing tokens only: token readings and verdicts in, credit before, in and after the first wrong step out (2606.11173)."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy

from selfdistill.diagnostics.drawing import GUIDE, bars, panels
from selfdistill.diagnostics.readings import TokenReading
from selfdistill.diagnostics.statistics import ratio, ratio_interval
from selfdistill.steps import step_of_token
from selfdistill.tasks import Verdict, first_wrong
from selfdistill.types import Problem

PLACES = ("right rollout", "before", "wrong step", "after")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Tokens of one place, over all rollouts."""

    name: str
    tokens: int
    mean: float
    """Mean credit A_t = log T(y_t) - log S(y_t) in nats."""
    magnitude: float
    """Mean |A_t|."""
    share: float
    """Of the sum of |A_t| over all tokens."""
    share_ci95: tuple[float, float]
    """Percentile bootstrap over problems."""
    even: float
    """Share of the tokens: what `share` is where credit is spread evenly."""


@dataclass(frozen=True, kw_only=True)
class Blame:
    method: str
    failing: float
    """Share of the sum of |A_t| in the first wrong step and after it."""
    failing_ci95: tuple[float, float]
    places: tuple[Place, ...]


def blame(
    readings: Sequence[TokenReading], *, method: str, judge: Callable[[Problem, str], Sequence[Verdict]], decode: Callable[[Sequence[int]], str]
) -> Blame:
    """[open] Failing tokens are those of the first wrong step and behind it; mass is the sum of |A_t|. Raises ValueError where no step is wrong."""
    places = [_places(r, judge(r.group.problem, r.rollout.text), decode) for r in readings]
    if not any((p == PLACES.index("wrong step")).any() for p in places):
        raise ValueError(f"none of the {len(readings)} rollouts that are read has a wrong step, so there is nothing to blame; choose other --steps")
    mass, problems = [abs(r.log_ratio) for r in readings], [r.problem for r in readings]
    whole = [float(m.sum()) for m in mass]
    failing = [float(m[p >= PLACES.index("wrong step")].sum()) for m, p in zip(mass, places, strict=True)]
    signed, every = numpy.concatenate([r.log_ratio for r in readings]), numpy.concatenate(places)

    def place(k: int, name: str) -> Place:
        own = [float(m[p == k].sum()) for m, p in zip(mass, places, strict=True)]
        here = signed[every == k]
        mean, magnitude = (float(here.mean()), float(abs(here).mean())) if len(here) else (float("nan"), float("nan"))
        share, even = ratio(own, whole), float((every == k).mean())
        return Place(name=name, tokens=len(here), mean=mean, magnitude=magnitude, share=share, share_ci95=ratio_interval(own, whole, problems), even=even)

    found = tuple(place(k, name) for k, name in enumerate(PLACES))
    return Blame(method=method, failing=ratio(failing, whole), failing_ci95=ratio_interval(failing, whole, problems), places=found)


def require_wrong(verdicts: Collection[Sequence[Verdict]]) -> None:
    """Raises ValueError where no rollout has a wrong step."""
    if not any(verdict.wrong for steps in verdicts for verdict in steps):
        raise ValueError(f"none of the {len(verdicts)} rollouts has a wrong step, so there is nothing to blame; choose other --steps")


def _places(reading: TokenReading, verdicts: Sequence[Verdict], decode: Callable[[Sequence[int]], str]) -> numpy.ndarray:
    """The index in PLACES of every trained token."""
    if (wrong := first_wrong(verdicts)) is None:
        return numpy.zeros(len(reading.position), dtype=int)
    text, ends, at = reading.rollout.text, [], 0
    for verdict in verdicts:
        # a step ends where its words do, so what separates steps belongs to the one behind; a blank one ends where the one before it does
        at = max(at, text.find(verdict.text, at) + len(verdict.text))
        ends.append(at)
    pieces = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    step = numpy.array(step_of_token(reading.rollout.completion_ids, pieces, decode))[reading.position]
    return numpy.where(step < wrong, 1, numpy.where(step == wrong, 2, 3))


def table(result: Blame) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [(f"tokens under {result.method}", "number", "mean A, nats", "mean |A|", "share of |A|", "if even")]
    for p in result.places:
        low, high = p.share_ci95
        means = (f"{p.mean:+.4f}", f"{p.magnitude:.4f}") if p.tokens else ("", "")
        rows.append((p.name, str(p.tokens), *means, f"{p.share:.1%} [{low:.1%}, {high:.1%}]", f"{p.even:.1%}"))
    low, high = result.failing_ci95
    return [*rows, ("the wrong step and after", "", "", "", f"{result.failing:.1%} [{low:.1%}, {high:.1%}]", "")]


def picture(result: Blame, path: Path, *, title: str) -> None:
    """Loudness and sign of the credit by place."""
    with panels(path, 2, title=title) as (loud, signed):
        bars(loud, {p.name: p.magnitude for p in result.places}, form="{:.4f}")
        loud.set(title=f"mean |A| under {result.method}", xlabel="nats a token")
        bars(signed, {p.name: p.mean for p in result.places}, form="{:+.4f}")
        signed.axvline(0, **GUIDE)
        signed.set(title="mean A", xlabel="nats a token")
