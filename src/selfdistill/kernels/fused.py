"""Hidden states to the loss with its gradient, in one sweep: a block of logits is made, scored, weighed, differentiated and let go.

A loss is a sum over samples (law 2), so its gradient is known as soon as a sample's own tokens are scored, and backward computes no
logits again: one head product for the student's values, one for each view, two for the gradient.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from selfdistill.heads import Head, Product
from selfdistill.kernels.products import add_outer, linear
from selfdistill.kernels.triton_scoring import runs, score_products, supported
from selfdistill.loss import objective
from selfdistill.method import Method
from selfdistill.scoring import CHUNK_ENTRIES, Order, Place, Reading, Scorer, assemble, rows_held, score, score_logits
from selfdistill.types import Batch

SLAB_ENTRIES = {"cpu": 3 * 2**22, "cuda": 2**27}
"""Logits of each role held at once, over all teachers of a token: fewer make products smaller and a trained head's gradient be added up more often."""
LEAST_ROWS = 32
"""Student tokens of a slab, however many teachers they have: reading a head's weights takes as long as multiplying so many rows by them."""
BLOCK_ENTRIES = {"cpu": 2**19, "cuda": 2**25}
"""Logits of each role scored and differentiated at once: on a CPU as many as stay in its cache from one elementwise pass to the next."""
LONGEST_ENTRIES = {"cpu": 2**26, "cuda": 2**29}
"""Logits of each role held at once where Triton scores a whole rollout: it makes no copies of them."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A micro-batch's loss, whose backward hands on a gradient that is there already, and the sums for the step's metrics."""

    loss: Float[Tensor, ""]
    sums: dict[str, Float[Tensor, ""]]
    policy_logp: Float[Tensor, " tokens"]


def learn(
    method: Method,
    batch: Batch,
    *,
    hidden: Float[Tensor, "student_tokens hidden"],
    head: Head,
    readings: Mapping[str, Reading],
    initial: Reading | None = None,
    slab: int | None = None,
    block: int | None = None,
    kernel: Literal["torch", "triton"] | None = None,
) -> Learned:
    """The values of `objective(method, score(...))` and the gradient of its backward, with every logit computed once.

    slab: student tokens whose logits are held at once; block: those of them scored at once; kernel: what scores them; None takes what the
    device allows, and for a part that looks along rollouts a slab of the longest one, as far as CHUNK_ENTRIES (Triton: LONGEST_ENTRIES) allow. Where a
    rollout has more tokens than that, or than the slab that is given, chunks are scored instead, whose logits backward computes again.
    """
    scorer = _scorer(kernel, method, head, others=[r.head for r in (*readings.values(), initial) if r], device=hidden.device)
    rows = partial(rows_held, batch=batch, hidden=hidden, vocab_size=head.vocab_size)
    given, slab = slab, slab or rows(SLAB_ENTRIES, least=LEAST_ROWS)
    block = min(slab, block or (slab if scorer is score_products else rows(BLOCK_ENTRIES)))
    edges = list(range(0, len(hidden), block)) if method.pointwise else _between_rollouts(batch, len(hidden), block)
    edges.append(len(hidden))
    longest = max(b - a for a, b in pairwise(edges))
    if not given and longest <= rows(LONGEST_ENTRIES if scorer is score_products else CHUNK_ENTRIES):
        slab = max(slab, longest)
    if longest > slab:
        signals = score(method, batch, hidden=hidden, head=head, readings=readings, initial=initial, chunk=slab)
        loss, sums = objective(method, signals)
        return Learned(loss=loss, sums=sums, policy_logp=signals.policy_logp.detach())
    order = Order.of(batch, students=len(hidden), readings=bool(readings))
    sweep = _Sweep(method, order, scorer, hidden=hidden, head=head, readings=readings, initial=initial)
    with torch.no_grad():
        for places in _slabs(sweep.order.places(edges), slab):
            sweep(places)
    return Learned(loss=sweep.known_loss(), sums=sweep.sums, policy_logp=sweep.policy_logp[sweep.order.tokens.argsort()])


class _Sweep:
    """One pass over a micro-batch's slabs: what is left of them is a loss, sums, and gradients of the states and the head."""

    def __init__(
        self,
        method: Method,
        order: Order,
        scorer: Scorer,
        *,
        hidden: Float[Tensor, "student_tokens hidden"],
        head: Head,
        readings: Mapping[str, Reading],
        initial: Reading | None,
    ) -> None:
        self.method, self.order, self.scorer, self.hidden, self.head = method, order, scorer, hidden, head
        # roles that one model reads share its head
        heads = {id(h): h.cast() for h in (head, *(r.head for r in (*readings.values(), initial) if r))}
        self.own = heads[id(head)]
        self.readings = {role: replace(r, head=heads[id(r.head)]) for role, r in readings.items()}
        self.initial = initial and replace(initial, head=heads[id(initial.head)])
        self.sums: dict[str, Tensor] = {}
        # in one place: what every block left behind would keep freed slabs' memory in pieces
        self.policy_logp = hidden.new_empty(len(order.tokens), dtype=torch.float32)
        self.loss = hidden.new_zeros((), dtype=torch.float32)
        self.states = torch.empty_like(hidden) if hidden.requires_grad else None
        self.weight, self.bias = (torch.zeros_like(x) if x is not None and x.requires_grad else None for x in (head.weight, head.bias))

    def __call__(self, places: Sequence[Place]) -> None:
        """Blocks that lie side by side: their logits in one product, and the gradient of each in its logits' place."""
        students, pairs = _span([p.students for p in places]), _span([p.pairs for p in places])
        hidden, head = self.hidden[students], self.own
        logits = head.product(hidden)
        views = {role: (r.head, r.head.product(r.hidden[self.order.rows[pairs]])) for role, r in self.readings.items()}
        initial = self.initial and (self.initial.head, self.initial.head.product(self.initial.hidden[students]))
        for place in places:
            rows = _within(place.students, students)
            of_views = {role: Product(head=head, values=product[_within(place.pairs, pairs)]) for role, (head, product) in views.items()}
            gradient = self._block(place, logits[rows], of_views, initial and Product(head=initial[0], values=initial[1][rows]))
            if gradient.data_ptr() != logits[rows].data_ptr():
                logits[rows] = gradient
        if self.states is not None:
            self.states[students] = linear(logits, head.weight.T).to(self.states.dtype)
        if self.weight is not None:
            add_outer(self.weight, logits, hidden.to(logits.dtype))
        if self.bias is not None:
            self.bias += logits.sum(0)

    def _block(
        self, place: Place, product: Float[Tensor, "block vocab"], views: Mapping[str, Product], initial: Product | None
    ) -> Float[Tensor, "block vocab"]:
        """d loss / d product."""
        method, order = self.method, self.order
        batch = order.batch.at(order.tokens[place.tokens], samples=place.samples, first=place.students.start)
        product = product.detach().requires_grad_()
        with torch.enable_grad():
            student = Product(head=self.own, values=product)
            unique, pairs = self.scorer(method, order.piece(place), batch.temperature, student, views, initial)
            signals = assemble(batch, unique, pairs, order.taught_at[place.pairs] - place.tokens.start)
            loss, sums = objective(method, signals)
        self.loss += loss.detach()
        self.sums |= {name: self.sums.get(name, 0.0) + value for name, value in sums.items()}
        self.policy_logp[place.tokens] = signals.policy_logp.detach()
        return torch.autograd.grad(loss, product)[0]

    def known_loss(self) -> Float[Tensor, ""]:
        inputs = {"states": self.hidden, "weight": self.head.weight, "bias": self.head.bias}
        known = [(x, g) for name, x in inputs.items() if (g := getattr(self, name)) is not None]
        return _Known.apply(self.loss, len(known), *(x for x, _ in known), *(g for _, g in known))  # pyright: ignore[reportReturnType]


def _scorer(kernel: Literal["torch", "triton"] | None, method: Method, head: Head, *, others: Sequence[Head], device: torch.device) -> Scorer:
    """Triton's where it runs and knows the method, unless asked otherwise."""
    fast = kernel is None and device.type == "cuda" and supported(method, head, others) and runs(device)
    return score_products if kernel == "triton" or fast else score_logits


class _Known(torch.autograd.Function):
    """A loss whose gradients were taken with it, and are handed on: kept here too, a parameter's would be copied."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, count: int, *inputs_and_gradients: Tensor) -> Tensor:
        ctx.gradients = list(inputs_and_gradients[count:])
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradient of this loss was handed on; learn again for another backward")
        return (None, None, *(g.mul_(upstream[0]) for g in gradients), *(None for _ in gradients))


def _between_rollouts(batch: Batch, students: int, block: int) -> list[int]:
    """Cuts between the rollouts of a micro-batch, as many of them together as a block holds."""
    host, sample = batch.host, np.full(students, len(batch.length))
    np.minimum.at(sample, host.student_token, host.sample)
    starts = [0, *(np.flatnonzero(sample[1:] != sample[:-1]) + 1).tolist(), students]
    edges = [0]
    for start, end in pairwise(starts):
        if end - edges[-1] > block and start > edges[-1]:
            edges.append(start)
    return edges


def _slabs(places: Sequence[Place], slab: int) -> Iterator[list[Place]]:
    """Blocks together while a slab holds their student tokens."""
    current: list[Place] = []
    for place in places:
        if current and place.students.stop - current[0].students.start > slab:
            yield current
            current = []
        current.append(place)
    yield current


def _span(slices: Sequence[slice]) -> slice:
    return slice(slices[0].start, slices[-1].stop)


def _within(inner: slice, outer: slice) -> slice:
    return slice(inner.start - outer.start, inner.stop - outer.start)
