"""A batch's states, heads and readings, and two ways to its loss with gradient: autograd through `score`, and `learn`."""

from dataclasses import dataclass, replace

import pytest
import torch
from stepping import batch_of

from selfdistill.divergences import JSD
from selfdistill.heads import Head
from selfdistill.kernels.fused import Learned, learn
from selfdistill.loss import objective
from selfdistill.method import Method
from selfdistill.scoring import Reading, score

HIDDEN, VOCAB, LENGTHS = 5, 11, (4, 1, 7, 3)
SCALES = {"distill_scale": 0.7, "policy_scale": 0.3, "label_scale": 0.2, "reference_scale": 0.1}
ROLES = ("teacher", "reference", "base", "live")
CUTS = [{}, {"slab": 100, "block": 1}, {"slab": 8, "block": 3}, {"slab": 7, "block": 7}]


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


@dataclass
class Work:
    """States, heads and readings of a batch, and the two ways to a loss."""

    method: Method
    teachers: int = 1
    dtype: torch.dtype = torch.float64
    frozen: bool = False
    scale: float = 1.0
    softcap: float | None = None
    bias: bool = False

    def __post_init__(self) -> None:
        self.batch = batch_of(LENGTHS, rewards=(1.0, 0.0, 1.0, 0.0), teachers=self.teachers, vocab=VOCAB, **SCALES)
        tokens = len(self.batch.token)
        self.hidden = random(sum(LENGTHS), HIDDEN, seed=1, dtype=self.dtype).requires_grad_()
        weight, bias = random(VOCAB, HIDDEN, seed=2, dtype=self.dtype), random(VOCAB, seed=3, dtype=self.dtype) if self.bias else None
        self.head = Head(weight=weight, bias=bias, scale=self.scale, softcap=self.softcap)
        if not self.frozen:
            weight.requires_grad_()
            bias is None or bias.requires_grad_()
        other = replace(self.head.detach(), weight=random(VOCAB, HIDDEN, seed=4, dtype=self.dtype))
        readings = {role: Reading(hidden=random(tokens, HIDDEN, seed=5 + i, dtype=self.dtype), head=other) for i, role in enumerate(ROLES)}
        self.given = {"hidden": self.hidden, "head": self.head, "readings": readings}
        self.given["initial"] = Reading(hidden=random(sum(LENGTHS), HIDDEN, seed=9, dtype=self.dtype), head=other)

    def gradients(self, loss: torch.Tensor) -> list[torch.Tensor]:
        wanted = [x for x in (self.hidden, self.head.weight, self.head.bias) if x is not None and x.requires_grad]
        return [x.double() for x in torch.autograd.grad(loss, wanted)]

    def reference(self) -> tuple[torch.Tensor, list[torch.Tensor], dict[str, torch.Tensor]]:
        loss, sums = objective(self.method, score(self.method, self.batch, **self.given))
        return loss.detach(), self.gradients(loss), sums

    def fused(self, **sizes: int | str) -> Learned:
        return learn(self.method, self.batch, **self.given, **sizes)

    def check(self, *, atol: float = 1e-5, rtol: float = 1e-4) -> None:
        loss, gradients, sums = self.reference()
        assert max(g.abs().max() for g in gradients) > 1e-3, "an equation without gradient says nothing"
        for sizes in CUTS:
            found = self.fused(**sizes)
            torch.testing.assert_close(found.loss.detach(), loss, atol=atol, rtol=rtol, check_dtype=False)
            for one, other in zip(self.gradients(found.loss), gradients, strict=True):
                torch.testing.assert_close(one, other, atol=atol, rtol=rtol)
            assert {n: float(v) for n, v in found.sums.items()} == pytest.approx({n: float(v) for n, v in sums.items()}, abs=1e-3, rel=1e-3)


ALL_TERMS = Method(divergence=JSD(0.5), policy_coef=1.0, label_coef=1.0, reference_coef=1.0)
