"""Methods side by side: means, paired differences and intervals against plain loops; which runs belong together; what a reader is told."""

import io
import itertools
from pathlib import Path

import numpy
import pytest
from rich.console import Console
from scipy.stats import binom
from test_evaluate import evaluation

from selfdistill.compare import Entry, Trained, seeds_interval, side_by_side, tokens_apart
from selfdistill.config import Settings, make_settings
from selfdistill.evaluate import Evaluation, compare
from selfdistill.pairing import group, uncontrolled
from selfdistill.tables import as_json, markdown, notes, points, terminal

RNG = numpy.random.default_rng(3)
PROBLEMS, SAMPLES = 30, 4


def measured(right: float, *, seed: int = 0) -> Evaluation:
    rng = numpy.random.default_rng([seed, int(100 * right)])
    return evaluation(*(rng.random((PROBLEMS, SAMPLES)) < right), ids=map(str, range(PROBLEMS)))


def run(right: float, *, seed: int = 0, tokens: float = 100.0) -> Trained:
    return Trained(base=measured(0.4, seed=seed), trained=measured(right, seed=seed), rollout_tokens=tokens, seconds=10.0, training_entropy=0.2)


def entry(name: str, right: float, *, seeds=(0, 1), control_of=None, **options) -> Entry:
    return Entry(name=name, method=name, seeds={s: run(right, seed=s, **options) for s in seeds}, control_of=control_of)


def mean(evaluation: Evaluation) -> float:
    return sum(map(sum, evaluation.scores)) / (PROBLEMS * SAMPLES)


def test_figures_are_means_over_seeds_and_differences_are_paired():
    opsd, grpo, null = entry("opsd", 0.9), entry("grpo", 0.6, seeds=(1, 2)), entry("null", 0.5, control_of="opsd")
    rows = {row.name: row for row in side_by_side([null, grpo, opsd])}
    assert list(rows) == ["opsd", "null", "grpo"], "the largest gain first, a control below its method"
    gains = {s: mean(r.trained) - mean(r.base) for s, r in opsd.seeds.items()}
    assert rows["opsd"].gains == pytest.approx(gains) and rows["opsd"].gain.mean == pytest.approx(sum(gains.values()) / 2)
    assert rows["grpo"].over_reference.mean == pytest.approx(mean(grpo.seeds[1].trained) - mean(opsd.seeds[1].trained)), "over the seeds that both have"
    under = [mean(opsd.seeds[s].trained) - mean(null.seeds[s].trained) for s in (0, 1)]
    assert rows["null"].under_method.mean == pytest.approx(sum(under) / 2) and rows["null"].over_reference is None
    assert rows["opsd"].over_reference is None and rows["opsd"].figures["pass_at_k"] == pytest.approx(
        sum(any(p) for r in opsd.seeds.values() for p in r.trained.scores) / (2 * PROBLEMS)
    )


def test_an_interval_over_seeds_and_problems_is_that_of_drawing_both():
    """Against a plain loop: the same standard error, and wider than problems alone where seeds differ."""
    rows = RNG.normal(0, 0.1, (4, 60)) + numpy.array([-0.2, -0.1, 0.1, 0.2])[:, None]
    low, high = seeds_interval(rows)
    drawn = []
    for _ in range(4000):
        seeds, problems = RNG.integers(0, 4, 4), RNG.integers(0, 60, 60)
        drawn.append(numpy.mean([rows[s][problems].mean() for s in seeds]))
    assert (low, high) == pytest.approx(tuple(numpy.percentile(drawn, [2.5, 97.5])), abs=0.02)
    assert high - low > 3 * (seeds_interval(rows.mean(axis=0, keepdims=True))[1] - seeds_interval(rows.mean(axis=0, keepdims=True))[0])
    assert seeds_interval(numpy.full((3, 5), 0.25)) == (0.25, 0.25)


def test_mcnemar_is_exact_on_the_majority():
    """Five problems change, four of them to the better: p = 2 P(X <= 1), X binomial(5, 1/2)."""
    base = evaluation(*[(0, 0, 1)] * 4, (1, 1, 0), *[(1, 1, 1)] * 3, texts=(("a", "a", "b"),) * 8)
    trained = evaluation(*[(1, 1, 0)] * 4, (0, 0, 1), *[(1, 1, 1)] * 3, texts=(("a", "a", "b"),) * 8)
    found = compare(base, trained)
    assert (found.majority_rescued, found.majority_broken, found.rescued, found.broken) == (4, 1, 0, 0)
    assert found.mcnemar_p == pytest.approx(2 * binom.cdf(1, 5, 0.5))
    assert compare(base, base).mcnemar_p == 1.0


def test_entropy_and_different_answers_are_those_of_counting():
    found = Evaluation(
        scores=((1.0, 0.0), (0.0, 0.0)), texts=(("answer 1", "answer 2"), ("answer 3", "a 3 ; answer 3")), lengths=(1, 2, 3, 4), truncated_samples=(False,) * 4
    )
    assert found.distinct_answers == 1.5 and found.entropy is None
    assert Evaluation(**{**vars(found), "surprisal": (0.5, 1.0, 1.5, 2.0)}).entropy == pytest.approx(5.0 / 10)


def test_rows_of_unequal_tokens_are_named():
    rows = side_by_side([entry("a", 0.5), entry("b", 0.5), entry("c", 0.5, tokens=120.0), entry("d", 0.5, tokens=104.0)])
    assert tokens_apart(rows) == {"c": pytest.approx(120 / 102 - 1)}
    assert any("`c` +18%" in line for line in notes(rows))


def test_the_page_says_what_was_run_and_what_failed():
    lost = Entry(name="hsd", method="hsd", seeds={}, failed={0: "out of memory"})
    half = Entry(name="grpo", method="grpo", seeds={0: run(0.7)}, failed={1: "killed by signal 9"})
    rows = side_by_side([entry("opsd", 0.9), entry("opsd.null", 0.5, control_of="opsd"), lost, half])
    page = markdown(rows, make_settings({}, {}), reference="opsd")
    for words in ("| `opsd` | 2 |", "| ↳ `opsd.null` | 2 |", "| `grpo` | 1 of 2 |", "| `hsd` | 0 |  | failed |", "seed 0, failed: out of memory", "last step"):
        assert words in page, words
    widths = {line.count("|") for line in page.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    data = as_json(rows, make_settings({}, {}), reference="opsd")
    assert data["format"] == 1 and data["rows"][0]["gain"]["ci95"][0] < data["rows"][0]["gain"]["mean"]


@pytest.mark.parametrize(("width", "shown"), [(124, "pass@4"), (120, "base"), (110, "trained"), (100, "minus opsd"), (80, "minus opsd")])
def test_a_row_is_a_line_that_fits_the_terminal(width, shown):
    lost = Entry(name="hsd", method="hsd", seeds={}, failed={0: "out of memory"})
    null = entry("null_sdpo_trust_region", 0.5, control_of="opsd")
    rows = side_by_side([entry("opsd", 0.9), null, entry("sdpo[2]", 0.7), lost])
    with (console := Console(width=width, file=io.StringIO())).capture() as seen:
        console.print(terminal(rows, k=4, reference="opsd", width=width))
    title, heading, *lines = seen.get().splitlines()
    assert len(lines) == len(rows) and max(map(len, (title, heading, *lines))) <= width
    assert shown in heading and "…" not in heading and "sdpo[2]" in "".join(lines)
    (own,) = (row for row in rows if row.control_of)
    (line,) = (line for line in lines if "↳" in line)
    assert f"{100 * own.under_method.mean:+.1f}" in line[heading.index("minus opsd") + 10 :], "what the method is over its control stands on the control's line"
    assert (points(own.under_method) in line) == (width >= 100)


def test_seeds_measured_on_other_problems_are_refused():
    elsewhere = Trained(**{**vars(run(0.5)), "base": shifted(run(0.5).base), "trained": shifted(run(0.5).trained)})
    with pytest.raises(ValueError, match="different problems, which cannot be paired"):
        side_by_side([Entry(name="a", method="a", seeds={0: run(0.5), 1: elsewhere})])


def shifted(one: Evaluation) -> Evaluation:
    return Evaluation(**{**vars(one), "problem_ids": tuple(f"x{i}" for i in one.problem_ids)})


def runs(*methods, seeds=(0, 1), **changes):
    """(folder, settings) of each method and seed; a method is a name, or a name and its arguments."""
    named = [(m, {}) if isinstance(m, str) else m for m in methods]
    return [
        (Path(f"runs/{name}_{seed}"), make_settings({"seed": seed, "method": {"name": name, **arguments}, **changes}, {}))
        for (name, arguments), seed in itertools.product(named, seeds)
    ]


def test_runs_are_grouped_by_all_but_their_seed_and_controls_are_known_by_their_wrappers():
    found = group(runs("opsd", "shuffled_context(opsd)", "grpo_plus(opsd)", "grpo_plus(null_context(opsd))", "null_context(hsd)"))
    assert [(one.name, one.control_of, sorted(one.folders)) for one in found] == [
        ("opsd", None, [0, 1]),
        ("shuffled_context(opsd)", "opsd", [0, 1]),
        ("grpo_plus(opsd)", None, [0, 1]),
        ("grpo_plus(null_context(opsd))", "grpo_plus(opsd)", [0, 1]),
        ("null_context(hsd)", None, [0, 1]),
    ]


def test_a_teacher_of_each_seeds_own_is_one_teacher():
    def taught(teacher: str) -> list[tuple[Path, Settings]]:
        return [(Path(f"runs/opd_{s}"), runs(("opd", {"teacher": f'External("{teacher.format(s)}")'}), seeds=(s,))[0][1]) for s in (0, 1)]

    assert [sorted(one.folders) for one in group(taught("runs/grpo_{}/checkpoints/step_000015"))] == [[0, 1]]
    assert [sorted(one.folders) for one in group(taught("runs/grpo/{}/checkpoints/step_000015"))] == [[0, 1]]
    assert len(group(taught("runs/grpo_5{}/checkpoints/step_000015"))) == 2, "no seed of these runs"


def test_a_control_is_of_the_method_with_its_arguments():
    clip = {"clip": 1.0}
    soft = [(Path(f"runs/soft_{s.seed}"), s) for _, s in runs(("opsd", clip))]
    other = [*runs(("shuffled_context(opsd)", clip)), *soft, *runs("opsd")]
    assert {one.name: one.control_of for one in group(other)} == {"shuffled_context(opsd)": "soft", "soft": None, "opsd": None}
    constant = runs("pw_opsd", ("constant_weight(pw_opsd)", {"value": 0.771}))
    assert group(constant)[1].control_of == "pw_opsd" and uncontrolled(constant[-1][1].method).arguments == {}


def test_a_null_given_by_hand_is_of_its_methods_name():
    null = [(Path(f"runs/random_{s.seed}"), s) for _, s in runs(("rcsd", {"rubrics": "RandomRubric(RubricColumn())"}))]
    assert [(one.name, one.control_of) for one in group(runs("opsd", "rcsd"), null)][-1] == ("random", "rcsd")
    for others in (runs("opsd"), runs("rcsd", ("rcsd", {"clip": 0.1}), seeds=(0,))):
        with pytest.raises(ValueError, match="must belong to exactly one method"):
            group([(Path(f"runs/{i}"), s) for i, (_, s) in enumerate(others)], null)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "nothing to compare"),
        ([*runs("opsd"), (Path("again"), runs("opsd")[0][1])], "the same run twice, seed 0"),
        (runs("opsd") + runs("grpo", eval={"temperature": 0.6}), r"differ in eval.temperature \(1.0 and 0.6\)"),
        (runs("opsd") + runs("grpo", model="other"), "differ in model.path"),
    ],
    ids=["nothing", "twice", "decoding", "model"],
)
def test_runs_that_cannot_stand_in_one_table_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        group(given)


def test_a_label_is_a_folders_name_without_its_seed():
    from selfdistill.pairing import _label

    names = {"runs/opsd_0": "opsd", "runs/opsd/0": "opsd", "runs/opsd-seed0": "opsd", "runs/opsd_10": "opsd_10", "runs/opsd_lr20": "opsd_lr20"}
    assert {name: _label(0, Path(name)) for name in names} == names
