"""Triton's scoring against `score_piece` and `learn` against autograd: on an accelerator where there is one, else in Triton's interpreter.

Run by test_triton.py in a process of its own, since the interpreter has to be chosen before Triton is imported; by hand on an accelerator.
"""

import os
from dataclasses import replace

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

from fusing import ALL_TERMS, Work, random  # noqa: E402
from test_laws import DIVERGENCES, TARGETS, Sharpened, SquaredHellinger  # noqa: E402

from selfdistill.divergences import JSD, ForwardKL, ReverseKL, TeacherTopK, TopK, TopKTail, Welsch  # noqa: E402
from selfdistill.heads import Head, Product  # noqa: E402
from selfdistill.kernels import fused, triton_scoring, triton_sweeps  # noqa: E402
from selfdistill.kernels.triton_scoring import score_products, supported  # noqa: E402
from selfdistill.method import Method  # noqa: E402
from selfdistill.scoring import Piece, score_logits, score_piece  # noqa: E402
from selfdistill.targets import PMI, TeacherDistribution, TrustRegion  # noqa: E402

VOCAB, ROWS = 11, 3
WHOLE_TILE = triton_sweeps.TILE
HEAD = Head(weight=torch.zeros(VOCAB, 1))
MIXED = torch.tensor([0, 0, 0, 2])
"""Rows with three teachers, with none and with one."""


@pytest.fixture(autouse=True)
def tiles(monkeypatch):
    """Several tiles a row, the last one not full."""
    monkeypatch.setattr(triton_sweeps, "TILE", 8)


def shared(student: torch.Tensor | None, labels: int = 2) -> Piece:
    token, share = torch.tensor([10, 3, 0]), torch.tensor([[0.7, 0.3], [1.0, 0.0], [0.5, 0.5]])[:, :labels]
    label_token = torch.tensor([[10, 8], [3, 0], [0, 0]])[:, :labels]
    given = (token, label_token, share, student)
    token, label_token, share, student = (x if x is None else x.to(DEVICE) for x in given)
    return Piece(token=token, label_token=label_token, label_share=share, student=student)


def both(method, *, student=MIXED, head=HEAD, dtype=torch.float32, temperature=1.0, spread=2.0, vocab=VOCAB, initial=True):
    """Signals and d sum(signals times random numbers) / d product, by score_piece and by Triton."""
    head, piece = replace(head, weight=torch.zeros(vocab, 1)), shared(student)
    pairs = ROWS if student is None else len(student)
    roles = {"teacher": 5, "reference": 6, "base": 7, "live": 8} if student is None or len(student) else {}
    made = [(spread * random(n, vocab, seed=seed)).to(DEVICE, dtype) for n, seed in ((ROWS, 3), (ROWS, 4), *((pairs, seed) for seed in roles.values()))]
    weights = random(5, ROWS, seed=1).to(DEVICE, torch.float32), random(3, pairs if roles else 0, seed=2).to(DEVICE, torch.float32)
    # nothing asks for the gradients of entropies and targets
    weights[0][3], weights[1][:2] = 0, 0
    results = []
    for fast in (False, True):
        own, start, *views = (Product(head=head, values=x.clone().requires_grad_(i == 0)) for i, x in enumerate(made))
        of_views = dict(zip(roles, views, strict=True))
        if fast:
            found = score_products(method, piece, temperature, own, of_views, start if initial else None)
        else:
            found = score_piece(method, piece, temperature, own.logits(), {r: v.logits for r, v in of_views.items()}, start.logits if initial else None)
        loss = sum((f * w).sum() for f, w in zip(found, weights, strict=True))
        results.append((*(f.detach() for f in found), torch.autograd.grad(loss, own.values)[0]))
    return results


def same(results, *, atol=2e-6, rtol=1e-5):
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, atol=atol, rtol=rtol)
    assert results[0][2].float().abs().max() > 1e-2, "an equation without gradient says nothing"


KNOWN = [(t, d) for t in TARGETS for d in DIVERGENCES if supported(replace(ALL_TERMS, target=t, divergence=d), HEAD, [HEAD])]


@pytest.mark.parametrize(("target", "divergence"), KNOWN, ids=str)
def test_every_target_and_divergence_with_three_teachers_one_and_none(target, divergence):
    same(both(replace(ALL_TERMS, target=target, divergence=divergence, loss_temperature=1.3)))


def test_what_is_known_and_what_falls_back():
    dense, few = (ForwardKL, ReverseKL, JSD, Welsch), (TopK, TopKTail, TeacherTopK)
    assert {type(t) for t, _ in KNOWN} == {TeacherDistribution, PMI, TrustRegion}
    for target in {t for t, _ in KNOWN}:
        assert {type(d) for t, d in KNOWN if t == target} >= {*dense, TopK, TopKTail}
    assert {type(d) for t, d in KNOWN if t == TeacherDistribution()} == {*dense, *few}
    others = [Method(target=Sharpened()), Method(divergence=SquaredHellinger()), Method(divergence=TopKTail(JSD(), VOCAB))]
    others += [Method(target=PMI(), divergence=TeacherTopK(3)), Method(target=TrustRegion(), divergence=TopK(JSD(), 3))]
    assert not any(supported(method, HEAD, []) for method in others)
    assert supported(Method(), HEAD, [HEAD]) and not supported(Method(), HEAD, [replace(HEAD, softcap=30.0)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("target", "divergence"), [(TeacherDistribution(), TopKTail(JSD(0.5), 4)), (PMI(), JSD(0.5)), (TrustRegion(0.3), ForwardKL(0.05))], ids=str
)
def test_every_type_of_product(target, divergence, dtype):
    """Statistics are fp32, and a gradient is rounded once: where an entry's token is its own label too, nothing cancels in bf16."""
    rtol = {torch.bfloat16: 2**-7, torch.float16: 2**-9, torch.float64: 1e-5}[dtype]
    same(both(replace(ALL_TERMS, target=target, divergence=divergence), dtype=dtype, spread=1.0), rtol=rtol)


@pytest.mark.parametrize("student", [None, MIXED[:0], MIXED], ids=["one each", "no views", "mixed"])
@pytest.mark.parametrize(
    ("loss", "sampling", "initial"), [(1.0, 1.0, True), (None, 0.6, False), (1.3, 1.0, True), (1.3, 0.6, True), (1.3, 0.6, False)], ids=str
)
def test_teachers_and_temperatures(student, loss, sampling, initial):
    same(both(replace(ALL_TERMS, loss_temperature=loss), student=student, temperature=sampling, initial=initial))


@pytest.mark.parametrize("head", [replace(HEAD, scale=0.5, softcap=3.0), replace(HEAD, scale=2.0)], ids=["softcap", "scale"])
def test_heads_that_scale_and_cap(head):
    same(both(replace(ALL_TERMS, target=PMI(clip=2.0), divergence=ReverseKL(0.05)), head=head))


@pytest.mark.parametrize("vocab", [11, 16, 17])
def test_vocabularies_around_a_tile(vocab, monkeypatch):
    monkeypatch.setattr(triton_sweeps, "TILE", 16)
    same(both(ALL_TERMS, vocab=vocab))


def test_the_tile_of_an_accelerator(monkeypatch):
    monkeypatch.setattr(triton_sweeps, "TILE", WHOLE_TILE)
    same(both(replace(ALL_TERMS, target=PMI()), vocab=2 * WHOLE_TILE + 77), atol=1e-4, rtol=1e-4)


def test_tokens_of_probability_zero_count_nothing():
    """Logits far apart: entries whose weight underflows are 0, and the rest stays finite."""
    for divergence in (ForwardKL(), JSD(0.5), ReverseKL()):
        same(both(replace(ALL_TERMS, divergence=divergence), spread=200.0), atol=1e-4, rtol=1e-4)


def test_terms_without_a_coefficient_are_zero():
    method = Method(distill_coef=0.0, policy_coef=1.0)
    (unique, pairs, _), found = both(method)
    same([(unique, pairs, torch.ones(1)), (*found[:2], torch.ones(1))])
    assert not found[0][2].any() and not found[1][2].any()


def test_backward_is_for_once():
    product = Product(head=HEAD, values=torch.randn(ROWS, VOCAB, device=DEVICE).requires_grad_())
    unique, _ = score_products(ALL_TERMS, shared(MIXED[:0]), 1.0, product, {}, None)
    unique.sum().backward(retain_graph=True)
    assert product.values.grad.data_ptr() == product.values.data_ptr() or torch.equal(product.values.grad, product.values.detach())
    with pytest.raises(AssertionError, match="its own gradient"):
        unique.sum().backward()


def on_device(work: Work) -> Work:
    work.batch = work.batch.to(torch.device(DEVICE))
    move = lambda x: x if x is None else x.detach().to(DEVICE).requires_grad_(x.requires_grad)  # noqa: E731
    work.head = replace(work.head, weight=move(work.head.weight), bias=move(work.head.bias))
    heads = lambda r: replace(r, hidden=move(r.hidden), head=replace(r.head, weight=move(r.head.weight), bias=move(r.head.bias)))  # noqa: E731
    work.hidden = move(work.hidden)
    readings = {role: heads(r) for role, r in work.given["readings"].items()}
    work.given = {"hidden": work.hidden, "head": work.head, "readings": readings, "initial": heads(work.given["initial"])}
    return work


@pytest.mark.parametrize(
    "work",
    [
        Work(replace(ALL_TERMS, divergence=TopKTail(JSD(0.5), 5)), teachers=2, dtype=torch.float32),
        Work(replace(ALL_TERMS, target=PMI()), bias=True, softcap=3.0, scale=0.5, dtype=torch.bfloat16),
        Work(Method(divergence=ForwardKL(0.05), loss_temperature=1.1), frozen=True, dtype=torch.float32),
    ],
    ids=["two teachers", "three views, a bias and a cap in bf16", "a frozen head"],
)
def test_learn_end_to_end(work):
    work = on_device(work)
    loss, gradients, sums = work.reference()
    tight = {"atol": 1e-5, "rtol": 1e-4} if work.dtype == torch.float32 else {"atol": 0.04, "rtol": 0.02}
    found = work.fused(slab=8, kernel="triton")
    torch.testing.assert_close(found.loss.detach(), loss, **tight)
    for one, other in zip(work.gradients(found.loss), gradients, strict=True):
        torch.testing.assert_close(one, other, **tight)
    assert {n: float(v) for n, v in found.sums.items()} == pytest.approx({n: float(v) for n, v in sums.items()}, abs=1e-3, rel=2e-3)


def test_a_slab_is_one_block_and_the_gradient_needs_no_copy(monkeypatch):
    """Every product is made and overwritten once a slab."""
    rows, original = [], fused.score_products

    def seen(method, piece, *rest):
        rows.append(len(piece.token))
        return original(method, piece, *rest)

    monkeypatch.setattr(fused, "score_products", seen)
    work = on_device(Work(Method(divergence=JSD(0.5)), dtype=torch.float32))
    work.fused(slab=8, kernel="triton")
    assert rows == [8, 7]


def test_the_device_chooses(monkeypatch):
    monkeypatch.setattr(fused, "runs", lambda device: True)
    choose = lambda device: fused._scorer(None, Method(), HEAD, others=[HEAD], device=torch.device(device))  # noqa: E731
    assert choose("cpu") is score_logits and choose("cuda") is score_products
    assert fused._scorer("torch", Method(), HEAD, others=[], device=torch.device("cuda")) is score_logits
    assert fused._scorer(None, Method(target=Sharpened()), HEAD, others=[], device=torch.device("cuda")) is score_logits


def test_programs_are_tried_before_they_are_used(monkeypatch, caplog):
    triton_scoring.runs.cache_clear()
    assert triton_scoring.runs(torch.device(DEVICE)) and not caplog.records

    def cannot(*args):
        raise RuntimeError("Failed to find C compiler\nand more")

    for broken, said in ((cannot, "Failed to find C compiler"), (lambda *args: [0.5 * x for x in score_logits(*args)], "its numbers are not")):
        caplog.clear()
        triton_scoring.runs.cache_clear()
        monkeypatch.setattr(triton_scoring, "score_products", broken)
        assert not triton_scoring.runs(torch.device(DEVICE))
        (record,) = caplog.records
        assert said in record.getMessage() and "and more" not in record.getMessage()
    triton_scoring.runs.cache_clear()
