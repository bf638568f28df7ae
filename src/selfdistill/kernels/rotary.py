"""Rotary positions in fp32 on a CPU, half a head at a time: transformers turns halves round by copies, and in backward by tensors of zeros."""

from collections.abc import Callable
from functools import cache, wraps
from types import FunctionType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from selfdistill.kernels.products import plain_fp32

NAME = "apply_rotary_pos_emb"
"""What transformers' attention layers call, each a function of its own module."""


def rotary(
    x: Float[Tensor, "rows heads columns dim"], cos: Float[Tensor, "#rows #heads #columns dim"], sin: Float[Tensor, "#rows #heads #columns dim"]
) -> Float[Tensor, "rows heads columns dim"]:
    """x cos + (-x_2, x_1) sin for the halves x_1, x_2 of every head (RoFormer, 2104.09864, section 3.4, in the order of GPT-NeoX)."""
    return _Rotary.apply(x, cos, sin) if torch.is_grad_enabled() else _forward(x, cos, sin)  # pyright: ignore[reportReturnType]


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _forward(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        (cos_1, cos_2), (sin_1, sin_2) = cos.chunk(2, -1), sin.chunk(2, -1)
        return _turned(upstream[0], cos_1, cos_2, sin_2, sin_1.neg()), None, None


def _forward(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    (cos_1, cos_2), (sin_1, sin_2) = cos.chunk(2, -1), sin.chunk(2, -1)
    return _turned(x, cos_1, cos_2, sin_1.neg(), sin_2)


def _turned(x: Tensor, by_1: Tensor, by_2: Tensor, of_2: Tensor, of_1: Tensor) -> Tensor:
    """(x_1 by_1 + x_2 of_2, x_2 by_2 + x_1 of_1), in the memory order of x."""
    out = torch.empty_like(x)
    (x_1, x_2), (out_1, out_2) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(x_1, by_1, out=out_1).addcmul_(x_2, of_2)
    torch.mul(x_2, by_2, out=out_2).addcmul_(x_1, of_1)
    return out


@cache
def rotates(kind: type[nn.Module]) -> bool:
    """Whether a class of layers rotates queries and keys this way, by a function that its forward calls by name."""
    forward = kind.forward
    if type(forward) is not FunctionType or hasattr(forward, "__wrapped__") or NAME not in forward.__code__.co_names:
        return False
    given = forward.__globals__.get(NAME)
    return callable(given) and _agrees(given)


def rotating(kind: type[nn.Module]) -> Callable[..., Any]:
    """The forward of a class that `rotates`: the same code, in which that name means `rotary`."""
    forward = kind.forward
    assert isinstance(forward, FunctionType)
    # the names of its module as they are now
    names = {**forward.__globals__, NAME: where_it_suits(forward.__globals__[NAME])}
    turning = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    turning.__kwdefaults__ = forward.__kwdefaults__

    @wraps(forward)
    def chosen(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # a compiler has forms of its own, and asks where a name comes from
        return forward(self, *args, **kwargs) if torch.compiler.is_compiling() else turning(self, *args, **kwargs)

    return chosen


def where_it_suits(given: Callable[..., Any]) -> Callable[..., Any]:
    """`rotary` of queries and keys where they and their positions' cosines are plain fp32 and nothing of the latter is trained, else as given."""

    def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        plain = all(map(plain_fp32, (q, k, cos, sin))) and not (cos.requires_grad or sin.requires_grad) and cos.shape[-1] == q.shape[-1]
        if args or kwargs or not plain:
            return given(q, k, cos, sin, *args, **kwargs)
        cos, sin = cos[:, None], sin[:, None]
        return rotary(q, cos, sin), rotary(k, cos, sin)

    return apply_rotary_pos_emb


def _agrees(given: Callable[..., Any]) -> bool:
    """Whether a function makes `rotary`'s values of queries and keys."""
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, heads, 5, 8, generator=draw) for heads in (4, 2))
    cos, sin = (torch.randn(2, 5, 8, generator=draw) for _ in range(2))
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            found = given(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False
    with torch.no_grad():
        return len(found) == 2 and all(torch.allclose(x, rotary(y, cos[:, None], sin[:, None]), atol=1e-5) for x, y in zip(found, (q, k), strict=True))
