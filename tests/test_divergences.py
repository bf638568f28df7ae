"""Divergences against golden values, sums over single entries in double precision, and gradients worked out by hand."""

import json
import math
from pathlib import Path

import pytest
import torch

from selfdistill.divergences import JSD, ForwardKL, ReverseKL, TopK, TopKTail, Welsch

GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "opsd_clip.json").read_text())


def logps(rows: int, vocab: int, *, seed: int, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(rows, vocab, dtype=torch.float64, generator=generator)).log_softmax(-1)


def tokens(rows: int) -> torch.Tensor:
    return torch.zeros(rows, dtype=torch.long)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"clip={c['clip']}")
def test_opsd_clip_has_the_golden_values_and_gradients(case):
    temperature = GOLDEN["temperature"]
    logits = torch.tensor(GOLDEN["student"], dtype=torch.float64, requires_grad=True)
    target = (torch.tensor(GOLDEN["teacher"], dtype=torch.float64) / temperature).log_softmax(-1)
    clip = math.inf if case["clip"] is None else case["clip"]
    value = ForwardKL(clip)((logits / temperature).log_softmax(-1), target, tokens(len(logits)))
    torch.testing.assert_close(value.detach(), torch.tensor(case["value"], dtype=torch.float64), atol=1e-12, rtol=0)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    torch.testing.assert_close(gradient, torch.tensor(case["gradient"], dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("divergence, kept", [(ForwardKL(0.05), 0.1 * math.log(0.1 / 0.5)), (ReverseKL(0.05), 0.5 * math.log(0.5 / 0.9))], ids=str)
def test_entry_clip_acts_from_above_only_so_a_token_may_be_negative(divergence, kept):
    """Of two entries the positive one is cut at 0.05, the negative one stays whole."""
    student, target = torch.tensor([[0.5, 0.5]]).double().log(), torch.tensor([[0.9, 0.1]]).double().log()
    value = float(divergence(student, target, tokens(1)))
    assert value == pytest.approx(0.05 + kept, abs=1e-7) and value < 0


def entry_by_entry(name: str, student: list[float], target: list[float], beta: float) -> float:
    """The textbook sums, with the mixture formed from probabilities."""
    s, t = [math.exp(x) for x in student], [math.exp(x) for x in target]
    m = [beta * b + (1 - beta) * a for a, b in zip(s, t, strict=True)]
    forward = sum(b * math.log(b / a) for a, b in zip(s, t, strict=True))
    reverse = sum(a * math.log(a / b) for a, b in zip(s, t, strict=True))
    jsd = beta * sum(b * math.log(b / c) for b, c in zip(t, m, strict=True)) + (1 - beta) * sum(a * math.log(a / c) for a, c in zip(s, m, strict=True))
    return {"forward": forward, "reverse": reverse, "jsd": jsd}[name]


@pytest.mark.parametrize(
    "divergence, name, beta",
    [(ForwardKL(), "forward", 0.5), (ReverseKL(), "reverse", 0.5), (JSD(0.5), "jsd", 0.5), (JSD(0.1), "jsd", 0.1), (JSD(0.9), "jsd", 0.9)],
    ids=str,
)
def test_full_vocabulary_sums(divergence, name, beta):
    student, target = logps(6, 17, seed=1), logps(6, 17, seed=2)
    expected = [entry_by_entry(name, s, t, beta) for s, t in zip(student.tolist(), target.tolist(), strict=True)]
    torch.testing.assert_close(divergence(student, target, tokens(6)), torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


def test_gradients_of_both_kls_in_the_students_logits():
    """grad KL(T||S) = S - T; grad KL(S||T) = S (log S - log T - KL)."""
    logits, target = logps(5, 13, seed=1).requires_grad_(), logps(5, 13, seed=2)
    student = logits.log_softmax(-1)
    s, t = student.detach().exp(), target.exp()
    (forward,) = torch.autograd.grad(ForwardKL()(student, target, tokens(5)).sum(), logits, retain_graph=True)
    torch.testing.assert_close(forward, s - t, atol=1e-12, rtol=0)
    gap = student.detach() - target
    (reverse,) = torch.autograd.grad(ReverseKL()(student, target, tokens(5)).sum(), logits)
    torch.testing.assert_close(reverse, s * (gap - (s * gap).sum(-1, keepdim=True)), atol=1e-12, rtol=0)


def test_skewed_jsd_tends_to_the_kl_its_error_names():
    student, target = logps(6, 17, seed=1, spread=1.0), logps(6, 17, seed=2, spread=1.0)
    small = 1e-6
    torch.testing.assert_close(JSD(small)(student, target, tokens(6)) / small, ForwardKL()(student, target, tokens(6)), rtol=1e-4, atol=0)
    torch.testing.assert_close(JSD(1 - small)(student, target, tokens(6)) / small, ReverseKL()(student, target, tokens(6)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("of_student", [False, True])
def test_top_k_takes_its_own_sides_tokens_and_renormalises_both(of_student):
    student, target = logps(4, 9, seed=3), logps(4, 9, seed=4)
    value = TopK(ForwardKL(), 3, of_student=of_student)(student, target, tokens(4))
    for row in range(4):
        side = (student if of_student else target)[row].tolist()
        keep = sorted(range(9), key=lambda v: -side[v])[:3]
        s, t = ([math.exp(float(x[row, v])) for v in keep] for x in (student, target))
        s, t = [x / sum(s) for x in s], [x / sum(t) for x in t]
        assert float(value[row]) == pytest.approx(sum(b * math.log(b / a) for a, b in zip(s, t, strict=True)), abs=1e-12)


def test_tail_bucket_holds_what_is_left_on_each_side():
    student, target = logps(4, 9, seed=3), logps(4, 9, seed=4)
    value = TopKTail(ReverseKL(), 3)(student, target, tokens(4))
    for row in range(4):
        order = sorted(range(9), key=lambda v: -float(student[row, v]))
        s, t = ([math.exp(float(x[row, v])) for v in order] for x in (student, target))
        s, t = [*s[:3], sum(s[3:])], [*t[:3], sum(t[3:])]
        assert float(value[row]) == pytest.approx(sum(a * math.log(a / b) for a, b in zip(s, t, strict=True)), abs=1e-10)


def test_k_of_the_whole_vocabulary_is_the_full_divergence():
    student, target = logps(4, 9, seed=3), logps(4, 9, seed=4)
    for inner in (ForwardKL(), ReverseKL(), JSD(0.3)):
        full = inner(student, target, tokens(4))
        torch.testing.assert_close(TopKTail(inner, 9)(student, target, tokens(4)), full)
        torch.testing.assert_close(TopKTail(inner, 8)(student, target, tokens(4)), full, atol=1e-9, rtol=0)
        torch.testing.assert_close(TopK(inner, 100)(student, target, tokens(4)), full)


def test_welsch_is_quadratic_near_zero_and_bounded_by_log_two():
    target = torch.zeros(4, 2, dtype=torch.float64)
    delta = torch.tensor([1e-3, 0.5, -0.5, 50.0], dtype=torch.float64)
    value = Welsch(2.0)(-delta[:, None].expand(4, 2), target, tokens(4))
    assert float(value[0]) == pytest.approx(1e-6 / (2 * 2.0) / 2, rel=1e-3), "softplus(-x) = log 2 - x/2 + ..."
    assert float(value[1]) == pytest.approx(math.log(2) - math.log1p(math.exp(-0.25 / 4.0)), abs=1e-12)
    assert value[1] == value[2]
    assert float(value[3]) == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize("divergence", [ForwardKL(), ForwardKL(0.05), ReverseKL(), JSD(0.5), TopK(ForwardKL(), 3), TopKTail(JSD(0.5), 3), Welsch()], ids=str)
def test_certain_sides_stay_finite_in_single_precision(divergence):
    """One token with all the mass, the same or another one on the other side, and a target that is exactly zero somewhere."""
    logits = torch.tensor([[80.0, 0, 0, 0, -80], [80.0, 0, 0, 0, -80], [0.0, 0, 0, 0, 0]], requires_grad=True)
    target = torch.tensor([[80.0, 0, 0, 0, -80], [-80.0, 0, 0, 0, 80], [200.0, -200, -200, -200, -200]]).log_softmax(-1)
    value = divergence(logits.log_softmax(-1), target, tokens(3))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all() and gradient.isfinite().all()
    assert abs(float(value[0].detach())) < 1e-6


def test_forward_kl_takes_a_target_that_excludes_tokens():
    """A target with log-probability -inf gives those entries 0, as 0 log 0 = 0."""
    student = torch.full((1, 3), 1 / 3, dtype=torch.float64).log().requires_grad_()
    value = ForwardKL()(student, torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log(), tokens(1))
    assert float(value.detach()) == pytest.approx(math.log(1.5), abs=1e-12)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    torch.testing.assert_close(gradient, torch.tensor([[-0.5, -0.5, 0.0]], dtype=torch.float64))


def test_jsd_keeps_its_gradient_where_a_target_excludes_tokens():
    """d JSD / d log S = (1 - beta) S (log S - log m) at every entry, and m = (1 - beta) S where T is 0."""
    student = torch.tensor([[1.0, 0.3, -0.5]], dtype=torch.float64).log_softmax(-1).requires_grad_()
    value = JSD(0.3)(student, torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log(), tokens(1))
    (gradient,) = torch.autograd.grad(value.sum(), student)
    probabilities = student[0].detach().exp().tolist()
    mixture = [0.3 * t + 0.7 * s for t, s in zip((0.5, 0.5, 0.0), probabilities, strict=True)]
    pulls = [0.7 * s * math.log(s / m) for s, m in zip(probabilities, mixture, strict=True)]
    torch.testing.assert_close(gradient[0], torch.tensor(pulls, dtype=torch.float64))
    assert float(value.detach()) == pytest.approx(sum(pulls) + 0.3 * sum(0.5 * math.log(0.5 / m) for m in mixture[:2]), abs=1e-12)


@pytest.mark.parametrize("wrapper", [TopK, TopKTail])
def test_k_of_zero_is_refused(wrapper):
    with pytest.raises(ValueError, match="at least 1, not 0"):
        wrapper(ForwardKL(), 0)


@pytest.mark.parametrize("wrapper", [TopK, TopKTail])
def test_divergences_of_the_sampled_token_are_not_cut_to_top_k(wrapper):
    """Welsch looks at the sampled token alone, which need not be among the likeliest."""
    with pytest.raises(ValueError, match="Welsch"):
        wrapper(Welsch(), 3)
