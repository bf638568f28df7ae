"""What of a privileged reading is the reference's alone: frozen views of one rollout in, norms and cosines of the decomposition out (2607.02234)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
from jaxtyping import Float, Int
from torch import Tensor

from selfdistill.diagnostics.drawing import GUIDE, panels
from selfdistill.diagnostics.readings import TokenReading
from selfdistill.method import Method

Array = numpy.ndarray


@dataclass(frozen=True)
class ViewOf:
    """log-probs of one role, plus the student's minus another role's where one is given: target - student is then role - minus.

    Raises ValueError where the method has no reading of the reference alone, before any part is read.
    """

    role: str
    minus: str = "student"

    def __call__(self, views: Mapping[str, Float[Tensor, "tokens vocab"]]) -> Float[Tensor, "tokens vocab"]:
        if "reference" not in views:
            raise ValueError("this method does not read the reference alone, so there is nothing to decompose; choose --method purified_opsd")
        return views[self.role] if self.minus == "student" else views[self.role] - views[self.minus] + views["student"]


@dataclass(frozen=True)
class Norm:
    """||target - student|| over the vocabulary, in nats."""

    def __call__(
        self, student: Float[Tensor, "tokens vocab"], target: Float[Tensor, "tokens vocab"], token: Int[Tensor, " tokens"]
    ) -> Float[Tensor, " tokens"]:
        return (target - student).norm(dim=-1)


PARTS = {"total": ViewOf("teacher"), "reference": ViewOf("reference"), "interaction": ViewOf("teacher", minus="reference")}
"""D_total = log T - log S, D_ref = log pi_R - log S, D_it = log T - log pi_R; the first is the sum of the others."""


def decomposed(method: Method) -> dict[str, Method]:
    """The method whose divergence is the norm of each part. It must read the views "teacher" and "reference"."""
    return {name: replace(method, target=target, divergence=Norm()) for name, target in PARTS.items()}


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """At one checkpoint, means over tokens."""

    checkpoint: int
    steps: tuple[int, ...]
    """Whose rollouts were read."""
    tokens: int
    total: float
    """||D_total|| in nats."""
    reference: float
    interaction: float
    ratio: float
    """Mean ||D_ref|| over mean ||D_total||: above 1 where the reference alone pulls further than teacher and student are apart."""
    cosine_reference: float
    """Of D_total and D_ref, mean over the tokens where both are longer than 0."""
    cosine_interaction: float


@dataclass(frozen=True, kw_only=True)
class Pmi:
    checkpoints: tuple[Decomposition, ...]


def decomposition(readings: Mapping[str, Sequence[TokenReading]], *, checkpoint: int, steps: Sequence[int]) -> Decomposition:
    """From the norms of the three parts; |D_total - D_ref|^2 = |D_it|^2 gives their cosines. [open] Neither centred nor weighted."""
    total, reference, interaction = (numpy.concatenate([r.divergence for r in readings[name]]) for name in PARTS)
    return Decomposition(
        checkpoint=checkpoint,
        steps=tuple(steps),
        tokens=len(total),
        total=float(total.mean()),
        reference=float(reference.mean()),
        interaction=float(interaction.mean()),
        ratio=float(reference.mean() / total.mean()),
        cosine_reference=_cosine(total, reference, interaction),
        cosine_interaction=_cosine(total, interaction, reference),
    )


def _cosine(one: Float[Array, " tokens"], other: Float[Array, " tokens"], third: Float[Array, " tokens"]) -> float:
    """Mean cosine of two sides of a triangle that meet, by the length of the third."""
    real = (one > 0) & (other > 0)
    cosines = (one[real] ** 2 + other[real] ** 2 - third[real] ** 2) / (2 * one[real] * other[real])
    return float(numpy.clip(cosines, -1, 1).mean()) if real.any() else float("nan")


def table(result: Pmi) -> list[tuple[str, ...]]:
    norms = ("|D_total|", "|D_ref|", "|D_it|", "ref / total")
    rows: list[tuple[str, ...]] = [("checkpoint", "of step", "tokens", *norms, "cos total, ref", "cos total, it")]
    for d in result.checkpoints:
        figures = (f"{value:.2f}" for value in (d.total, d.reference, d.interaction, d.ratio, d.cosine_reference, d.cosine_interaction))
        rows.append((str(d.checkpoint), ", ".join(map(str, d.steps)), str(d.tokens), *figures))
    return rows


def picture(result: Pmi, path: Path, *, title: str) -> None:
    """Norms, their ratio and cosines over checkpoints."""
    steps = [d.checkpoint for d in result.checkpoints]
    names = {"total": "D_total = log T - log S", "reference": "D_ref = log π_R - log S", "interaction": "D_it = log T - log π_R"}
    with panels(path, 3, title=title) as (norms, ratios, cosines):
        for name, label in names.items():
            norms.plot(steps, [getattr(d, name) for d in result.checkpoints], marker="o", label=label)
        norms.set(title="norms over the vocabulary", ylabel="nats")
        norms.set_ylim(bottom=0)
        norms.legend(framealpha=0.7, fontsize=8)
        ratios.plot(steps, [d.ratio for d in result.checkpoints], marker="o")
        ratios.axhline(1, **GUIDE)
        ratios.set(title="|D_ref| / |D_total|")
        cosines.plot(steps, [d.cosine_reference for d in result.checkpoints], marker="o", color="C1", label="with D_ref")
        cosines.plot(steps, [d.cosine_interaction for d in result.checkpoints], marker="o", color="C2", label="with D_it")
        cosines.axhline(0, **GUIDE)
        cosines.set(title="cosine of D_total", ylim=(-1, 1))
        cosines.legend(framealpha=0.7, fontsize=8)
        for axis in (norms, ratios, cosines):
            axis.set_xlabel("checkpoint, step")
            axis.set_xticks(steps)
