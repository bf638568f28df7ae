"""What shows whose a method's gain is: a method's name in, its controls and ablations out, each as it is written after --method."""

import inspect
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

from selfdistill.contexts import holds
from selfdistill.method import Method, diff
from selfdistill.method_names import build_method, functions_of
from selfdistill.methods import CONTROLS, METHODS, WRAPPERS
from selfdistill.notes import Skills

OWN = "Privileged((PeerSolution(First(), 0.5),))"
JUDGED = (
    ({"judge": "WithoutReference()"}, "The judge is shown no reference."),
    ({"judge": "ModelJudge(truth=(Answer(),))"}, "The judge is shown the answer without its working."),
    ({"reference_coef": 0}, "Nothing holds the student near its start."),
)
DECIDED: Mapping[str, frozenset[str]] = {
    "hsd": frozenset({"loss_temperature"}),
    "ccopd": frozenset({"loss_temperature"}),
    "purified_opsd": frozenset({"reduction"}),
    "step_critique": frozenset({"divergence", "loss_temperature"}),
}
"""By method: fields in which it differs from its relatives by a decision of ours, its paper being silent."""
ABLATIONS: Mapping[str, tuple[tuple[Mapping[str, Any], str], ...]] = {
    "dapo": (({"tries": 1}, "Groups of equal rewards are dropped, and none drawn in their place."),),
    "gkd": (
        ({"on_policy_share": 0}, "References alone: nothing that the student writes is read."),
        ({"divergence": "ForwardKL()"}, "KL(T || S) in place of JSD."),
        ({"divergence": "ReverseKL()"}, "KL(S || T) in place of JSD."),
    ),
    "eopd": (({"threshold": 0}, "The gate is open at every token."), ({"distill_coef": 0}, "OPD: the policy gradient alone.")),
    "opsd": (({"context": "Privileged((Answer(),), thinking=True)"}, "The answer without its working."),),
    "rlsd": (({"clip": 0}, "Every factor is 1: GRPO's credit, though the reading is made."),),
    "sdft": (({"skip_first": 0}, "The first tokens are trained too."),),
    "sdpo": (
        ({"context": OWN}, "A successful peer alone; without one a rollout is untaught."),
        ({"context": "Privileged((Written(),))"}, "What the environment says alone."),
        ({"divergence": "ReverseKL()", "top_k": 20}, "What the released runs minimise."),
    ),
    "sdpo_trust_region": (({"mix": 0}, "The frozen reading alone."), ({"mix": 1}, "The live reading alone.")),
    "opcod": (
        ({"gate": "Cognizance(0)"}, "No gate: a peer is believed on problems that it cannot solve, too."),
        ({"anchor": "AsWritten()"}, "No anchoring: every word of the feedback, answers included."),
        ({"context": "Privileged((PeerSolution(First(), 0.5), Written('peer')))"}, "Own success, else feedback, never both."),
        ({"context": OWN}, "Own success alone: what the peer writes is not read."),
    ),
    "hsd": (
        ({"failed_only": True}, "Failed rollouts alone are taught, the other reading of the paper."),
        ({"reference_coef": 0}, "Nothing holds the student near its start: reported to collapse."),
        ({"peer": "Shortest()"}, "The shortest successful peer."),
        ({"peer": "LowestPerplexity()"}, "The successful peer that its writer found likeliest."),
        ({"peer": "HighestPerplexity()"}, "The successful peer that its writer found least likely."),
    ),
    "pw_opsd": (({"name": "constant_weight(pw_opsd)", "value": 0.771}, "The schedule's mean at every token: what is left is its shape."),),
    "purified_opsd": (({"clip": float("inf")}, "No soft clip of the difference."),),
    "rcsd": (
        ({"rubrics": "RandomRubric(RubricColumn())"}, "Another problem's rubric."),
        ({"rubrics": "SomeCriteria(RubricColumn())"}, "Half of each rubric's criteria."),
        ({"rubrics": "GenericRubric()"}, "One rubric for all problems."),
        ({"with_reference": True}, "The reference beside the rubric, as in the released code."),
        ({"reason_first": "Teacher()"}, "The teacher first notes what the rubric asks, as in the released code."),
    ),
    "ccopd": (
        ({"conversation": "Placeholder()"}, "Neutral words in place of the student's own replies on the way."),
        ({"conversation": "Concat()"}, "All shards in one turn."),
        ({"conversation": "Full()"}, "The full prompt: with nothing to learn at the start."),
    ),
    "sgsd": (
        ({"gate": "ContentMean()"}, "No polarity: every teacher is followed."),
        ({"gate": "PolarityGate(threshold=0)"}, "No threshold: no teacher is neutral."),
        ({"pairs": 1}, "One teacher."),
        ({"context": "SkillsAndAnswer(thinking=True)"}, "The answer in context: reported to collapse."),
        ({"retrieval": "RandomPairs()"}, "Random skills."),
        ({"every": 0}, "The bank of the cold start is kept as it is."),
    ),
    "step_critique": (
        ({"critic": "TaskChecker()"}, "The task's own exact checker, where it has one."),
        ({"critic": "ModelCritic(truth=(Solution(), Answer()))"}, "The critic is shown the reference solution before the answer."),
    ),
    "exprl": JUDGED,
    "exprl_process": JUDGED,
    "topd": (
        ({"lesson": "TeacherWindow()"}, "No transport: plain cross-entropy on the teacher's window."),
        ({"transport": "Sinkhorn()"}, "Soft labels."),
        ({"trajectory_coef": 0}, "No windows are taught: reverse KL alone."),
    ),
    "topd_self": (({"lesson": "TeacherWindow()"}, "No transport: plain cross-entropy on the teacher's window."),),
    "grpo_plus": (({"distill_coef": 0}, "The outcome alone, under the same reduction."),),
    "grpo_blend": (({"outcome_share": 1}, "The outcome alone."), ({"outcome_share": 0}, "The teacher's credit alone.")),
}
"""What a method's own arguments leave out or replace: keys of the table `method`, and why. A `name` among them is a control around it."""


class Variant(NamedTuple):
    """A method with one thing changed."""

    written: str
    """The flags that make it, to be copied behind a command."""
    why: str
    method: Method


def apart(one: Method, other: Method, names: tuple[str, str]) -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]]:
    """The differences of two methods of these names that their papers claim, and those that were decided here."""
    decided = {part for name in names for function in functions_of(name) for part in DECIDED.get(getattr(function, "__name__", name), ())}
    found = diff(one, other)
    return {part: texts for part, texts in found.items() if part not in decided}, {part: texts for part, texts in found.items() if part in decided}


def controls_of(name: str) -> list[Variant]:
    """The controls that change a method, then its ablations. Raises ValueError on an unknown name."""
    method = build_method(name, {}, max_completion_length=1024)
    return [variant for variant in (*_around(name, method), *_within(name)) if diff(method, variant.method)]


def null_kind(method: Method) -> Literal["empty", "shuffled"]:
    """The null control that a comparison puts beside a method: another problem's texts, or a blank where a text is not about one problem.

    Skills of one bank serve all problems: another problem's help too, and are the same ones where the bank is no larger than `pairs` (SGSD).
    """
    return "empty" if holds(method.context, Skills) else "shuffled"


def _around(name: str, method: Method) -> Iterator[Variant]:
    """Every wrapper that changes one part of any method, with each of its options."""
    for control in CONTROLS:
        choices = [(key, o) for key, p in inspect.signature(control).parameters.items() if get_origin(p.annotation) is Literal for o in get_args(p.annotation)]
        for key, option in choices or [("", "")]:
            try:
                changed = control(method, **({key: option} if key else {}))
            except ValueError:
                continue
            # an option is which part takes a part's place, so that part says what it is for
            said = type(changed.context) if key else control
            yield Variant(_flags(f"{control.__name__}({name})", {key: option} if key else {}), _first_sentence(said), changed)


def _within(name: str) -> Iterator[Variant]:
    """What is listed for the method and for what wraps it."""
    # a function of the user's may have the name of one of ours
    for function in (f for f in functions_of(name) if f in (*METHODS, *WRAPPERS)):
        for settings, why in ABLATIONS.get(function.__name__, ()):
            arguments = {key: value for key, value in settings.items() if key != "name"}
            called = name.replace(function.__name__, settings["name"]) if "name" in settings else name
            yield Variant(_flags(called, arguments), why, build_method(called, arguments, max_completion_length=1024))


def _flags(name: str, arguments: Mapping[str, Any]) -> str:
    return " ".join([f"--method {_quoted(name)}", *(f"--method.{key} {_quoted(value)}" for key, value in arguments.items())])


def _quoted(value: Any) -> str:
    """A value as a shell and then TOML take it."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f'"{text}"' if "'" in text else shlex.quote(text)


def _first_sentence(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0].split(". ")[0].removesuffix(".") + "."
