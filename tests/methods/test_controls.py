"""Controls and ablations change one thing each, and say so where there is nothing to change."""

import pytest

from selfdistill.divergences import JSD, ForwardKL, ReverseKL, TopK
from selfdistill.method import diff
from selfdistill.method_names import build_method, controls_of
from selfdistill.methods import constant_weight, gkd, grpo, hsd, no_clip, null_context, opd, opsd, other_direction, other_weights, pw_opsd, rcsd, sdpo
from selfdistill.teachers import EMA, Frozen, Live
from selfdistill.token_weights import Uniform


@pytest.mark.parametrize(
    ("method", "controls"),
    [
        (grpo(), []),
        (opd(), []),
        (gkd(), []),
        (opsd(), ["null_context", "no_clip", "other_direction", "other_weights"]),
        (pw_opsd(), ["null_context", "constant_weight", "no_clip", "other_direction", "other_weights"]),
        (hsd(), ["null_context", "other_direction", "other_weights"]),
        (sdpo(), ["null_context", "constant_weight", "other_weights"]),
    ],
    ids=["grpo", "opd", "gkd", "opsd", "pw_opsd", "hsd", "sdpo"],
)
def test_a_method_lists_the_controls_that_change_it(method, controls):
    found = controls_of("x", method)
    assert list(dict.fromkeys(written.strip("'").split("(")[0] for written in found)) == controls
    assert all(len(diff(method, control)) == (2 if "null" in written and "empty" not in written else 1) for written, control in found.items())


def test_what_is_listed_can_be_written():
    for written, control in controls_of("opsd", opsd()).items():
        name, *arguments = written.replace("'", "").split()
        given = {key.removeprefix("--method."): value for key, value in zip(arguments[::2], arguments[1::2], strict=True)}
        assert build_method(name, given, max_completion_length=9) == control


def test_ablations_of_parts_inside_parts():
    assert no_clip(rcsd()).divergence == TopK(ForwardKL(), 20)
    assert other_direction(rcsd()).divergence == TopK(ReverseKL(0.05), 20)
    assert other_weights(opsd()).teacher == Live() and other_weights(sdpo()).teacher == Frozen() and other_weights(hsd(), teacher=EMA(0.1)).teacher == EMA(0.1)
    assert constant_weight(pw_opsd(), value=0.771).token_weight == Uniform(0.771)


@pytest.mark.parametrize(
    ("control", "sentence"),
    [
        (lambda: null_context(opd()), "reads nothing beyond the student's prompt"),
        (lambda: no_clip(hsd()), "no entry clip"),
        (lambda: no_clip(opd()), "distill_coef is 0"),
        (lambda: other_direction(gkd(divergence=JSD(0.3))), "no direction"),
        (lambda: other_weights(opd()), "another model"),
        (lambda: constant_weight(hsd()), "already weighs"),
        (
            lambda: build_method("null_context(opsd)", {"kind": "nonsense"}, max_completion_length=9),
            "kind = 'nonsense' must be one of empty, shuffled, wrong, random",
        ),
    ],
)
def test_a_control_without_object_says_so(control, sentence):
    with pytest.raises(ValueError, match=sentence):
        control()
