"""Products by oneDNN beside torch's own: values, gradients, and where they are not used."""

import pytest
import torch
from torch import nn

from selfdistill.kernels import products

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch was built without oneDNN")
SHAPES = [((1100,), 1000), ((300, 64), 96), ((3, 200, 64), 96), ((2048, 96), 32), ((7, 160), 1024), ((1, 1200), 1000)]


@pytest.fixture
def fast(monkeypatch):
    """On any processor; the ops that were asked for a product."""
    monkeypatch.setattr(products, "AVAILABLE", True)
    asked, real = [], products._onednn
    monkeypatch.setattr(products, "_onednn", lambda *args: asked.append(args[0].shape) or real(*args))
    return asked


def drawn(*shape: int, **kwargs: object) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[-1]), **kwargs)


def found(multiply, x, weight, bias):
    """(values, gradients of what asks for one)."""
    given = [t.detach().clone().requires_grad_(t.requires_grad) if t is not None else None for t in (x, weight, bias)]
    made = multiply(*given)
    if made.requires_grad:
        made.backward(drawn(*made.shape))
    return made.detach(), [t.grad for t in given if t is not None and t.requires_grad]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("wants", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("shape, outer", SHAPES)
def test_values_and_gradients_are_those_of_linear(shape, outer, wants, bias, fast):
    x, weight = drawn(*shape).requires_grad_(wants[0]), drawn(outer, shape[-1]).requires_grad_(wants[1])
    offset = drawn(outer).requires_grad_(wants[1]) if bias else None
    ours, of_ours = found(products.linear, x, weight, offset)
    theirs, of_theirs = found(nn.functional.linear, x, weight, offset)
    assert fast and len(of_ours) == len(of_theirs) == sum(wants) + (bias and wants[1])
    for one, other in zip([ours, *of_ours], [theirs, *of_theirs], strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def test_a_frozen_weights_input_is_not_kept(fast):
    kept: list[torch.Size] = []
    x = drawn(500, 64).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape), lambda t: t):
        products.linear(x, drawn(200, 64))
    assert fast and kept == [(200, 64)]


def test_sums_are_about_as_exact_as_torchs_own(fast):
    x, weight = drawn(400, 700), drawn(300, 700)
    exact = x.double() @ weight.double().T
    ours, theirs = ((f(x, weight) - exact).norm() / exact.norm() for f in (products.linear, nn.functional.linear))
    assert fast and ours < 2.5 * theirs < 1e-6


@pytest.mark.parametrize("view", [lambda x: x[:, ::2], lambda x: x.T.contiguous().T, lambda x: x[3:], lambda x: x.expand(2, *x.shape)])
def test_strides_do_not_matter(view, fast):
    x = view(drawn(1000, 128))
    weight = drawn(200, x.shape[-1])
    torch.testing.assert_close(products.linear(x, weight), nn.functional.linear(x, weight), rtol=1e-5, atol=1e-4)
    assert fast


@pytest.mark.parametrize(
    "change",
    [
        lambda x, w: (x.double(), w.double()),
        lambda x, w: (x.bfloat16(), w.bfloat16()),
        lambda x, w: (x[:1, :8], w[:, :8].contiguous()),
        lambda x, w: (x, w.repeat(1, 2)[:, ::2]),
    ],
    ids=["float64", "bfloat16", "small", "scattered weights"],
)
def test_what_gains_nothing_is_left_to_torch(change, fast):
    x, weight = change(drawn(500, 64), drawn(64, 64))
    assert torch.equal(products.linear(x, weight), nn.functional.linear(x, weight)) and not fast


def test_torchs_switch_and_autocast_turn_them_off(fast):
    x, weight = drawn(500, 64), drawn(64, 64)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(products.linear(x, weight), nn.functional.linear(x, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert products.linear(x, weight).dtype == torch.bfloat16
    assert not fast


@pytest.mark.parametrize("rows, outer, inner", [(50, 70, 40), (100, 3000, 500), (300, 9000, 128)])
def test_a_product_is_added_in_place(rows, outer, inner, fast):
    total, one, other = drawn(outer, inner), drawn(rows, outer), drawn(rows, inner)
    expected, place = total + one.T @ other, total.data_ptr()
    products.add_outer(total, one, other)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-4)
    assert total.data_ptr() == place
    assert bool(fast) == (rows * outer * inner >= products.LEAST)


def test_a_gradient_of_another_type_takes_the_product(fast):
    total, one, other = torch.zeros(300, 200), drawn(100, 300), drawn(100, 200)
    products.add_outer(total, one.bfloat16(), other.bfloat16())
    torch.testing.assert_close(total, (one.bfloat16().T @ other.bfloat16()).float())
    assert not fast
