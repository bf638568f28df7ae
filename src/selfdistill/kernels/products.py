"""Matrix products in fp32 where torch's BLAS leaves half of a processor idle: MKL runs AVX2 code on AMD, oneDNN the AVX-512 that is there.

Same sums in fp32, in another order. torch's own switch turns them off: `torch.backends.mkldnn.flags(enabled=False)`.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from selfdistill.devices import allowed

LEAST = 2**20
"""Multiplications below which oneDNN's own start costs more than it saves."""

ADDED = {"cpu": 2**20, "cuda": 2**26}
"""Numbers of a product that is added up held at once: a vocabulary's gradient would be held twice."""


def linear(x: Float[Tensor, "*rows inner"], weight: Float[Tensor, "outer inner"], bias: Float[Tensor, " outer"] | None = None) -> Float[Tensor, "*rows outer"]:
    """x W^T + b, as torch.nn.functional.linear."""
    if not _suits(x, weight):
        return nn.functional.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)):
        return _Linear.apply(x, weight, bias)  # pyright: ignore[reportReturnType]
    return _onednn(x, weight, bias)


def of_weight(upstream: Float[Tensor, "*rows outer"], x: Float[Tensor, "*rows inner"]) -> Float[Tensor, "outer inner"]:
    """The gradient of W in x W^T."""
    return _outer(upstream.reshape(-1, upstream.shape[-1]), x.reshape(-1, x.shape[-1])).contiguous()


def add_outer(total: Float[Tensor, "outer inner"], one: Float[Tensor, "rows outer"], other: Float[Tensor, "rows inner"]) -> None:
    """total += one^T other, in place; a product that cannot be written there is made some of its rows at a time."""
    if total.dtype == one.dtype and not _suits(one.T, other.T):
        total.addmm_(one.T, other)
    elif total.numel() <= (added := allowed(ADDED, total.device)):
        total += _outer(one, other)
    else:
        for start in range(0, len(total), step := max(added // total.shape[1], 1)):
            total[start : start + step] += linear(one.T[start : start + step], other.T)


def plain_fp32(x: Tensor) -> bool:
    """Whether something is fp32 on a CPU, in no subclass (a sharded parameter, say), and autocast leaves it so; a compiler has forms of its own."""
    plain = x.dtype == torch.float32 and x.device.type == "cpu" and type(x) is Tensor
    return plain and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def _gains() -> bool:
    named = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "")
    built = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return built and "AMD" in str(named) and torch.backends.cpu.get_cpu_capability() == "AVX512"


AVAILABLE = _gains()
"""Whether this processor gains: AMD with AVX-512, under a torch that has MKL for BLAS and oneDNN beside it."""


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            linear(upstream[0], weight.T) if wants_x else None,
            of_weight(upstream[0], x) if wants_weight else None,
            upstream[0].reshape(-1, upstream[0].shape[-1]).sum(0) if wants_bias else None,
        )


def _outer(one: Float[Tensor, "rows outer"], other: Float[Tensor, "rows inner"]) -> Float[Tensor, "outer inner"]:
    """one^T other; oneDNN turns its first factor round in memory, so that is the narrower one."""
    return linear(one.T, other.T) if one.shape[1] <= other.shape[1] else linear(other.T, one.T).T


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.numel() * weight.shape[0] >= LEAST
        and AVAILABLE
        and plain_fp32(x)
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and type(weight) in (Tensor, nn.Parameter)
        # other strides are slow there
        and (weight.is_contiguous() or weight.T.is_contiguous())
        and bool(torch.backends.mkldnn.enabled)
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
