"""Where privileged readings put their credit: token readings of failed rollouts, aligned where each leaves a successful peer, to profiles (HSD, 2606.15576)."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy

from selfdistill.contexts import SuccessfulPeer
from selfdistill.diagnostics.drawing import GUIDE, bars, panels
from selfdistill.diagnostics.readings import TokenReading
from selfdistill.diagnostics.statistics import ratio, ratio_interval
from selfdistill.types import Group, Rollout

Align = Literal["shown", "nearest"]
WINDOW = 8
"""Tokens to either side of the divergence: the paper's."""
SPAN = 24
"""Tokens to either side that the profile shows."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The credit A_t = log pi(y_t | q, c, y_<t) - log pi(y_t | q, y_<t) of one context, in nats."""

    name: str
    rollouts: int
    """All that are taught."""
    mean: float
    """Mean of A_t over their tokens."""
    magnitude: float
    """Mean of |A_t|: the reading's loudness, which HSD's answer-only readings lose on tasks with terse answers."""
    aligned: int
    """Failed rollouts that leave a successful peer at a token tau."""
    inside: float
    """Share of their sum of |A_t| within `window` tokens of tau."""
    inside_ci95: tuple[float, float]
    flat: float
    """Share of their tokens there: what `inside` is where credit is spread evenly."""
    before: float
    """Share of |A_t| before tau."""
    offsets: tuple[int, ...]
    """t - tau, where at least a tenth of the aligned rollouts have a token."""
    signed: tuple[float, ...]
    """Mean A_t by offset."""
    absolute: tuple[float, ...]
    """Mean |A_t| by offset."""


@dataclass(frozen=True, kw_only=True)
class Credit:
    """Profiles by context, on the same rollouts."""

    window: int
    align: Align
    profiles: tuple[Profile, ...]


def credit(readings: Mapping[str, Sequence[TokenReading]], *, window: int = WINDOW, align: Align = "shown") -> Credit:
    """Profiles of several contexts. tau: the first token in which a failed rollout differs from a successful peer.

    [open] The peer is the one that HSD shows, or the success that agrees longest; mass is the sum of |A_t| over all aligned rollouts;
    a rollout that only ends earlier than its peer is not aligned. Raises ValueError where no rollout can be.
    """
    return Credit(window=window, align=align, profiles=tuple(_profile(name, found, window, PEERS[align]) for name, found in readings.items()))


def require_aligned(groups: Sequence[Group], align: Align) -> None:
    """Raises ValueError where no failed rollout has a successful peer to leave: there is no tau then, whatever reads them."""
    failed = [(r, g) for g in groups for r in g.rollouts if r.reward is not None and r.reward < 1]
    if not any((peer := PEERS[align](r, g)) and divergence_point(r, peer) is not None for r, g in failed):
        raise ValueError(f"none of the {len(failed)} failed rollouts has a successful peer to leave; choose other --steps")


def divergence_point(rollout: Rollout, peer: Rollout) -> int | None:
    """The first token of the rollout that is not the peer's; None where the peer begins with the whole rollout."""
    pairs = zip(rollout.completion_ids, peer.completion_ids, strict=False)
    shared = next((t for t, (own, other) in enumerate(pairs) if own != other), min(len(rollout.completion_ids), len(peer.completion_ids)))
    return shared if shared < len(rollout.completion_ids) else None


def _shown(rollout: Rollout, group: Group) -> Rollout | None:
    return SuccessfulPeer().find(rollout, group)


def _nearest(rollout: Rollout, group: Group) -> Rollout | None:
    """The success with the longest common beginning."""
    peers = [r for r in group.rollouts if r is not rollout and (r.reward or 0) >= 1]
    return max(peers, key=lambda peer: _shared(rollout, peer), default=None)


def _shared(rollout: Rollout, peer: Rollout) -> int:
    point = divergence_point(rollout, peer)
    return len(rollout.completion_ids) if point is None else point


PEERS: Mapping[Align, Callable[[Rollout, Group], Rollout | None]] = {"shown": _shown, "nearest": _nearest}


def _profile(name: str, readings: Sequence[TokenReading], window: int, find: Callable[[Rollout, Group], Rollout | None]) -> Profile:
    every = numpy.concatenate([r.log_ratio for r in readings])
    aligned = [(r, r.position - tau) for r in readings if (tau := _tau(r, find)) is not None]
    if not aligned:
        failed = sum((r.rollout.reward is not None and r.rollout.reward < 1) for r in readings)
        raise ValueError(f"none of the {failed} failed rollouts read by {name!r} has a successful peer to leave; choose other --steps")
    near = [abs(offset) <= window for _, offset in aligned]
    mass = [abs(r.log_ratio) for r, _ in aligned]
    inside, whole = [float(m[n].sum()) for m, n in zip(mass, near, strict=True)], [float(m.sum()) for m in mass]
    offsets, signed = _by_offset(aligned)
    return Profile(
        name=name,
        rollouts=len(readings),
        mean=float(every.mean()),
        magnitude=float(abs(every).mean()),
        aligned=len(aligned),
        inside=ratio(inside, whole),
        inside_ci95=ratio_interval(inside, whole, [r.problem for r, _ in aligned]),
        flat=ratio([float(n.sum()) for n in near], [float(len(n)) for n in near]),
        before=ratio([float(m[offset < 0].sum()) for m, (_, offset) in zip(mass, aligned, strict=True)], whole),
        offsets=offsets,
        signed=tuple(float(numpy.mean(v)) for v in signed),
        absolute=tuple(float(numpy.mean(numpy.abs(v))) for v in signed),
    )


def _tau(reading: TokenReading, find: Callable[[Rollout, Group], Rollout | None]) -> int | None:
    rollout = reading.rollout
    if rollout.reward is None or rollout.reward >= 1 or (peer := find(rollout, reading.group)) is None:
        return None
    return divergence_point(rollout, peer)


def _by_offset(aligned: Sequence[tuple[TokenReading, numpy.ndarray]]) -> tuple[tuple[int, ...], list[list[float]]]:
    """Credits by their place beside tau, where enough rollouts have one."""
    found: dict[int, list[float]] = defaultdict(list)
    for reading, offsets in aligned:
        for offset, value in zip(offsets.tolist(), reading.log_ratio.tolist(), strict=True):
            found[offset].append(value)
    kept = [offset for offset in sorted(found) if abs(offset) <= SPAN and len(found[offset]) * 10 >= len(aligned)]
    return tuple(kept), [found[offset] for offset in kept]


def table(result: Credit) -> list[tuple[str, ...]]:
    rows = [("context", "rollouts", "|A|, nats", "mean A", "aligned", f"mass within ±{result.window}", "if flat", "before")]
    for p in result.profiles:
        low, high = p.inside_ci95
        inside = f"{p.inside:.1%} [{low:.1%}, {high:.1%}]"
        rows.append((p.name, str(p.rollouts), f"{p.magnitude:.3f}", f"{p.mean:+.3f}", str(p.aligned), inside, f"{p.flat:.1%}", f"{p.before:.1%}"))
    return rows


def picture(result: Credit, path: Path, *, title: str) -> None:
    """Loudness by offset in units of each context's own mean, signed credit, and loudness over all tokens."""
    with panels(path, 3, title=title, widths=(1.2, 1.2, 0.9)) as (shape, signed, loud):
        for p in result.profiles:
            own = numpy.mean(p.absolute) or 1.0
            shape.plot(p.offsets, numpy.array(p.absolute) / own, marker=".", label=f"{p.name}: {p.inside:.0%} within ±{result.window}")
            signed.plot(p.offsets, p.signed, marker=".", label=p.name)
        for axis in (shape, signed):
            axis.axvspan(-result.window, result.window, color="gray", alpha=0.12)
            axis.axvline(0, **GUIDE)
            axis.set_xlabel(f"token, from where a failed rollout leaves its {result.align} peer")
        shape.axhline(1, **GUIDE)
        shape.set(title=f"shape (evenly spread: {result.profiles[0].flat:.0%} within ±{result.window})", ylabel="|A|, times its own mean")
        shape.legend(framealpha=0.7, fontsize=8)
        signed.axhline(0, **GUIDE)
        signed.set(title="mean A", ylabel="nats")
        bars(loud, {p.name: p.magnitude for p in result.profiles}, form="{:.3f}")
        loud.set(title="mean |A|, all tokens of all rollouts", xlabel="nats a token")
