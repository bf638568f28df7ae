"""The fused loss is `objective(score(...))` with its gradient: for every target and divergence, type, head and way of cutting a micro-batch."""

from dataclasses import replace

import pytest
import torch
from fusing import ALL_TERMS, LENGTHS, VOCAB, Work
from test_laws import CREDITS, DIVERGENCES, POLICY_LOSSES, TARGETS, WEIGHTS

from selfdistill.divergences import ForwardKL
from selfdistill.heads import Head
from selfdistill.kernels import fused
from selfdistill.method import Method
from selfdistill.scoring import score
from selfdistill.token_weights import PolarityGate, Product, Uniform


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_every_target_and_divergence(target, divergence):
    Work(replace(ALL_TERMS, target=target, divergence=divergence, loss_temperature=1.3)).check()


@pytest.mark.parametrize("teachers", [0, 1, 3])
@pytest.mark.parametrize("part", [*WEIGHTS, Product((Uniform(0.5), PolarityGate())), *CREDITS, *POLICY_LOSSES], ids=str)
def test_every_part_that_looks_along_a_rollout(part, teachers):
    """Whether it may be cut inside a rollout or not, whatever the number of teachers."""
    name = next(
        n for n, parts in (("token_weight", (*WEIGHTS, Product)), ("credit", CREDITS), ("policy_loss", POLICY_LOSSES)) if part in parts or type(part) in parts
    )
    Work(replace(ALL_TERMS, **{name: part}), teachers=teachers).check()


@pytest.mark.parametrize(
    "head", [{"frozen": True}, {"bias": True}, {"scale": 0.5, "softcap": 3.0, "bias": True}, {"frozen": True, "bias": True, "scale": 2.0}], ids=str
)
def test_every_head(head):
    Work(replace(ALL_TERMS, divergence=ForwardKL(0.05)), **head).check()


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.04)], ids=str)
def test_types(dtype, atol):
    """bfloat16 products with fp32 statistics, as autograd would have them."""
    Work(ALL_TERMS, dtype=dtype).check(atol=atol, rtol=0.02 if dtype == torch.bfloat16 else 1e-4)


def test_under_autocast_the_head_keeps_an_fp32_gradient():
    work = Work(ALL_TERMS, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradients, _ = work.reference()
        found = work.fused(slab=4, block=2)
    assert float(found.loss.detach()) == pytest.approx(float(loss), rel=0.02)
    states, weight = torch.autograd.grad(found.loss, (work.hidden, work.head.weight))
    assert states.dtype == weight.dtype == torch.float32
    for one, other in zip((states, weight), gradients, strict=True):
        assert torch.nn.functional.cosine_similarity(one.double().flatten(), other.flatten(), dim=0) > 0.999


def test_backward_scales_what_it_hands_on():
    work = Work(ALL_TERMS)
    whole, twice = work.gradients(work.fused().loss), work.gradients(-2 * work.fused().loss)
    for one, other in zip(whole, twice, strict=True):
        torch.testing.assert_close(other, -2 * one)


def test_a_heads_gradient_becomes_the_parameters_and_is_not_copied():
    work, made = Work(ALL_TERMS), []
    head = work.given["head"] = replace(work.head, weight=torch.nn.Parameter(work.head.weight.detach()))
    zeros = fused.torch.zeros_like
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused.torch, "zeros_like", lambda x: (made.append(zeros(x)), made[-1])[1])
        loss = work.fused().loss
    places = {x.data_ptr() for x in made if x.shape == head.weight.shape}
    made.clear()
    loss.backward(retain_graph=True)
    assert head.weight.grad.data_ptr() in places
    with pytest.raises(RuntimeError, match="handed on"):
        loss.backward()


def rows_made(monkeypatch) -> list[int]:
    made: list[int] = []
    original = Head.product
    monkeypatch.setattr(Head, "product", lambda self, hidden: (made.append(len(hidden)), original(self, hidden))[1])
    return made


@pytest.mark.parametrize("teachers", [1, 3])
def test_every_logit_is_computed_once_and_no_more_than_a_slab_together(monkeypatch, teachers):
    made = rows_made(monkeypatch)
    work = Work(replace(ALL_TERMS, reference_coef=0.0), teachers=teachers)
    work.given |= {"initial": None, "readings": {"teacher": work.given["readings"]["teacher"]}}
    work.gradients(work.fused(slab=5, block=2).loss)
    assert sum(made) == sum(LENGTHS) * (1 + teachers) and max(made) <= 5 * teachers


def test_a_rollout_above_a_slab_is_scored_twice_where_a_part_looks_along_it(monkeypatch):
    made = rows_made(monkeypatch)
    work = Work(Method(token_weight=PolarityGate(clip=0.2, threshold=0.0)))
    work.given |= {"initial": None, "readings": {"teacher": work.given["readings"]["teacher"]}}
    work.gradients(work.fused(slab=5, block=2).loss)
    assert sum(made) == 4 * sum(LENGTHS) and max(made) <= 5


def test_a_slab_grows_to_the_longest_rollout_that_a_part_looks_along(monkeypatch):
    made = rows_made(monkeypatch)
    monkeypatch.setattr(fused, "SLAB_ENTRIES", {"cpu": 2 * VOCAB})
    work = Work(Method(token_weight=PolarityGate(clip=0.2, threshold=0.0)))
    work.given |= {"initial": None, "readings": {"teacher": work.given["readings"]["teacher"]}}
    work.gradients(work.fused().loss)
    assert sum(made) == 2 * sum(LENGTHS) and max(made) == max(LENGTHS)


@pytest.mark.parametrize("part", [p for p in (*WEIGHTS, *CREDITS, *POLICY_LOSSES) if getattr(p, "pointwise", False)], ids=str)
def test_what_is_declared_pointwise_is(part):
    """Each half of a rollout's tokens has the values that it has in the whole."""
    work = Work(ALL_TERMS, teachers=2)
    signals = score(ALL_TERMS, work.batch, **work.given)
    call = (lambda s: part(s, s.advantage)[0]) if part in POLICY_LOSSES else part
    whole, fields = call(signals), ("logp", "policy_logp", "label_kl", "entropy", "target_logp", "target_entropy", "divergence", "reference_kl")
    for chosen in (torch.arange(0, len(whole), 2), torch.arange(1, len(whole), 2)):
        half = replace(
            signals, batch=work.batch.at(chosen, samples=slice(0, len(work.batch.length)), first=0), **{n: getattr(signals, n)[chosen] for n in fields}
        )
        torch.testing.assert_close(call(half), whole[chosen])
