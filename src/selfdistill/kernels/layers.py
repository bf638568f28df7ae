"""A model's own layers in fp32 on a CPU: the same numbers in fewer passes over memory, with less kept for backward. Elsewhere they stay what they were."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import SiLUActivation

from selfdistill.kernels.products import linear, of_weight, plain_fp32
from selfdistill.kernels.rotary import rotates, rotating

GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}
HOOKS = ("forward", "forward_pre", "backward", "backward_pre")
ROTATING = "Attention"
PROBED = 16
"""Features of the states that two forms of a layer are compared on."""
ROUNDING = 1e-4
"""How far two orders of the same sums may lie apart, relative to the largest."""


def quicken(model: nn.Module) -> None:
    """Its linear layers, RMS norms, gated MLPs and rotations compute by these forms from now on; parameters, names and files stay as they are.

    A norm or MLP is known by its parts and by what it computes: one whose values on random states, small or large, are others is left alone. So is an
    attention layer whose rotation makes others of random queries and keys.
    """
    for module in list(model.modules()):
        kind = type(module)
        ending = next((ending for ending in PROBES if kind.__name__.endswith(ending)), None)
        if kind is nn.Linear:
            module.__class__ = Linear
        elif getattr(module, "quickened", False):
            continue
        elif rotates(kind):
            module.__class__ = _quick(kind, ROTATING)
        elif ending:
            probe, quick = PROBES[ending](module), _quick(kind, ending)
            if probe is not None and _agree(probe, quick):
                module.__class__ = quick


class Linear(nn.Linear):
    """torch.nn.Linear by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def rms_norm(x: Float[Tensor, "*rows width"], weight: Float[Tensor, " width"], eps: float) -> Float[Tensor, "*rows width"]:
    """w x / sqrt(mean(x^2) + eps), of which backward needs x alone."""
    return _RMSNorm.apply(x, weight, eps) if torch.is_grad_enabled() else _scaled(x, _scale(x, eps), weight)  # pyright: ignore[reportReturnType]


def gated(gate: Float[Tensor, "*rows width"], up: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
    """silu(gate) up, of which backward needs both and nothing between them."""
    return _Gated.apply(gate, up) if torch.is_grad_enabled() else _product(gate, up)  # pyright: ignore[reportReturnType]


def gated_linear(gate: Float[Tensor, "*rows width"], up: Float[Tensor, "*rows width"], weight: Float[Tensor, "outer width"]) -> Float[Tensor, "*rows outer"]:
    """(silu(gate) up) W^T, the product of which backward makes again."""
    return _GatedLinear.apply(gate, up, weight)  # pyright: ignore[reportReturnType]


def _scale(x: Tensor, eps: float) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _scaled(x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    return (x * scale).mul_(weight)


def _product(gate: Tensor, up: Tensor) -> Tensor:
    return nn.functional.silu(gate).mul_(up)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = _scale(x, eps)
        ctx.save_for_backward(x, weight, scale)
        return _scaled(x, scale, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        unit = x * scale
        along = unit * upstream[0]
        mean = (along @ weight).div_(x.shape[-1])[..., None]
        of_x = (upstream[0] * weight).sub_(unit.mul_(mean)).mul_(scale) if ctx.needs_input_grad[0] else None
        return of_x, along.reshape(-1, x.shape[-1]).sum(0) if ctx.needs_input_grad[1] else None, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _product(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        # torch's own derivative of silu, in one pass
        of_gate = upstream[0] * up
        torch.ops.aten.silu_backward.grad_input(of_gate, gate, grad_input=of_gate)
        return of_gate, _product(gate, upstream[0])


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return linear(_product(gate, up), weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        of_product, activated = linear(upstream[0], weight.T), nn.functional.silu(gate)
        product = activated * up
        of_down = of_weight(upstream[0], product) if ctx.needs_input_grad[2] else None
        # its place is used again: what is this wide is most of a layer's memory
        of_gate = torch.mul(of_product, up, out=product)
        torch.ops.aten.silu_backward.grad_input(of_gate, gate, grad_input=of_gate)
        return of_gate, activated.mul_(of_product), of_down


def _keeps_its_input(layer: nn.Module) -> bool:
    """Whether a layer is a product alone, trained, that nobody listens to: what it reads may be made again instead."""
    if not torch.is_grad_enabled() or type(layer) is not Linear or layer.bias is not None or "forward" in vars(layer):
        return False
    if any(getattr(layer, f"_{when}_hooks") or getattr(nn.modules.module, f"_global_{when}_hooks") for when in HOOKS):
        return False
    weight = layer.weight
    return weight.requires_grad and type(weight) is nn.Parameter and weight.dtype == torch.float32


@cache
def _quick(kind: type[nn.Module], ending: str) -> type[nn.Module]:
    """The form of a class of layers; of its own name, which transformers goes by."""

    def norm(self: Any, hidden_states: Tensor) -> Tensor:
        fits = plain_fp32(hidden_states) and self.weight.dtype == torch.float32
        return rms_norm(hidden_states, self.weight, self.variance_epsilon) if fits else cast(Any, kind).forward(self, hidden_states)

    def mlp(self: Any, x: Tensor) -> Tensor:
        if not plain_fp32(x):
            return cast(Any, kind).forward(self, x)
        gate, up, down = self.gate_proj(x), self.up_proj(x), self.down_proj
        return gated_linear(gate, up, down.weight) if _keeps_its_input(down) else down(gated(gate, up))

    form = rotating(kind) if ending == ROTATING else {"RMSNorm": norm, "MLP": mlp}[ending]
    pickled = {"__reduce_ex__": lambda self, _: (_blank, (kind, ending), self.__dict__)}
    return type(kind.__name__, (kind,), {"forward": form, "quickened": True} | pickled)


def _blank(kind: type[nn.Module], ending: str) -> nn.Module:
    """What a pickle fills: its class has no place of its own to be found at."""
    quick = _quick(kind, ending)
    return quick.__new__(quick)


def _norm_probe(module: nn.Module) -> nn.Module | None:
    """A copy on weights of its own."""
    if {name for name, _ in module.named_parameters()} != {"weight"} or not hasattr(module, "variance_epsilon"):
        return None
    probe = copy.copy(module)
    probe._parameters = {"weight": nn.Parameter(torch.linspace(0.5, 2, PROBED), requires_grad=False)}
    return probe


def _mlp_probe(module: nn.Module) -> nn.Module | None:
    """A copy whose projections are plain factors, so that no weights are read."""
    parts = dict(module.named_children())
    if parts.keys() != GATED or not isinstance(parts["act_fn"], (nn.SiLU, SiLUActivation)) or next(module.named_parameters(recurse=False), None):
        return None
    probe = copy.copy(module)
    probe._modules = {"gate_proj": _Times(1.3), "up_proj": _Times(-0.7), "down_proj": _Times(1.1), "act_fn": parts["act_fn"]}
    return probe.train()


PROBES: dict[str, Callable[[nn.Module], nn.Module | None]] = {"RMSNorm": _norm_probe, "MLP": _mlp_probe}
"""By the ending of a class's name."""


class _Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def _agree(probe: nn.Module, quick: type[nn.Module]) -> bool:
    """Whether the form makes the layer's values."""
    states = torch.randn(64, PROBED, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=[]):
        for x in (states, 1e3 * states):
            given, made = type(probe).forward(probe, x), cast(Any, quick).forward(probe, x)
            if given.shape != made.shape or not (given - made).abs().max() <= ROUNDING * given.abs().max():
                return False
    return True
