"""The claims ledger: verdicts by intervals, the figures compare prints, claims that fail or were never measured, and what stands in a diagnostic's file."""

import json

import pytest
from test_compare import entry, run
from test_resume import base, settings  # noqa: F401

from selfdistill.claims import COLUMNS, Claim, Figure, Measured, _found, judge_claims, read_claims, runs_of, untold, verdict
from selfdistill.cli import main
from selfdistill.cli.claims import measure
from selfdistill.cli.ledger import page, shown, summed
from selfdistill.compare import side_by_side
from selfdistill.config import load_settings, make_settings, save_settings
from selfdistill.method_names import build_method
from selfdistill.recipes import ASSETS, shipped
from selfdistill.runner import execute

BED = ("tiny", "arithmetic")
ANSWER = "Privileged((Answer(),), thinking=True)"


def figure(low, high, **changes):
    return Figure(**{"bed": BED, "column": "testbed", "of": "", "mean": (low + high) / 2, "ci95": (low, high), "seeds": 3, **changes})


def claim(**changes):
    return Claim(**{"paper": "p", "statement": "s", "more": "hsd", "than": "grpo", **changes})


def measured(name, right, *, seeds=(0, 1, 2), arguments=None, diagnostics=None, tokens=100.0, tiny=True, **changes):
    settings = make_settings({"method": {"name": name, **(arguments or {})}, **changes}, {})
    return Measured(settings=settings, entry=entry(name, right, seeds=seeds, tokens=tokens), diagnostics=diagnostics or {}, tiny=tiny)


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
        (claim(), figure(0.01, 0.2, differing=("optimizer.lr 1 against 2",)), "cannot tell"),
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
    assert found.seeds == 3 and found.tokens_apart == pytest.approx(100 / 103 - 1)
    (gained,) = judge_claims([claim(than="base")], [hsd])
    assert gained.figures[0][0].mean == row.gain.mean


def test_other_beds_are_apart_and_other_settings_cannot_tell():
    """What a learning rate does is not the method's; the most alike partner is taken, in whatever order the folders are given."""
    hsd = measured("hsd", 0.7, optimizer={"lr": 3e-5})
    near, far = measured("grpo", 0.5, optimizer={"lr": 1e-4}), measured("grpo", 0.6, optimizer={"lr": 1e-4}, steps=99)
    for runs in ([hsd, far, near], [near, far, hsd]):
        (judged,) = judge_claims([claim()], runs)
        ((found, said),) = judged.figures
        assert found.differing == ("optimizer.lr 3e-05 against 0.0001",) and said == "cannot tell" and found.ci95[0] > 0
    elsewhere = measured("grpo", 0.5, optimizer={"lr": 3e-5}, model={"device": "cpu", "layout": "rows"}, tokens_per_batch=99, output_dir="there")
    assert [said for _, said in judge_claims([claim()], [hsd, near, elsewhere])[0].figures] == ["holds"], "the machine's settings are no difference"
    tuned = measured("hsd", 0.9, optimizer={"lr": 1e-3})
    assert [f.mean for f, _ in judge_claims([claim()], [tuned, hsd, elsewhere])[0].figures] == [judge_claims([claim()], [hsd, elsewhere])[0].figures[0][0].mean]
    assert judge_claims([claim()], [hsd, measured("grpo", 0.5, model="other")])[0].figures == ()
    assert judge_claims([claim()], [hsd, measured("grpo", 0.5, eval={"temperature": 0.5})])[0].figures == ()


def test_two_forms_of_a_method_differ_in_what_the_claim_names_alone():
    plain, unclipped = measured("opsd", 0.7, arguments={"clip": 1.0}), measured("no_clip(opsd)", 0.5, arguments={"clip": 1.0})
    other = measured("shuffled_context(opsd)", 0.5)
    own, control = claim(more="opsd", than="no_clip(opsd)"), claim(more="opsd", than="shuffled_context(opsd)")
    assert [said for _, said in judge_claims([own], [plain, unclipped])[0].figures] == ["holds"]
    ((found, said),) = judge_claims([control], [plain, other])[0].figures
    assert (found.differing, said) == (("method.clip 1.0 against None",), "cannot tell")
    constant = measured("constant_weight(pw_opsd)", 0.5, arguments={"value": 0.771, "clip": 1.0})
    weighted = claim(more="pw_opsd", than={"name": "constant_weight(pw_opsd)", "value": 0.771})
    assert [said for _, said in judge_claims([weighted], [measured("pw_opsd", 0.7, arguments={"clip": 1.0}), constant])[0].figures] == ["holds"]


def test_transport_is_compared_with_its_own_trajectory_term_and_opd_stands_in_for_it():
    at = {"teacher": "External('runs/grpo_0')"}
    topd, opd = measured("topd", 0.9, arguments=at), measured("opd", 0.5, arguments=at)
    term = measured("topd", 0.5, arguments={**at, "trajectory_coef": 0})
    (of,) = [c for c in read_claims() if c.instead]
    ((found, said),) = judge_claims([of], [topd, opd])[0].figures
    assert said == "cannot tell" and found.differing == ("opd(teacher=External()) in place of topd(trajectory_coef=0)",)
    assert [said for _, said in judge_claims([of], [opd, topd, term])[0].figures] == ["holds"]
    far = measured("topd", 0.6, arguments={"teacher": "External('elsewhere')", "trajectory_coef": 0})
    ((found, said),) = judge_claims([of], [topd, far])[0].figures
    assert said == "cannot tell" and "method.teacher" in found.differing[0]


@pytest.mark.parametrize(
    ("name", "arguments", "known"),
    [
        ("opsd", {}, "opsd"),
        ("opsd", {"clip": 1.0}, "opsd"),
        ("opsd", {"teacher": "Frozen()"}, "opsd"),
        ("opsd", {"teacher": "Live()"}, None),
        ("opsd", {"clip": 0.3}, None),
        ("opsd", {"clip": 1.0, "context": "Privileged( (Answer(),),thinking=True )"}, "answer"),
        ("other_weights(opsd)", {"clip": 1.0}, None),
        ("hsd", {"failed_only": True}, None),
        ("hsd", {"direction": "ReverseKL()"}, None),
        ("rcsd", {"rubrics": "GenericRubric()"}, None),
        ("rcsd", {"clip": 1.0}, "rcsd"),
        ("sdpo", {"top_k": 32}, "sdpo"),
        ("sdpo", {"context": "Privileged((Written(),))"}, None),
        ("step_critique", {"critic": "TaskChecker()"}, "step_critique"),
        ("exprl", {"judge": "StepJudge()"}, "exprl"),
        ("sgsd", {"extractor": "TaskLessons()", "gate": "PolarityGate(3.0, 0.0)"}, "sgsd"),
        ("opd", {"teacher": "External('runs/grpo_0/checkpoints/step_000015')"}, "opd"),
        ("package.module:name", {}, None),
        ("opsd", {"of_another_version": 1}, None),
    ],
)
def test_a_method_is_known_by_what_it_builds(name, arguments, known):
    """Adaptations that a shipped recipe makes leave a method what it is; every other argument makes another one."""
    own = measured(name, 0.7, arguments=arguments)
    claimed = {"answer": {"name": "opsd", "context": ANSWER}} | {n: n for n in ("opsd", "hsd", "rcsd", "sdpo", "step_critique", "exprl", "sgsd", "opd")}
    assert [key for key, method in claimed.items() if runs_of(method, [own])] == ([known] if known else [])


def test_every_shipped_recipe_of_a_claimed_method_is_one_of_its_runs():
    claimed = {c.more for c in read_claims() if isinstance(c.more, str)} - {""}
    for recipe in (recipe for recipe in shipped() if recipe.rpartition("/")[2] in claimed):
        own = load_settings(recipe)
        if (name := own.method.name) == recipe.rpartition("/")[2]:
            assert runs_of(name, [Measured(settings=own, entry=entry(name, 0.5))]), recipe


def test_a_diagnostics_figure_is_that_of_one_method_in_every_order():
    """A run's figure is its method's; where a claim names none, every group has a line of its own."""

    def seen(name, x):
        return measured(name, 0.5, diagnostics={0: [{"diagnostic": "markers", "result": {"x": x, "x_ci95": [x - 0.1, x + 0.1]}}]})

    runs = [seen("opsd", 1.0), seen("hsd", -1.0)]
    of_hsd, of_any = (claim(diagnostic="markers", value="x", seeds=1, run=run, more="", than="") for run in ("hsd", ""))
    for order in (runs, runs[::-1]):
        ((found, said),) = judge_claims([of_hsd], order)[0].figures
        assert (found.of, found.mean, said) == ("hsd", -1.0, "does not hold")
        (judged,) = judge_claims([of_any], order)
        assert {figure.of: said for figure, said in judged.figures} == {"opsd": "holds", "hsd": "does not hold"}
        assert summed(shown(judged, "testbed"), of_any) == "cannot tell"


def test_columns_are_by_model_and_task():
    def column(task, tiny):
        return measured("hsd", 0.7, task=task, tiny=tiny).column

    assert column("arithmetic", True) == "testbed" and column("reasoning_gym:chain_sum", False) == column("arithmetic", False) == "real model"
    assert column("gsm.jsonl", True) == "", "neither a testbed nor a language model"
    (judged,) = judge_claims([claim(than="base")], [measured("hsd", 0.7, task="gsm.jsonl")])
    assert len(judged.figures) == 1 and not any(shown(judged, name) for name in COLUMNS)


def test_a_column_is_summed_over_the_figures_that_could_tell():
    few, enough = measured("hsd", 0.1, seeds=(0,), model="a"), measured("hsd", 0.8, model="b")
    of = claim(than="base")
    (judged,) = judge_claims([of], [few, enough])
    assert [bool(untold(of, figure)) for figure, _ in judged.figures] == [True, False] and summed(shown(judged, "testbed"), of) == "holds"
    (judged,) = judge_claims([of], [measured("hsd", 0.1, model="a"), enough])
    assert summed(shown(judged, "testbed"), of) == "cannot tell", "one holds and one does not"


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


def test_a_failing_claim_and_one_never_measured_stay_on_the_page():
    runs = [measured("hsd", 0.4), measured("grpo", 0.8, optimizer={"lr": 1e-5}), measured("grpo", 0.8)]
    text = page(judge_claims([claim(statement="hsd wins"), claim(statement="nobody ran it", than="dapo")], runs), runs)
    (fails,) = [line for line in text.splitlines() if line.startswith("| hsd wins")]
    assert fails.startswith("| hsd wins | **does not hold** -") and fails.endswith(", 3 seeds | not measured |")
    assert "| nobody ran it | not measured | not measured |" in text.splitlines()
    assert "| p | 2 |  | 1 |  | 1 |  |  |  | 2 |" in text.splitlines(), "counted by paper and column"
    assert "### tiny, arithmetic" in text and "| hsd | `hsd` | 0, 1, 2 | 30 x 4 |" in text
    differing = page(judge_claims([claim(statement="hsd wins")], runs[:2]), runs[:2])
    assert "cannot tell -" in differing and ", 3 seeds; optimizer.lr 1e-06 against 1e-05 |" in differing
    few = [measured("hsd", 0.4, seeds=(0,)), measured("grpo", 0.8, seeds=(0,))]
    assert "], 1 of 3 seeds |" in page(judge_claims([claim()], few), few)


def test_every_claim_names_methods_that_exist_and_says_one_thing():
    claims = read_claims()
    assert len({(c.paper, c.statement) for c in claims}) == len(claims)
    for one in claims:
        assert bool(one.more and one.than) != bool(one.diagnostic and one.value), one.statement
        for named in (name for name in (one.more, one.than, one.instead, one.run) if name not in ("", "base")):
            table = {"name": named} if isinstance(named, str) else dict(named)
            build_method(table.pop("name"), table, max_completion_length=8)


def test_the_command_reads_finished_runs_and_their_diagnostics(base, tmp_path, capsys):  # noqa: F811
    folder = execute(settings(base, tmp_path, steps=1, eval={"at_end": True, "num_problems": 4, "num_samples": 2}))
    method = json.loads((folder / "settings.json").read_text())["method"]["name"]
    main(["claims", str(folder), "--output", str(tmp_path / "claims.md")])
    text = (tmp_path / "claims.md").read_text()
    assert "not measured" in capsys.readouterr().out and str(tmp_path) not in text
    (line,) = [line for line in text.splitlines() if f"| `{method}` | 0 | 4 x 2 |" in line]
    assert line.startswith(f"| {folder.name} |")
    (gain,) = [line for line in text.splitlines() if line.startswith("| HSD ends above its base")]
    assert "| not measured | cannot tell" in gain and "1 of 3 seeds |" in gain
    (folder / "diagnostics").mkdir(exist_ok=True)
    (folder / "diagnostics" / "credit.json").write_text('{"diagnostic": ')
    with pytest.raises(SystemExit):
        main(["claims", str(folder), "--output", str(tmp_path / "claims.md")])
    assert "is not whole JSON" in capsys.readouterr().err


def smollm2(folder, recipe, right, *, seed=0, **overrides):
    """The folder of a finished run of a shipped recipe, its evaluations drawn."""
    own = {"seed": seed, "output_dir": str(folder), "model.path": "runs/smollm2/smollm2-135m-sums", **overrides}
    settings, found = load_settings(f"smollm2/{recipe}", own), run(right, seed=seed)
    (folder / "evaluations").mkdir(parents=True)
    save_settings(settings, folder / "settings.json")
    for step, evaluation in ((0, found.base), (settings.steps, found.trained)):
        (folder / "evaluations" / f"step_{step:06d}.json").write_text(json.dumps(evaluation.to_json()))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": settings.steps, "generated_tokens": 100, "seconds": 1}) + "\n")
    return folder


def test_the_smollm2_recipes_and_their_controls_pair_up(tmp_path):
    """Every claim between two of them has a real model's figure, and nothing stands in the testbed's column."""
    plain = ("opsd", "opsd_answer", "hsd", "grpo", "pw_opsd", "purified_opsd", "step_critique", "sdpo", "sdft", "rlsd")
    controls = {f"null_{name}": (name, f"shuffled_context({name})") for name in ("opsd", "pw_opsd", "purified_opsd", "step_critique", "sdpo", "sdft", "rlsd")}
    folders = [smollm2(tmp_path / f"{name}_{seed}", name, 0.7, seed=seed, **{"optimizer.lr": 2e-4}) for name in plain for seed in (0, 1, 2)]
    folders += [smollm2(tmp_path / f"{n}_0", recipe, 0.5, **{"method": method, "optimizer.lr": 2e-4}) for n, (recipe, method) in controls.items()]
    folders.append(smollm2(tmp_path / "null_hsd_0", "hsd", 0.5, **{"method": "shuffled_peers(hsd)", "optimizer.lr": 2e-4}))
    constant = {"method": "constant_weight(pw_opsd)", "method.value": 0.771, "optimizer.lr": 2e-4}
    folders.append(smollm2(tmp_path / "constant_pw_opsd_0", "pw_opsd", 0.5, **constant))
    runs = measure(folders)
    assert {one.label for one in runs} == {*plain, *controls, "null_hsd", "constant_pw_opsd"} and {one.column for one in runs} == {"real model"}
    found = {judged.claim.statement: judged for judged in judge_claims(read_claims(), runs) if not judged.claim.diagnostic}
    ours = [*plain, "base"]
    between = [j for j in found.values() if j.claim.more in ours and j.claim.than in ours]
    named = ("a constant weight of 0.771", "whose teacher reads the answer alone", "another problem's peers", "PW-OPSD ends above the same with another")
    named += ("another problem's reference", "another rollout's critique", "RLSD ends above the same", "A null context of SDFT", "OPSD's gain is its")
    for judged in [*between, *(j for words in named for statement, j in found.items() if words in statement)]:
        ((figure, _),) = judged.figures
        assert (figure.column, figure.bed[0], figure.differing) == ("real model", "smollm2-135m-sums", ()), judged.claim.statement
    assert len(between) >= 15 and "### smollm2-135m-sums, reasoning_gym:chain_sum" in page(list(found.values()), runs)


def test_a_checkpoint_of_the_tiny_base_is_the_testbeds_wherever_it_lies(tmp_path):
    folder = smollm2(tmp_path / "hsd_0", "hsd", 0.7, task="arithmetic", **{"model.path": "runs/gone/checkpoints/step_000040"})
    assert [one.column for one in measure([folder])] == ["real model"], "SmolLM2 on the testbed's task is a real model"
    (folder / "checkpoints" / "step_000015").mkdir(parents=True)
    (folder / "checkpoints" / "step_000015" / "config.json").write_bytes((ASSETS / "tiny_base" / "config.json").read_bytes())
    assert [one.column for one in measure([folder])] == ["testbed"]


def test_no_run_at_all_is_a_ledger_of_nothing_measured():
    assert all(judged.figures == () for judged in judge_claims(read_claims(), []))
