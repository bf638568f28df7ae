"""The Triton programs as one differentiable function of a student's head product: a few numbers a row out, a gradient in its place back."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from selfdistill.divergences import JSD, Divergence, ForwardKL, ReverseKL
from selfdistill.kernels import triton_kernels
from selfdistill.targets import PMI, Target, TeacherDistribution, TrustRegion

TILE, WARPS = 2048, 8
"""Entries of a row that a program holds at once: a 16-byte load of bf16 a thread."""
PROGRAMS: Any = triton_kernels
TARGETS = {TeacherDistribution: 1, PMI: 2, TrustRegion: 3}
DIVERGENCES = {ForwardKL: 1, ReverseKL: 2, JSD: 3}


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be found about student rows: everything but their own head product."""

    scale: float
    softcap: float | None
    rate: float
    """1 / the loss temperature."""
    policy_rate: float
    initial: Float[Tensor, "rows vocab"] | None
    views: tuple[Float[Tensor, "pairs vocab"], ...]
    """In the order in which `target` reads them; none: no teacher."""
    target: Target
    divergence: Divergence | None
    """None, or one whose entries are summed over the vocabulary."""
    student: Int[Tensor, " pairs"]
    """Each pair's row, ascending."""
    at: Int[Tensor, "2 entries"]
    """(row, token) of single logits that are wanted with gradient."""

    @property
    def head(self) -> dict[str, float]:
        return {"SCALE": self.scale, "CAP": self.softcap or 0.0, "RATE": self.rate}

    @property
    def kinds(self) -> dict[str, float | None]:
        """How `target` and `entries` read their constants."""
        wish, entry = self.target, self.divergence
        of_target = {"KIND": TARGETS[type(wish)], "STRETCH": getattr(wish, "beta", getattr(wish, "mix", 0.0)), "BOUND": _bound(getattr(wish, "clip", math.inf))}
        beta, clip = getattr(entry, "beta", 0.5), getattr(entry, "clip", math.inf)
        known = {"DIVERGENCE": DIVERGENCES.get(type(entry), 0), "BETA": beta, "LOG_BETA": math.log(beta), "LOG_REST": math.log1p(-beta)}
        return of_target | known | {"CLIP": _bound(clip)}

    def view_rows(self, otherwise: Tensor) -> list[Any]:
        """Three pointers with their strides, whatever the number of views."""
        return [x for view in (*self.views, otherwise, otherwise, otherwise)[:3] for x in (view, view.stride(0))]


def _bound(value: float) -> float | None:
    return None if value == math.inf else value


class Sweep(torch.autograd.Function):
    """(of_rows, of_pairs, logits) of a head product, which backward overwrites with the loss's gradient by it.

    of_rows: log sum exp at both temperatures, entropy, KL(pi || pi_0), pi_0's log sum exp. of_pairs: the target's centre, log sum exp and
    entropy, the divergence, its summed slopes. Gradients come back through the log sum exps, the KL, the divergence and the logits.
    """

    @staticmethod
    def forward(ctx: Any, product: Tensor, work: Work) -> tuple[Tensor, Tensor, Tensor]:
        rows, vocab = product.shape
        of_rows, of_pairs = product.new_zeros(5, rows, dtype=torch.float32), product.new_zeros(5, len(work.student), dtype=torch.float32)
        initial = product if work.initial is None else work.initial
        shared = {"TILE": TILE, "num_warps": WARPS}
        with torch.cuda.device_of(product):
            PROGRAMS.normalise[(rows,)](
                *(product, product.stride(0), initial, initial.stride(0), of_rows, vocab),
                **work.head, POLICY_RATE=work.policy_rate, INITIAL=work.initial is not None, **shared,
            )  # fmt: skip
            if work.views and len(work.student):
                PROGRAMS.compare[(len(work.student),)](
                    *(*work.view_rows(product), product, product.stride(0), work.student, of_rows, of_pairs, vocab), **work.head, **work.kinds, **shared
                )
        z = product[work.at[0], work.at[1]].float() * work.scale
        ctx.product, ctx.work = product, work
        ctx.save_for_backward(of_rows, of_pairs)
        return of_rows, of_pairs, z if work.softcap is None else torch.tanh(z / work.softcap) * work.softcap

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        product, work, (of_rows, of_pairs) = ctx.product, ctx.work, ctx.saved_tensors
        assert product is not None, "the product has become its own gradient"
        ctx.product = None
        rows, vocab = product.shape
        (to_lse, to_policy_lse, _, to_reference, _), to_divergence = upstream[0].contiguous(), upstream[1][3].contiguous()
        initial, policy = work.initial, work.initial is not None or work.rate != work.policy_rate
        first_entry, entry_at, to_entry = _by_tile(work, upstream[2], rows, vocab)
        first_pair = torch.searchsorted(work.student, torch.arange(rows + 1, device=product.device))
        with torch.cuda.device_of(product):
            PROGRAMS.differentiate[(rows,)](
                *(*work.view_rows(product), product, product.stride(0), *((initial, initial.stride(0)) if initial is not None else (product, 0))),
                *(vocab, len(work.student), of_rows, of_pairs, first_pair, to_lse if policy else to_lse + to_policy_lse, to_policy_lse, to_reference),
                *(to_divergence, first_entry, entry_at, to_entry),
                **work.head, POLICY_RATE=work.policy_rate, POLICY=policy, INITIAL=initial is not None, **work.kinds, TILE=TILE, num_warps=WARPS,
            )  # fmt: skip
        return product, None


def _by_tile(work: Work, upstream: Tensor, rows: int, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    """Single logits in the order in which tiles are written: where each tile's begin [rows tiles + 1], their tokens, their gradients."""
    keys, order = (work.at[0] * vocab + work.at[1]).sort(stable=True)
    starts = torch.arange(0, vocab, TILE, device=keys.device) + vocab * torch.arange(rows, device=keys.device)[:, None]
    # filled, not copied: a copy from the host waits for the device
    edges = torch.cat([starts.flatten(), starts.new_full((1,), rows * vocab)])
    return torch.searchsorted(keys, edges), work.at[1][order], upstream[order]
