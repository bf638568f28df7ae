"""The claims ledger: verdicts by intervals, the figures compare prints, claims that fail or were never measured, and what stands in a diagnostic's file."""

import json

import pytest
from test_compare import entry
from test_resume import base, settings  # noqa: F401

from selfdistill.claims import Claim, Figure, Measured, _found, judge_claims, read_claims, unplaced, verdict
from selfdistill.cli import main
from selfdistill.cli.claims import page
from selfdistill.compare import side_by_side
from selfdistill.config import make_settings
from selfdistill.diagnostics.blame import blame
from selfdistill.method_names import build_method
from selfdistill.runner import execute

BED = ("tiny", "arithmetic")


def figure(low, high, **changes):
    return Figure(**{"bed": BED, "of": "", "mean": (low + high) / 2, "ci95": (low, high), "seeds": 3, "problems": 30, **changes})


def claim(**changes):
    return Claim(**{"paper": "p", "statement": "s", "more": "hsd", "than": "grpo", **changes})


def measured(name, right, *, seeds=(0, 1, 2), arguments=None, diagnostics=None, tokens=100.0, **changes):
    settings = make_settings({"method": {"name": name, **(arguments or {})}, **changes}, {})
    return Measured(settings=settings, entry=entry(name, right, seeds=seeds, tokens=tokens), diagnostics=diagnostics or {})


@pytest.mark.parametrize(
    ("of", "found", "said"),
    [
        (claim(), figure(0.01, 0.2), "holds"),
        (claim(), figure(-0.2, -0.01), "does not hold"),
        (claim(), figure(-0.01, 0.2), "cannot tell"),
        (claim(above=0.5), figure(0.2, 0.4), "does not hold"),
        (claim(below=0.02), figure(-0.1, 0.01), "holds"),
        (claim(below=0.02), figure(0.03, 0.1), "does not hold"),
        (claim(below=0.02), figure(0.01, 0.1), "cannot tell"),
        (claim(), figure(0.01, 0.2, seeds=2), "cannot tell"),
        (claim(), figure(0.0, 0.4, ci95=None), "cannot tell"),
        (claim(equal_tokens=True), figure(0.01, 0.2, tokens_apart=-0.06), "cannot tell"),
        (claim(equal_tokens=True), figure(0.01, 0.2, tokens_apart=0.04), "holds"),
    ],
)
def test_a_verdict_is_on_which_side_the_interval_lies(of, found, said):
    assert verdict(of, found) == said


def test_a_claim_between_two_methods_has_the_difference_that_compare_prints():
    hsd, grpo = measured("hsd", 0.7), measured("grpo", 0.5, tokens=103.0)
    (judged,) = judge_claims([claim()], [hsd, grpo])
    ((found, said),) = judged.figures
    row = next(r for r in side_by_side([hsd.entry, grpo.entry], reference="grpo") if r.name == "hsd")
    assert (found.mean, found.ci95, said) == (row.over_reference.mean, row.over_reference.ci95, "holds")
    assert (found.seeds, found.problems) == (3, 30) and found.tokens_apart == pytest.approx(100 / 103 - 1)
    (gained,) = judge_claims([claim(than="base")], [hsd])
    assert gained.figures[0][0].mean == row.gain.mean


def test_other_beds_are_apart_and_the_most_alike_partner_is_taken():
    hsd = measured("hsd", 0.7, optimizer={"lr": 3e-5})
    near, far = measured("grpo", 0.5, optimizer={"lr": 1e-4}), measured("grpo", 0.6, optimizer={"lr": 1e-4}, steps=99)
    (judged,) = judge_claims([claim()], [hsd, far, near])
    ((found, _),) = judged.figures
    assert "optimizer.lr 3e-05 against 0.0001" in found.of and "steps" not in found.of
    assert judge_claims([claim()], [hsd, measured("grpo", 0.5, model="other")])[0].figures == ()


def test_a_bare_name_is_every_run_that_no_other_claim_names_more_closely():
    plain, random = measured("rcsd", 0.7), measured("rcsd", 0.5, arguments={"rubrics": "RandomRubric(RubricColumn())"})
    by_name = claim(more="rcsd", than="rcsd(rubrics=RandomRubric")
    (judged, gain) = judge_claims([by_name, claim(more="rcsd", than="base")], [random, plain])
    assert [said for _, said in judged.figures] == ["holds"] and len(gain.figures) == 1
    assert unplaced(make_settings({"method": {"name": "opd", "teacher": "External('runs/a')"}}, {})).method.arguments == {"teacher": "External()"}


def test_figures_of_diagnostics_are_pooled_over_seeds():
    def credit(inside, low, high):
        profile = {"name": "hsd", "inside": inside, "inside_ci95": [low, high], "flat": 0.2}
        return [{"diagnostic": "credit", "checkpoint": 0, "result": {"align": "shown", "profiles": [{"name": "opsd"}, profile]}}]

    runs = [measured("hsd", 0.7, diagnostics={0: credit(0.4, 0.3, 0.5), 1: credit(0.5, 0.35, 0.6), 2: credit(0.45, 0.33, 0.52)})]
    own = claim(diagnostic="credit", value="profiles.hsd.inside", above=0.25, where={"align": "shown", "checkpoint": 0})
    combined = claim(diagnostic="credit", value="profiles.hsd.inside", minus="profiles.hsd.flat")
    elsewhere = claim(diagnostic="credit", value="profiles.hsd.inside", where={"align": "nearest"})
    (one,), (two,), none = (judged.figures for judged in judge_claims([own, combined, elsewhere], runs))
    assert one[0].ci95 == (0.3, 0.6) and one[1] == "holds" and none == ()
    # t(0.975, 2 degrees) = 4.303; the standard error of three is 0.05 / sqrt(3)
    assert two[0].mean == pytest.approx(0.25) and two[0].ci95 == pytest.approx((0.25 - 4.303 * 0.05 / 3**0.5, 0.25 + 4.303 * 0.05 / 3**0.5), abs=1e-4)
    assert _found({"ci95": [None, None], "auroc": None}, "auroc") == (None, None)


def test_a_failing_claim_and_one_never_measured_stay_on_the_page(tmp_path):
    found = judge_claims([claim(statement="hsd wins"), claim(statement="nobody ran it", than="dapo")], [measured("hsd", 0.4), measured("grpo", 0.8)])
    text = page(found, [tmp_path / "hsd_0"])
    (fails,) = [line for line in text.splitlines() if line.startswith("| hsd wins")]
    (unknown,) = [line for line in text.splitlines() if line.startswith("| nobody ran it")]
    assert "| does not hold | not measured | cannot tell |" in fails and "3 seeds x 30 problems" in fails
    assert unknown == "| nobody ran it | not measured | cannot tell | not measured | cannot tell |"
    assert str(tmp_path) not in text and "`hsd_0`" in text


def test_every_claim_names_methods_that_exist_and_says_one_thing():
    claims = read_claims()
    assert len({(c.paper, c.statement) for c in claims}) == len(claims)
    for one in claims:
        assert bool(one.more and one.than) != bool(one.diagnostic and one.value), one.statement
        for name in {one.more, one.than, one.run} - {"", "base"}:
            bare = name.partition("(")[0] if "=" in name else name
            build_method(bare, {}, max_completion_length=8)


def test_the_command_reads_finished_runs_and_their_diagnostics(base, tmp_path, capsys):  # noqa: F811
    folder = execute(settings(base, tmp_path, steps=1, eval={"at_end": True, "num_problems": 4, "num_samples": 2}))
    method = json.loads((folder / "settings.json").read_text())["method"]["name"]
    main(["claims", str(folder), "--output", str(tmp_path / "claims.md")])
    text = (tmp_path / "claims.md").read_text()
    assert "not measured" in capsys.readouterr().out and f"`{folder.name}`" in text and str(tmp_path) not in text
    line = next(line for line in text.splitlines() if f"`{method}" in line and "- base" in line)
    assert "1 seed x 4 problems" in line and "cannot tell" in line
    (folder / "diagnostics").mkdir(exist_ok=True)
    (folder / "diagnostics" / "credit.json").write_text('{"diagnostic": ')
    with pytest.raises(SystemExit):
        main(["claims", str(folder), "--output", str(tmp_path / "claims.md")])
    assert "is not whole JSON" in capsys.readouterr().err


def test_no_run_at_all_is_a_ledger_of_nothing_measured():
    assert all(judged.figures == () for judged in judge_claims(read_claims(), []))


def test_blame_lies_where_it_was_put():
    """Two steps of two tokens; the second is wrong in one rollout. Credit of -3 there, 1 before, and 2 in a right rollout."""
    from planted import reading, rollout

    from selfdistill.tasks.arithmetic.checker import Verdict
    from selfdistill.types import Group, Problem

    words = {1: "a ", 2: "b", 3: " ; c", 4: " d", 5: " ; e"}
    ids = [1, 2, 3, 4, 5]
    wrong, right = rollout(ids, 0.0), rollout(ids, 1.0, index=1)
    wrong.text = right.text = "a b ; c d ; e"
    group = Group(problem=Problem(prompt="q", id="p"), rollouts=[wrong, right])
    verdicts = [Verdict(line=None, holds=holds, text=text) for holds, text in ((True, "a b"), (False, "c d"), (True, "e"))]
    answers = iter([verdicts, [Verdict(line=None, holds=True, text=v.text) for v in verdicts]])
    readings = [reading(wrong, group, [1.0, 1.0, -3.0, -3.0, 0.0]), reading(right, group, [2.0] * 5)]
    found = blame(readings, method="m", judge=lambda problem, text: next(answers), decode=lambda some: "".join(words[i] for i in some))
    places = {p.name: p for p in found.places}
    assert [places[n].tokens for n in ("right rollout", "before", "wrong step", "after")] == [5, 2, 2, 1]
    assert places["wrong step"].mean == -3 and places["before"].mean == 1 and found.failing == pytest.approx(6 / 18)
    assert places["right rollout"].share == pytest.approx(10 / 18) and places["before"].even == pytest.approx(0.2)
    with pytest.raises(ValueError, match="has a wrong step"):
        blame(readings[1:], method="m", judge=lambda problem, text: [], decode=lambda some: "")
