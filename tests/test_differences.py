"""What tells one method from the next: the differences its paper claims, and no other."""

from dataclasses import replace

import pytest
import torch
from scene import Scene
from stepping import method_named

from selfdistill.advantages import GroupRelative, TeacherCredit
from selfdistill.contexts import Privileged, Solution
from selfdistill.divergences import JSD, ForwardKL
from selfdistill.labels import WindowMean
from selfdistill.method import Method, describe, diff
from selfdistill.method_names import build_method
from selfdistill.methods import gkd, grpo, grpo_blend, opsd, rlsd, sdpo, topd
from selfdistill.policy_losses import SequenceRatio
from selfdistill.sources import Mixed, OnPolicy
from selfdistill.targets import TrustRegion
from selfdistill.teachers import Live
from selfdistill.token_weights import Uniform

GRADIENT_FOR_DIVERGENCE = {"divergence", "credit", "policy_coef", "distill_coef"}
"""A full-vocabulary divergence in place of a policy gradient on log T(y) - log S(y)."""

CLAIMED = {
    # sigmoid over the position; divided by each rollout's own length
    ("pw_opsd", "opsd"): {"token_weight", "reduction"},
    # three views, PMI, JSD(0.5) without entry clip; mean over rollouts is ours
    ("purified_opsd", "opsd"): {"context", "target", "divergence", "reduction"},
    # no deviation, token sums over the length limit
    ("dr_grpo", "grpo"): {"advantage", "reduction"},
    # uniform groups resampled, overlong penalty, 0.2 / 0.28, token mean
    ("dapo", "grpo"): {"source", "feedback", "policy_loss", "reduction"},
    ("gspo", "grpo"): {"policy_loss"},
    # OPD + gated KL over the teacher's top 16
    ("eopd", "opd"): {"divergence", "token_weight", "distill_coef"},
    ("entropy_opd", "opd"): GRADIENT_FOR_DIVERGENCE | {"token_weight"},
    ("entropy_opd", "gkd"): {"divergence", "token_weight"},
    ("gkd", "opd"): GRADIENT_FOR_DIVERGENCE,
    # two readings of one prompt, frozen and live, mixed
    ("sdpo_trust_region", "sdpo"): {"context", "teacher", "target"},
    # first 3 tokens skipped, a demonstration, an average, no clip, temperature 1; mean over rollouts in the published code
    ("sdft", "opsd"): {"source", "context", "teacher", "divergence", "loss_temperature", "reduction"},
    # peer and answer, live, no clip, KL to pi_0, mean over rollouts; temperature 1 is ours
    ("hsd", "opsd"): {"context", "teacher", "divergence", "reference_coef", "loss_temperature", "reduction"},
    # a rubric, top 20, temperature 1.2
    ("rcsd", "opsd"): {"feedback", "context", "divergence", "loss_temperature"},
    # asked for a rubric, no clip, temperature 1.2
    ("rcsd_writer", "opsd"): {"source", "context", "divergence", "loss_temperature"},
    # a live reading of the solution scales the credit
    ("rlsd", "grpo"): {"context", "teacher", "credit"},
    ("topd_self", "topd"): {"context", "teacher"},
    # reverse KL on every token, and windows
    ("topd", "opd"): GRADIENT_FOR_DIVERGENCE | {"feedback", "labels", "label_coef"},
    ("topd", "gkd"): {"divergence", "feedback", "labels", "label_coef"},
    # a critique; no clip and temperature 1 are ours
    ("step_critique", "opsd"): {"feedback", "context", "divergence", "loss_temperature"},
    # scores of prefixes, their change as credit, 0.2 / 0.26
    ("exprl_process", "exprl"): {"feedback", "credit", "policy_loss"},
    # a judge's score as reward, 0.2 / 0.28, KL to pi_0
    ("exprl", "grpo"): {"feedback", "policy_loss", "reference_coef"},
    # turns, the full prompt, the model itself, frozen; reverse KL
    ("ccopd", "opd"): GRADIENT_FOR_DIVERGENCE | {"source", "context", "teacher"},
    # K pairs, live, Welsch, polarity, no clip, temperature 1, mean over rollouts
    ("sgsd", "opsd"): {"feedback", "context", "teacher", "divergence", "token_weight", "loss_temperature", "reduction"},
    # the sum of both losses, under X's reduction
    ("grpo_plus(opsd)", "opsd"): {"policy_coef", "distill_coef"},
    ("grpo_plus(opsd)", "grpo"): {"context", "divergence", "loss_temperature", "distill_coef", "reduction"},
    # one credit of both, no divergence
    ("grpo_blend(sdpo)", "sdpo"): {"credit", "policy_coef", "distill_coef"},
    ("grpo_blend(opsd)", "grpo"): {"context", "credit", "loss_temperature", "reduction"},
    ("shuffled_context(opsd)", "opsd"): {"feedback", "context"},
}


def named(name: str) -> Method:
    return build_method(name, {}, max_completion_length=16)


@pytest.mark.parametrize(("one", "other"), CLAIMED, ids=" vs ".join)
def test_methods_differ_in_what_their_papers_claim(one, other):
    assert set(diff(named(one), named(other))) == CLAIMED[one, other]


def test_what_differs_is_shown_as_each_has_it():
    assert diff(rlsd(), grpo()) == {
        "context": ("Privileged(sources=(Solution(),))", "-"),
        "teacher": ("Live()", "-"),
        "credit": ("ReweightedCredit()", "OutcomeCredit()"),
    }
    assert diff(gkd(), named("opd"))["credit"] == ("-", "TeacherCredit()")


def test_parts_that_no_term_reads_are_no_difference():
    """A blend computes no divergence, so that of the method inside it is none of its own."""
    one, other = grpo_blend(opsd()), grpo_blend(replace(opsd(), divergence=ForwardKL()))
    assert one != other and diff(one, other) == {} and describe(one)["divergence"] == "-"
    assert describe(topd(trajectory_coef=0.0))["labels"] == "-" and describe(sdpo())["credit"] == describe(sdpo())["advantage"] == "-"
    assert describe(replace(topd(), distill_coef=0.0))["divergence"] == "ReverseKL()", "windows are chosen by it"


OTHERS = {
    "context": Privileged((Solution(),)),
    "teacher": Live(),
    "target": TrustRegion(),
    "divergence": JSD(0.3),
    "token_weight": Uniform(7.0),
    "advantage": GroupRelative(normalize=False),
    "credit": TeacherCredit(),
    "policy_loss": SequenceRatio(),
    "labels": WindowMean(3),
    "loss_temperature": 2.0,
}


@pytest.mark.parametrize("name", ["opsd", "grpo", "opd", "sft", "topd", "rlsd", "eopd", "hsd", "grpo_blend(opsd)"])
def test_what_is_shown_as_unused_could_be_anything(name):
    """Other parts in those fields leave loss and gradient as they are."""
    method = method_named(name)
    unused = {field for field, text in describe(method).items() if text == "-"}
    assert unused
    ways = [Scene(method), Scene(replace(method, **{field: OTHERS[field] for field in unused}))]
    (loss, gradient, _), (same, again, _) = (scene.found() for scene in ways)
    assert loss == same and torch.equal(gradient, again) and gradient.any()


def test_gkd_that_is_all_on_policy_has_its_source():
    assert gkd().source == OnPolicy() and gkd(on_policy_share=0.5).source == Mixed(0.5)


def test_parts_print_as_the_call_that_makes_them():
    text = describe(rlsd())["context"]
    assert text == "Privileged(sources=(Solution(),))"
    assert build_method("sgsd", {"context": text}, max_completion_length=16).context == rlsd().context
