"""The page's token view of one run: a selection of rollouts in, their texts, prompts, peers and coloured tokens as plain JSON out."""

import re
from collections.abc import Sequence
from typing import Any

import numpy

from selfdistill.contexts import without_thinking
from selfdistill.errors import sentence
from selfdistill.report.selection import Picked, Row, Selection, pick
from selfdistill.report.signals import QUANTITIES, Decode, Quantity, Read, decoder, nearest_weights, pieces, read_step, restore
from selfdistill.runs import SavedRun
from selfdistill.trainer import Trainer

LIMIT = 0.99
"""The colour is full at this quantile of a quantity's size, so that one outlier does not bleach the rest."""


def token_view(run: SavedRun, selection: Selection, *, colourless: str | None) -> dict[str, Any]:
    """`colourless` says why no model is to be loaded, None where it is. A model that is gone is a remark on the page, not an error.

    Raises ValueError for rollouts of a step that is not kept, of an unknown schema or of another tokenizer, and for a checkpoint's unknown format.
    """
    picked = pick(run, selection)
    if not picked.steps:
        return {"note": "This run keeps no rollouts.", "steps": [], "quantities": [], "left_out": 0}
    trainer, note = (None, colourless) if colourless else _trainer(run)
    steps = _read(run, picked, trainer) if trainer else [_unread(step, groups) for step, groups in sorted(picked.steps.items())]
    return {"note": note, "steps": steps, "quantities": _quantities(steps), "left_out": picked.left_out}


def _trainer(run: SavedRun) -> tuple[Trainer | None, str | None]:
    """The run as it began, or why it cannot be had: its model, its teacher or the user's own code is no longer there."""
    from selfdistill.api import assemble

    try:
        return assemble(run.settings).trainer, None
    except (ValueError, OSError, ImportError) as error:
        return None, f"Tokens have no colours here, since the run's model cannot be loaded again: {sentence(error) or error}"


def _read(run: SavedRun, picked: Picked, trainer: Trainer) -> list[dict[str, Any]]:
    """Every step by the weights nearest to those that wrote it, earlier ones first, so that each checkpoint is loaded once."""
    found, at, decode = [], 0, decoder(trainer.policy)
    for step, groups in sorted(picked.steps.items()):
        nearest = nearest_weights(run, step)
        if nearest != at:
            restore(trainer, run, nearest)
            at = nearest
        found.append(_step(step, groups, reads=read_step(trainer, groups), decode=decode) | {"weights": at})
    return found


def _unread(step: int, groups: Sequence[Sequence[Row]]) -> dict[str, Any]:
    return _step(step, groups, reads=[[[] for _ in rows] for rows in groups], decode=None) | {"weights": None}


def _step(step: int, groups: Sequence[Sequence[Row]], *, reads: Sequence[Sequence[Sequence[Read]]], decode: Decode | None) -> dict[str, Any]:
    gaps = [r.gap for group in reads for rollout in group for r in rollout[:1]]
    return {
        "step": step,
        "gap": _rounded(float(numpy.mean(gaps))) if gaps else None,
        "problems": [_problem(rows, found, decode) for rows, found in zip(groups, reads, strict=True)],
    }


def _problem(rows: Sequence[Row], reads: Sequence[Sequence[Read]], decode: Decode | None) -> dict[str, Any]:
    return {
        "id": rows[0]["problem_id"],
        "answer": rows[0]["answer"],
        "rollouts": [_rollout(row, found, rows, decode) for row, found in zip(rows, reads, strict=True)],
    }


def _rollout(row: Row, reads: Sequence[Read], rows: Sequence[Row], decode: Decode | None) -> dict[str, Any]:
    """Without a model its words stand for tokens, and teachers are what the file recorded."""
    ids = row["completion_ids"]
    count = len(ids)
    trained = row["trained"] if row["trained"] is not None else list(range(count))
    recorded = [{"views": views, "values": {}} for views in row["contexts"]] or [{"views": {}, "values": {}}]
    return {
        "prompt": row["prompt"],
        "reward": row["reward"],
        "shaping": row["shaping"],
        "advantage": _rounded(reads[0].advantage) if reads else None,
        "truncated": row["truncated"],
        "length": count,
        "tokens": pieces(ids, decode=decode) if decode else re.findall(r"\s*\S+", row["text"]),
        "ids": ids if decode else None,
        "teachers": [{"views": r.views, "values": {name: _spread(v, trained, count) for name, v in r.values.items()}} for r in reads] or recorded,
        "feedback": {name: text for name, text in row["feedback"].items() if text},
        "peer": _peer(row, rows),
    }


def _peer(row: Row, rows: Sequence[Row]) -> dict[str, Any] | None:
    """The rollout of the group whose text a teacher read, else its first other success; its place, and whether it was shown."""
    read = "\n".join(m["content"] for views in row["contexts"] for view in views.values() for m in view["messages"])
    others = [(i, r) for i, r in enumerate(rows) if r is not row and (r["reward"] or 0) >= 1]
    shown = [i for i, r in others if (text := without_thinking(r["text"])) and text in read]
    place = next(iter([*shown, *(i for i, _ in others)]), None)
    return None if place is None else {"place": place, "shown": bool(shown)}


def _spread(values: Sequence[float], trained: Sequence[int], count: int) -> list[float | None]:
    """A number a token of the completion; None where it is not trained."""
    found: list[float | None] = [None] * count
    for place, value in zip(trained, values, strict=True):
        found[place] = _rounded(value)
    return found


def _quantities(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that some shown rollout has, with the size at which their colour is full."""
    sizes: dict[str, list[float]] = {}
    least: dict[str, float] = {}
    for teacher in (t for s in steps for p in s["problems"] for r in p["rollouts"] for t in r["teachers"]):
        for name, values in teacher["values"].items():
            there = [v for v in values if v is not None]
            sizes.setdefault(name, []).extend(map(abs, there))
            least[name] = min([least.get(name, 0.0), *there])
    order = [*(name for name in QUANTITIES if name in sizes), *(name for name in sizes if name not in QUANTITIES)]
    return [_described(name, sizes[name], least[name]) for name in order]


def _described(name: str, sizes: Sequence[float], least: float) -> dict[str, Any]:
    written = Quantity(name=name, unit="", signed=True, about="written by a feedback stage")
    quantity = QUANTITIES.get(name, written)
    limit = float(numpy.quantile(sizes, LIMIT)) if sizes else 0.0
    signed = quantity.signed and (least < 0 or name in ("credit", "log_ratio"))
    full = _rounded(limit or max(sizes, default=0.0)) or 1.0
    return {"key": name, "name": quantity.name, "unit": quantity.unit, "about": quantity.about, "signed": signed, "limit": full}


def _rounded(value: float | None) -> float | None:
    """Three digits, without a point where there is nothing behind it; None for what is not finite, since JSON has no such number."""
    if value is None or not numpy.isfinite(value):
        return None
    short = float(f"{value:.3g}")
    return int(short) if short.is_integer() else short
