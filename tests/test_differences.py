"""What tells one method from the next: the differences its paper claims, and no other."""

from dataclasses import replace

import pytest
import torch
from scene import Scene
from stepping import method_named

from selfdistill.advantages import GroupRelative, TeacherCredit
from selfdistill.contexts import Privileged, Solution
from selfdistill.divergences import JSD, ForwardKL, ReverseKL
from selfdistill.labels import WindowMean
from selfdistill.method import Method, besides, describe, diff
from selfdistill.method_names import build_method
from selfdistill.methods import entropy_opd, gkd, grpo, grpo_blend, opcod, opd, opsd, rlsd, sdpo, topd
from selfdistill.policy_losses import SequenceRatio
from selfdistill.sources import Mixed, OnPolicy
from selfdistill.targets import TrustRegion
from selfdistill.teachers import Live
from selfdistill.token_weights import Uniform
from selfdistill.variants import apart

CLAIMED = {
    # sigmoid over the position; divided by each rollout's own length
    ("pw_opsd", "opsd"): "token_weight reduction",
    # three views, PMI, JSD without entry clip
    ("purified_opsd", "opsd"): "context target divergence",
    # a critique in the reference's place
    ("step_critique", "opsd"): "feedback context",
    # a rubric, top 20, temperature 1.2
    ("rcsd", "opsd"): "feedback context divergence loss_temperature",
    # asked for a rubric, under the reference; the formula's KL, where the second stage has top 20 and clip
    ("rcsd_writer", "rcsd"): "source feedback context divergence",
    ("rcsd_writer", "opsd"): "source context divergence loss_temperature",
    # K pairs, live, Welsch, polarity; temperature 1 and mean over rollouts in the published code
    ("sgsd", "opsd"): "feedback context teacher divergence token_weight loss_temperature reduction",
    # first 3 tokens skipped, a demonstration, an average, no clip, temperature 1; mean over rollouts in the published code
    ("sdft", "opsd"): "source context teacher divergence loss_temperature reduction",
    ("sdft", "sdpo"): "source context teacher divergence token_weight loss_temperature reduction",
    # peer and answer, live, the formula's KL, KL to pi_0, mean over rollouts
    ("hsd", "opsd"): "context teacher divergence reference_coef reduction",
    ("hsd", "sdpo"): "context teacher divergence token_weight reference_coef reduction",
    # turns, the full prompt, reverse KL
    ("ccopd", "opsd"): "source context divergence",
    # turns, the full prompt, the model itself
    ("ccopd", "opd"): "source context teacher",
    ("gkd", "opd"): "divergence credit",
    # a gate, and behind it KL over the teacher's top 16
    ("eopd", "opd"): "divergence token_weight",
    ("entropy_opd", "opd"): "token_weight",
    ("entropy_opd", "gkd"): "divergence token_weight",
    # windows and what they are taught
    ("topd", "opd"): "feedback labels",
    ("topd", "gkd"): "feedback divergence labels",
    ("topd_self", "topd"): "context teacher",
    # windows, reverse KL; TOPD's temperature
    ("topd_self", "opsd"): "feedback divergence labels loss_temperature",
    # two readings of one prompt, frozen and live, mixed
    ("sdpo_trust_region", "sdpo"): "context teacher target",
    # what a peer says, beside an own success
    ("opcod", "sdpo"): "feedback context",
    # no deviation, token sums over the length limit
    ("dr_grpo", "grpo"): "advantage reduction",
    # uniform groups resampled, overlong penalty, 0.2 / 0.28, token mean
    ("dapo", "grpo"): "source feedback policy_loss reduction",
    ("gspo", "grpo"): "policy_loss",
    # a live reading of the solution scales the credit
    ("rlsd", "grpo"): "context teacher credit",
    # a judge's score as reward, 0.2 / 0.28, KL to pi_0
    ("exprl", "grpo"): "feedback policy_loss reference_coef",
    # scores of prefixes, their change as credit, 0.2 / 0.26
    ("exprl_process", "exprl"): "feedback credit policy_loss",
    # the sum of both losses, under X's reduction
    ("grpo_plus(opsd)", "opsd"): "policy_coef distill_coef",
    ("grpo_plus(opsd)", "grpo"): "context divergence loss_temperature distill_coef reduction",
    ("grpo_plus(hsd)", "grpo"): "context teacher distill_coef reference_coef",
    # one credit of both, no divergence
    ("grpo_blend(sdpo)", "sdpo"): "credit distill_coef",
    ("grpo_blend(opsd)", "grpo"): "context credit loss_temperature reduction",
    ("shuffled_context(opsd)", "opsd"): "feedback context",
    ("shuffled_peers(hsd)", "hsd"): "feedback context",
    ("constant_weight(pw_opsd)", "pw_opsd"): "token_weight",
    ("no_clip(opsd)", "opsd"): "divergence",
    ("other_direction(opsd)", "opsd"): "divergence",
    ("other_weights(opsd)", "opsd"): "teacher",
}
"""What each paper states, or its published code, and so all that may differ beyond what was decided here."""
SILENT = {
    ("step_critique", "opsd"): "divergence loss_temperature",
    ("purified_opsd", "opsd"): "reduction",
    ("hsd", "opsd"): "loss_temperature",
    ("hsd", "sdpo"): "loss_temperature",
    ("ccopd", "opsd"): "loss_temperature",
}
"""Where the papers state nothing and ours is not the relative's."""


def named(name: str) -> Method:
    return build_method(name, {}, max_completion_length=16)


@pytest.mark.parametrize(("one", "other"), CLAIMED, ids=map(" vs ".join, CLAIMED))
def test_methods_differ_in_what_their_papers_claim(one, other):
    found, decided = apart(named(one), named(other), (one, other))
    assert set(found) == set(CLAIMED[one, other].split())
    assert set(decided) == set(SILENT.get((one, other), "").split())
    assert set(diff(named(other), named(one))) == {*found, *decided}


def test_a_credit_and_the_divergence_that_it_estimates_are_one_objective():
    """Unless nothing else differs: then that is the difference."""
    assert besides(topd(), opd()) == {"the same gradient in expectation": ("ReverseKL()", "TeacherCredit()")} and besides(gkd(), opd()) == {}
    assert diff(entropy_opd(), opd())["token_weight"] == ("TeacherConfidence()", "Uniform()")
    assert set(diff(gkd(divergence=ReverseKL()), opd())) == {"divergence", "credit"} and besides(gkd(divergence=ReverseKL()), opd()) == {}
    assert set(diff(replace(topd(), distill_coef=0.5), opd())) == {"feedback", "labels", "distill_coef"}, "half of it is not all of it"


def test_what_only_measures_is_shown_apart():
    assert diff(opcod(), sdpo())["feedback"] == ("(PeerFeedback(),)", "()")
    assert besides(opcod(), sdpo()) == {"measures, trains nothing": ("BreakRates(feedback=PeerFeedback())", "-")}
    assert diff(opcod(breaks_every=0), opcod()) == {} and set(besides(opcod(breaks_every=0), opcod())) == {"measures, trains nothing"}


def test_what_differs_is_shown_as_each_has_it():
    assert diff(rlsd(), grpo()) == {
        "context": ("Privileged(sources=(Solution(),))", "-"),
        "teacher": ("Live()", "-"),
        "credit": ("ReweightedCredit()", "OutcomeCredit()"),
    }
    assert diff(gkd(), opd())["credit"] == ("-", "TeacherCredit()")


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
