"""How far one written window is from another, and which of its tokens answer which: a cost matrix in, a transport plan out.

Both windows weigh 1, spread evenly over their tokens, so rows of a plan sum to 1 / n and its columns to 1 / m.
"""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

Transport = Callable[[Float[Tensor, "n m"]], Float[Tensor, "n m"]]


def cosine_cost(one: Float[Tensor, "n hidden"], other: Float[Tensor, "m hidden"]) -> Float[Tensor, "n m"]:
    """C_ij = 1 - cos(one_i, other_j), from 0 to 2; exactly 0 for equal vectors, or rounding would tell equal windows apart."""
    cosine = normalize(one.double(), dim=-1) @ normalize(other.double(), dim=-1).T
    return (1 - cosine).round(decimals=9).abs()


@dataclass(frozen=True)
class ExactTransport:
    """argmin_gamma <gamma, C> under uniform marginals, by POT's network simplex; for n = m a permutation divided by n.

    Raises ValueError where POT is not installed.
    """

    def __call__(self, cost: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        if importlib.util.find_spec("ot") is None:
            raise ValueError(
                "exact transport needs the library POT, which is not installed: pip install 'selfdistill[transport]', "
                'or set method.transport = "Sinkhorn(0.05)"'
            )
        import ot

        n, m = cost.shape
        plan = ot.emd([1 / n] * n, [1 / m] * m, cost.double().cpu().numpy())
        return torch.from_numpy(plan).to(cost.device)


@dataclass(frozen=True)
class Sinkhorn:
    """argmin_gamma <gamma, C> - epsilon H(gamma) under uniform marginals, by Sinkhorn's iteration in log space (soft labels).

    Columns hold exactly; iterations end when the rows' sums are within 1e-6 of 1 / n, relatively. Raises ValueError unless epsilon > 0.
    """

    epsilon: float = 0.05
    """In units of the cost, which lies between 0 and 2."""
    iterations: int = 5_000
    """At most."""

    def __post_init__(self) -> None:
        if self.epsilon <= 0:
            raise ValueError(f"Sinkhorn(epsilon={self.epsilon}): epsilon must be above 0; ExactTransport() is its limit")

    def __call__(self, cost: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        n, m = cost.shape
        kernel = -cost.double() / self.epsilon
        row, column = kernel.new_zeros(n, 1), kernel.new_zeros(1, m)
        for _ in range(self.iterations):
            column = -(kernel + row).logsumexp(0, keepdim=True) - math.log(m)
            total = (kernel + column).logsumexp(1, keepdim=True)
            if float(((row + total).exp() * n - 1).abs().max()) < 1e-6:
                break
            row = -total - math.log(n)
        return (kernel + row + column).exp()
