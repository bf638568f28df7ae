"""Transport plans against brute force, a linear program and POT."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from selfdistill import transport
from selfdistill.transport import ExactTransport, Sinkhorn, cosine_cost


def costs(n: int, m: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return cosine_cost(torch.randn(n, 5, generator=generator), torch.randn(m, 5, generator=generator))


def least_cost(cost: torch.Tensor) -> float:
    """The linear program over plans with uniform marginals."""
    n, m = cost.shape
    rows = np.kron(np.eye(n), np.ones(m))
    columns = np.kron(np.ones(n), np.eye(m))
    solved = linprog(cost.flatten().numpy(), A_eq=np.vstack([rows, columns]), b_eq=[1 / n] * n + [1 / m] * m)
    return float(solved.fun)


def test_cosine_cost_is_one_minus_cosine_and_zero_for_equal_vectors():
    one = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(cosine_cost(one, torch.tensor([[0.0, 2.0], [-1.0, 0.0]])), torch.tensor([[1.0, 2.0], [1 - 0.5**0.5, 1 + 0.5**0.5]]).double())
    for vector in torch.randn(50, 7):
        assert float(cosine_cost(vector[None], vector[None])) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_exact_transport_of_equal_lengths_is_the_best_permutation(seed):
    cost = costs(4, 4, seed=seed)
    plan = ExactTransport()(cost)
    best = min(itertools.permutations(range(4)), key=lambda p: sum(float(cost[i, p[i]]) for i in range(4)))
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[range(4), best] = 0.25
    torch.testing.assert_close(plan, expected)


@pytest.mark.parametrize("shape", [(3, 5), (6, 2), (1, 4), (4, 1)], ids=str)
def test_exact_transport_of_unequal_lengths_is_the_linear_program(shape):
    cost = costs(*shape)
    plan = ExactTransport()(cost)
    torch.testing.assert_close(plan.sum(1), torch.full((shape[0],), 1 / shape[0]).double())
    torch.testing.assert_close(plan.sum(0), torch.full((shape[1],), 1 / shape[1]).double())
    assert float((plan * cost).sum()) == pytest.approx(least_cost(cost), abs=1e-9)


@pytest.mark.parametrize("epsilon", [0.02, 0.3])
@pytest.mark.parametrize("shape", [(4, 4), (5, 3)], ids=str)
def test_sinkhorn_is_pots(shape, epsilon):
    ot = pytest.importorskip("ot")
    cost = costs(*shape)
    n, m = shape
    expected = ot.sinkhorn([1 / n] * n, [1 / m] * m, cost.numpy(), epsilon, method="sinkhorn_log", numItermax=100_000, stopThr=1e-12)
    torch.testing.assert_close(Sinkhorn(epsilon)(cost), torch.from_numpy(expected), atol=1e-6, rtol=0)


def test_sinkhorn_nears_the_exact_plan_and_spreads_with_epsilon():
    cost = costs(4, 4)
    distances = [float((part(cost) * cost).sum()) for part in (ExactTransport(), Sinkhorn(0.01), Sinkhorn(0.2), Sinkhorn(2.0))]
    assert distances[1] == pytest.approx(distances[0], abs=1e-3)
    assert distances == sorted(distances) and distances[3] > distances[0] + 0.05


def test_parameters_and_a_missing_library_are_said(monkeypatch):
    with pytest.raises(ValueError, match="above 0"):
        Sinkhorn(0.0)
    monkeypatch.setattr(transport.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"selfdistill\[transport\].*Sinkhorn"):
        ExactTransport()(costs(2, 2))
