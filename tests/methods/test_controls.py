"""Controls and ablations change one thing each, and say so where there is nothing to change."""

import inspect
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from stepping import tools_of
from tiny_models import tiny_policy, tiny_problems

from selfdistill.cli import main
from selfdistill.cli.comparing import null_control
from selfdistill.cli.overrides import parse_overrides
from selfdistill.config import load_settings
from selfdistill.divergences import JSD, ForwardKL, ReverseKL, TopK
from selfdistill.launcher import Job
from selfdistill.method import Method, diff
from selfdistill.method_names import build_method
from selfdistill.methods import (
    CONTROLS,
    METHODS,
    ccopd,
    constant_weight,
    eopd,
    exprl_process,
    gkd,
    grpo,
    grpo_blend,
    grpo_plus,
    hsd,
    no_clip,
    null_context,
    opd,
    opsd,
    other_direction,
    other_weights,
    pw_opsd,
    rcsd,
    rlsd,
    sdpo,
    sft,
    sgsd,
    shuffled_context,
    shuffled_peers,
)
from selfdistill.pairing import uncontrolled
from selfdistill.teachers import EMA, Frozen, Live
from selfdistill.token_weights import Uniform
from selfdistill.types import Group, Note, Rollout
from selfdistill.variants import ABLATIONS, controls_of

WRAPPED = {
    "grpo": [],
    "opd": [],
    "gkd": [],
    "opsd": ["null_context", "no_clip", "other_direction", "other_weights"],
    "pw_opsd": ["null_context", "constant_weight", "no_clip", "other_direction", "other_weights"],
    "hsd": ["null_context", "shuffled_peers", "other_direction", "other_weights"],
    "sdpo": ["null_context", "shuffled_peers", "constant_weight", "other_weights"],
}
CHANGES = {
    "context": {"opsd.context", "sdpo.context", "opcod.context", "hsd.failed_only", "hsd.peer", "rcsd.with_reference", "sgsd.context", "rcsd.reason_first"},
    "divergence": {"gkd.divergence", "sdpo.divergence"},
    "token_weight": {"eopd.threshold", "sgsd.gate", "pw_opsd.value"},
    "target": {"sdpo_trust_region.mix", "purified_opsd.clip"},
    "source": {"dapo.tries", "gkd.on_policy_share", "sdft.skip_first", "ccopd.conversation"},
    "credit": {"rlsd.clip", "grpo_blend.outcome_share"},
    "reference_coef": {"hsd.reference_coef", "exprl.reference_coef", "exprl_process.reference_coef"},
    "distill_coef": {"grpo_plus.distill_coef", "eopd.distill_coef"},
    "label_coef": {"topd.trajectory_coef"},
    "feedback": {
        *("opcod.gate", "opcod.anchor", "rcsd.rubrics", "rcsd.reason_first", "sgsd.pairs", "sgsd.retrieval", "sgsd.every"),
        *("step_critique.critic", "exprl.judge", "exprl_process.judge", "topd.lesson", "topd.transport", "topd_self.lesson"),
    },
}
"""Which arguments of which methods an ablation may set to change a field."""
LISTED = [f.__name__ for f in METHODS] + ["grpo_plus(pw_opsd)", "grpo_blend(sdpo)"]
ENTRIES = [(owner, settings) for owner, entries in ABLATIONS.items() for settings, _ in entries]


@pytest.mark.parametrize("name", WRAPPED)
def test_a_method_lists_the_wrappers_that_change_it(name):
    method = build_method(name, {}, max_completion_length=1024)
    found = {v.written: v.method for v in controls_of(name) if shlex.split(v.written)[1] != name}
    assert list(dict.fromkeys(shlex.split(written)[1].split("(")[0] for written in found)) == WRAPPED[name]
    lends = ("shuffled_peers", "kind shuffled", "kind wrong", "kind random")
    assert all(len(diff(method, control)) == 1 + any(words in written for words in lends) for written, control in found.items())


@pytest.mark.parametrize("name", LISTED)
def test_what_is_listed_trains_as_it_is_written(name, capsys):
    """Through the command line's own reading of flags; a copied line is at most 100 columns."""
    main(["describe", name, "--controls"])
    shown = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 100 for line in shown)
    copied = [line for line in shown if line.startswith("--method ")]
    found = controls_of(name)
    assert copied == [v.written for v in found] and len(set(copied)) == len(copied)
    for variant in found:
        settings = load_settings("quickstart", parse_overrides(shlex.split(variant.written)))
        built = build_method(settings.method.name, settings.method.arguments, max_completion_length=1024)
        assert built == variant.method != build_method(name, {}, max_completion_length=1024)


@pytest.mark.parametrize(("owner", "settings"), ENTRIES, ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_an_ablation_changes_what_it_names_and_nothing_else(owner, settings):
    name = f"{owner}(sdpo)" if owner in ("grpo_plus", "grpo_blend") else owner
    given = {key: value for key, value in settings.items() if key != "name"}

    def built(arguments):
        return build_method(settings.get("name", name), arguments, max_completion_length=1024)

    ablated, method = built(given), build_method(name, {}, max_completion_length=1024)
    assert ablated in [v.method for v in controls_of(name)]
    assert all(built({k: v for k, v in given.items() if k != key}) != ablated for key in given), "an argument that changes nothing"
    changed = {f.name for f in fields(Method) if getattr(ablated, f.name) != getattr(method, f.name)}
    assert changed == {field for field, arguments in CHANGES.items() for key in given if f"{owner}.{key}" in arguments}


def test_ablations_of_parts_inside_parts():
    assert no_clip(rcsd()).divergence == TopK(ForwardKL(), 20)
    assert other_direction(rcsd()).divergence == TopK(ReverseKL(0.05), 20)
    assert other_weights(opsd()).teacher == Live() and other_weights(sdpo()).teacher == Frozen() and other_weights(hsd(), weights=EMA(0.1)).teacher == EMA(0.1)
    assert constant_weight(pw_opsd(), value=0.771).token_weight == Uniform(0.771)


@pytest.mark.parametrize(
    ("control", "sentence"),
    [
        (lambda: null_context(opd()), "reads nothing beyond the student's prompt"),
        (lambda: shuffled_context(ccopd()), "reads nothing beyond the student's prompt"),
        (lambda: shuffled_peers(opsd()), "reads no successful peer"),
        (lambda: no_clip(hsd()), "no entry clip"),
        (lambda: no_clip(opd()), "distill_coef is 0"),
        (lambda: other_direction(gkd(divergence=JSD(0.3))), "no direction"),
        (lambda: other_weights(opd()), "another model"),
        (lambda: constant_weight(hsd()), "already weighs"),
        (lambda: other_weights(opsd(), weights=Frozen()), r"already read by Frozen\(\); set method.weights"),
        (lambda: grpo_plus(opd()), "this one has none; grpo_blend"),
        (lambda: grpo_plus(rlsd()), "this one has none"),
        (lambda: grpo_plus(grpo()), "this one has none"),
        (lambda: grpo_plus(sft()), "this one has none"),
        (lambda: grpo_plus(exprl_process()), "this one has none"),
        (lambda: grpo_plus(eopd()), "in the place of this method's own, TeacherCredit"),
        (lambda: grpo_blend(grpo()), "this method has no teacher"),
        (lambda: grpo_blend(exprl_process()), "this method has no teacher"),
        (
            lambda: build_method("exprl", {"judge": "WithoutReference(StepJudge())"}, max_completion_length=9),
            "which reads no reference",
        ),
        (
            lambda: build_method("null_context(opsd)", {"kind": "nonsense"}, max_completion_length=9),
            "kind = 'nonsense' must be one of empty, shuffled, wrong, random",
        ),
    ],
)
def test_a_control_without_object_says_so(control, sentence):
    with pytest.raises(ValueError, match=sentence):
        control()


@pytest.mark.parametrize("name", ["grpo_plus(hsd)", "grpo_plus(opsd)", "grpo_plus(sdpo)", "grpo_plus(gkd)", "grpo_blend(sdpo)", "grpo_blend(opd)"])
def test_what_has_the_part_is_still_wrapped(name):
    assert build_method(name, {}, max_completion_length=9).policy_coef == 1


def test_a_controls_argument_is_no_methods():
    """A recipe's arguments stay when a control is put around its method, and go to the outermost function that knows them."""
    of_controls = {key for control in CONTROLS for key in list(inspect.signature(control).parameters)[1:]}
    assert of_controls == {"kind", "value", "weights"}
    assert not of_controls & {key for method in METHODS for key in inspect.signature(method).parameters}
    live = {"teacher": "Live()"}
    built = [build_method(name, live, max_completion_length=9) for name in ("opsd", "other_weights(opsd)")]
    assert diff(*built) == {"teacher": ("Live()", "Frozen()")}


def skilled(pairs: int) -> list[Group]:
    """Three problems, each with its nearest of three pairs; `pairs` = 3 is the whole bank for all, paired as each ranks it."""
    found = []
    for i, problem in enumerate(tiny_problems(3)):
        notes = tuple(Note(fields={"skill": f"w{10 + (i + k) % 3}", "mistake": f"w{20 + (2 * i + k) % 3}"}) for k in range(pairs))
        rollout = Rollout(prompt_ids=[1], completion_ids=[2], behavior_logp=[0.0], text="w1", reward=1.0)
        found.append(Group(problem=problem, rollouts=[rollout], notes={"skill": notes}))
    return found


@pytest.mark.parametrize(("pairs", "kind", "share"), [(3, "shuffled", 1.0), (3, "random", 1.0), (1, "shuffled", 0.0)])
def test_a_null_context_that_shows_the_methods_own_words_says_so(pairs, kind, share, caplog):
    """A bank that every problem retrieves whole: another problem's skills are its own, whatever the pairing and the order."""
    groups, tools = skilled(pairs), tools_of(tiny_policy(), Method())
    method = null_context(sgsd(), kind=kind)
    for stage in (method.feedback[0], method.feedback[-1]):
        stage(groups, tools)
    assert tools.metrics == {"same_context_share": share}
    assert ("it is no control of what they say" in caplog.text) == (share > 0)


def test_a_comparison_controls_skills_by_blank_ones_and_the_rest_by_another_problems_text():
    for recipe, kind in (("testbed/sgsd", {"kind": "empty"}), ("testbed/opsd", {})):
        settings = load_settings(recipe, {})
        control = null_control(Job(folder=Path("runs/a/0"), settings=settings), [])
        assert control is not None and control.settings.method.name == f"null_context({settings.method.name})"
        assert control.settings.method.arguments == settings.method.arguments | kind
        assert uncontrolled(control.settings.method) == settings.method
