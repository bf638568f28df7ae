"""Tell-tale equalities: where two methods, or a method and a formula, must agree to the last digit."""

import math
from dataclasses import replace

import pytest
import torch
from scene import Scene
from stepping import score_tensors, step
from tiny_models import tiny_groups, tiny_policy

from selfdistill.contexts import Answer, FrozenAndLive, Privileged
from selfdistill.divergences import JSD, ForwardKL, ReverseKL, TopKTail
from selfdistill.heads import Head
from selfdistill.loss import objective
from selfdistill.method import Method
from selfdistill.method_names import build_method
from selfdistill.methods import METHODS, grpo, grpo_plus, hsd, opd, opsd, purified_opsd, pw_opsd, rcsd, sdft, sdpo, sdpo_trust_region
from selfdistill.policy_losses import ClippedRatio, SequenceRatio
from selfdistill.reductions import SequenceMean
from selfdistill.sources import OnPolicy
from selfdistill.targets import PMI
from selfdistill.teachers import EMA, Frozen, Live
from selfdistill.token_weights import Uniform
from selfdistill.types import Note, Teaching


def agree(one: Method, other: Method, *, rewards: float | None = None, exact: bool = False, change=lambda groups: None) -> float:
    """Asserts equal loss and gradient on the same step, and that there is a gradient; returns the loss."""
    found = []
    for method in (one, other):
        scene = Scene(method, rewards=rewards)
        change(scene.groups)
        found.append(scene.found()[:2])
    (loss, gradient), (loss_other, gradient_other) = found
    assert gradient.abs().max() > 1e-5
    if exact:
        assert loss == loss_other and torch.equal(gradient, gradient_other)
    assert loss == pytest.approx(loss_other, abs=1e-6)
    torch.testing.assert_close(gradient, gradient_other, atol=1e-6, rtol=1e-5)
    return loss


def test_hsd_without_successes_is_opsd_on_the_answer():
    on_answer = replace(opsd(clip=math.inf), context=Privileged((Answer(),), thinking=False), reduction=SequenceMean(), loss_temperature=1.0)
    assert agree(hsd(teacher=Frozen(), reference_coef=0), on_answer, rewards=0.0, exact=True) > 0


def test_hsd_with_successes_is_not():
    """The condition matters: one success anywhere and the two methods part."""
    on_answer = replace(opsd(clip=math.inf), context=Privileged((Answer(),), thinking=False), reduction=SequenceMean(), loss_temperature=1.0)
    with pytest.raises(AssertionError):
        agree(hsd(teacher=Frozen(), reference_coef=0), on_answer)


def test_pw_opsd_with_floor_one_is_opsd_by_sequence():
    agree(pw_opsd(floor=1), replace(opsd(), reduction=SequenceMean()))
    assert replace(pw_opsd(floor=1), token_weight=opsd().token_weight) == replace(opsd(), reduction=SequenceMean())


def test_pw_opsd_with_a_flat_schedule_is_its_constant_control():
    flat = pw_opsd(floor=0.771, center=1e6)
    agree(flat, replace(opsd(), reduction=SequenceMean(), token_weight=Uniform(0.771)))


def test_rcsd_whose_rubric_is_the_reference_is_opsd_at_its_temperature():
    """In the same words, over the whole vocabulary."""

    def show(groups):
        for group in groups:
            group.notes["rubric"] = (Note(fields={"rubric": group.problem.solution}),)
            same = group.problem.templates["solution"].replace("{solution}", "{rubric}")
            group.problem = replace(group.problem, templates={**group.problem.templates, "rubric": same})

    agree(rcsd(top_k=10**6), replace(opsd(), loss_temperature=1.2), change=show)


class TeacherIsReference:
    """Purified OPSD's three views with the reference view replaced by the teacher's."""

    def __call__(self, rollout, group):
        return [Teaching(views={**t.views, "reference": t.views["teacher"]}) for t in purified_opsd().context(rollout, group)]


class BaseAlone:
    """The base view as the only teacher."""

    def __call__(self, rollout, group):
        return [Teaching(views={"teacher": t.views["base"]}) for t in purified_opsd().context(rollout, group)]


def test_purified_opsd_whose_teacher_is_its_reference_targets_the_base():
    same = replace(purified_opsd(), context=TeacherIsReference())
    agree(same, replace(purified_opsd(), context=BaseAlone(), target=opsd().target))


def test_purified_opsd_of_the_unmoved_student_then_teaches_nothing():
    policy = tiny_policy()
    loss, gradient, _ = step(replace(purified_opsd(), context=TeacherIsReference(), target=PMI()), policy, tiny_groups(policy))
    assert abs(loss) < 1e-6 and gradient.abs().max() < 1e-6


DISTILLED = [f for f in METHODS if (method := build_method(f.__name__, {}, max_completion_length=16)).reads_teacher and not method.policy_coef]


@pytest.mark.parametrize("function", DISTILLED, ids=lambda f: f.__name__)
def test_hybrid_without_distillation_is_grpo(function):
    """With X's reduction, trained positions and policy loss, where X has no label or reference term."""
    inner = replace(build_method(function.__name__, {}, max_completion_length=16), reference_coef=0.0)
    hybrid = grpo_plus(inner, distill_coef=0.0)
    plain = replace(grpo(), reduction=inner.reduction, policy_loss=inner.policy_loss)
    agree(hybrid, plain, exact=True)
    policy = tiny_policy()
    assert not any(s.batch.views for s in step(hybrid, policy, tiny_groups(policy))[2]), "a coefficient of zero reads no teacher"


def test_no_teacher_anywhere_is_grpo():
    """K = 0: a hybrid whose context finds nothing for anybody."""

    def forget(groups):
        for group in groups:
            group.problem = replace(group.problem, solution="")

    agree(grpo_plus(opsd()), replace(grpo(), reduction=opsd().reduction), exact=True, change=forget)


def test_kl_to_the_start_is_nothing_at_the_start():
    policy = tiny_policy()
    groups = tiny_groups(policy)
    with_kl, without = step(hsd(reference_coef=10.0), policy, groups), step(hsd(reference_coef=0.0), policy, groups)
    assert with_kl[0] == pytest.approx(without[0], abs=1e-6)
    torch.testing.assert_close(with_kl[1], without[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [opsd, hsd, sdpo, purified_opsd], ids=lambda f: f.__name__)
def test_before_the_first_update_all_teachers_are_one(make):
    policy = tiny_policy()
    groups = tiny_groups(policy)
    losses = [step(replace(make(), teacher=teacher), policy, groups) for teacher in (Live(), Frozen(), EMA(0.3))]
    for loss, gradient, _ in losses[1:]:
        assert loss == pytest.approx(losses[0][0], abs=1e-7)
        torch.testing.assert_close(gradient, losses[0][1], atol=1e-7, rtol=1e-5)


def test_trust_region_ends_at_the_frozen_and_at_the_live_teacher():
    privileged = sdpo().context
    for mix, weights in ((0.0, Frozen()), (1.0, Live())):
        plain = replace(sdpo_trust_region(mix=mix), context=privileged, teacher=weights, target=opsd().target)
        agree(replace(sdpo_trust_region(mix=mix), context=FrozenAndLive(privileged)), plain)


def test_top_k_of_everything_is_the_whole_vocabulary():
    agree(sdpo(top_k=10**6), replace(sdpo(), divergence=JSD(0.5)))
    agree(replace(sdpo(), divergence=TopKTail(JSD(0.5), 55)), replace(sdpo(), divergence=JSD(0.5)))


def test_sdft_that_skips_nothing_is_unclipped_opsd_with_an_average_and_sequence_mean():
    plain = replace(opsd(clip=math.inf), context=sdft().context, teacher=EMA(0.01), loss_temperature=1.0, reduction=SequenceMean())
    agree(replace(sdft(), source=OnPolicy()), plain, exact=True)
    assert sdft(skip_first=0).source == OnPolicy()


def test_sequence_ratio_of_one_token_is_the_tokens_ratio():
    def one_token(groups):
        for rollout in (r for g in groups for r in g.rollouts):
            rollout.completion_ids, rollout.behavior_logp = rollout.completion_ids[:1], rollout.behavior_logp[:1]

    agree(replace(grpo(), policy_loss=SequenceRatio(0.2, 0.2)), replace(grpo(), policy_loss=ClippedRatio(0.2, 0.2)), change=one_token)


def heads(*, vocab: int = 5, hidden: int = 3) -> tuple[torch.Tensor, Head, torch.Tensor, Head]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, hidden, generator=generator) for _ in range(2))
    weights = [torch.randn(vocab, hidden, generator=generator) for _ in range(2)]
    return student, Head(weight=weights[0], bias=None), teacher, Head(weight=weights[1], bias=None)


def exact_gradient(method: Method, hidden, head, teacher, teacher_head) -> torch.Tensor:
    states = hidden.clone().requires_grad_()
    signals = score_tensors(method, hidden=states, head=head, views={"teacher": (teacher, teacher_head)}, token=torch.tensor([0]))
    return torch.autograd.grad(objective(method, signals)[0], states)[0]


def test_sampled_token_credit_gives_the_exact_gradient_of_reverse_kl():
    """E over y ~ S of OPD's gradient is that of KL(S || T), by enumerating a vocabulary of five through scoring and objective."""
    hidden, head, teacher, teacher_head = heads()
    exact = exact_gradient(Method(divergence=ReverseKL()), hidden, head, teacher, teacher_head)
    student = head(hidden).log_softmax(-1)[0]
    total = torch.zeros_like(hidden)
    for y in range(5):
        states = hidden.clone().requires_grad_()
        signals = score_tensors(opd(), hidden=states, head=head, views={"teacher": (teacher, teacher_head)}, token=torch.tensor([y]))
        batch = replace(signals.batch, policy_scale=torch.ones(1), behavior_logp=student[y : y + 1].detach())
        loss, _ = objective(opd(), replace(signals, batch=batch))
        total += float(student[y].exp()) * torch.autograd.grad(loss, states)[0]
    assert exact.abs().max() > 0.01
    torch.testing.assert_close(total, exact, atol=1e-6, rtol=1e-5)


def test_forward_and_reverse_kl_pull_apart_on_those_states():
    """So the equality above can fail."""
    hidden, head, teacher, teacher_head = heads()
    forward, reverse = (exact_gradient(Method(divergence=d), hidden, head, teacher, teacher_head) for d in (ForwardKL(), ReverseKL()))
    assert (forward - reverse).abs().max() > 0.01
