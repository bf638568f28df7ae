"""One file with all it needs, in which no text of a run is anything but text; and the command that writes it."""

import json
import re
import shutil
from pathlib import Path

import pytest
from report_runs import HOSTILE, rewrite

from selfdistill.cli import main
from selfdistill.report import Selection, follow, render, write_page
from selfdistill.report.data import page_model


@pytest.fixture
def copied(runs, tmp_path):
    return shutil.copytree(runs["hsd_0"], tmp_path / "hsd_0")


def model_in(page):
    return json.loads(re.search(r'<script id="model" type="application/json">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_holds_the_model_and_asks_for_nothing(copied, tmp_path):
    model = page_model([copied], Selection(), colourless="no")
    size = write_page(model, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert size == (tmp_path / "report.html").stat().st_size and model_in(page) == json.loads(json.dumps(model))
    assert not re.search(r"<(link|img|iframe)\b|<script[^>]+src|@import|url\(", page.split("<script>")[0])
    assert "default-src 'none'" in page and "<!--" not in page


def test_what_a_rollout_wrote_stays_text(copied):
    rewrite(copied, 1, lambda row: row | {"text": HOSTILE, "answer": HOSTILE, "feedback": {HOSTILE: HOSTILE}, "problem_id": HOSTILE})
    page = render(page_model([copied], Selection(), colourless="no"))
    assert "taken" in page and "<img" not in page and page.count("</script>") == page.count("<script")
    assert model_in(page)["runs"][0]["tokens"]["steps"][0]["problems"][0]["answer"] == HOSTILE


def test_the_command_writes_the_page_beside_the_run_and_says_its_size(copied, capsys):
    main(["report", str(copied), "--no-tokens"])
    assert re.fullmatch(rf"wrote {re.escape(str(copied))}/report.html \(\d\.\d MB\)\n", capsys.readouterr().out)
    assert "--no-tokens" in model_in((copied / "report.html").read_text())["runs"][0]["tokens"]["note"]


def test_several_runs_share_a_page_in_the_folder_they_are_in(runs, tmp_path):
    for name in ("hsd_0", "grpo_0"):
        shutil.copytree(runs[name], tmp_path / name)
    main(["report", str(tmp_path / "hsd_0"), str(tmp_path / "grpo_0"), "--steps", "2", "--problems", "1"])
    first, second = model_in((tmp_path / "report.html").read_text())["runs"]
    assert (first["name"], second["name"]) == ("hsd_0", "grpo_0")
    assert [s["step"] for s in first["tokens"]["steps"]] == [2] and len(first["tokens"]["steps"][0]["problems"]) == 1
    assert first["tokens"]["note"] is None and first["tokens"]["quantities"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give the folder of a run"),
        (["nowhere"], "nowhere is not a run folder"),
        (["RUN", "--steps", "9"], "no rollouts of step 9; it has steps 1 to 2"),
        (["RUN", "--problems", "0"], "problems = 0 selects no rollout"),
        (["RUN", "RUN"], "given twice"),
        (["RUN", "--colour", "red"], "unexpected argument --colour"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(copied, capsys, arguments, said):
    with pytest.raises(SystemExit) as left:
        main(["report", *(str(copied) if a == "RUN" else a for a in arguments)])
    shown = capsys.readouterr().err
    assert left.value.code == 2 and said in shown and shown.count("\n") == 1
    assert not (copied / "report.html").exists()


def test_a_run_from_another_tokenizer_is_refused_by_the_command(copied, capsys):
    rewrite(copied, 1, lambda row: row | {"text": row["text"] + " w1"})
    with pytest.raises(SystemExit) as left:
        main(["report", str(copied)])
    assert left.value.code == 2 and "another tokenizer" in capsys.readouterr().err


def test_a_live_run_is_followed_until_it_has_ended(copied, tmp_path):
    """The page is written again when a step comes in, without a model, and once more with colours at the end."""
    summary, metrics = (copied / "summary.json").read_text(), (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "summary.json").unlink()
    (copied / "metrics.jsonl").write_text("")
    page, said, notes = tmp_path / "page.html", [], []

    def goes_on(line):
        """What the run does next each time the page has caught up."""
        said.append(line)
        notes.append(model_in(page.read_text())["runs"][0] if page.exists() else None)
        if len(said) <= 2:
            (copied / "metrics.jsonl").write_text("".join(metrics[: len(said)]))
        else:
            (copied / "summary.json").write_text(summary)

    follow([copied], Selection(), page, say=goes_on, colourless=None, seconds=0.01)
    assert said == ["waiting for a first step of every run", "hsd_0 at step 1 of 2", "hsd_0 at step 2 of 2"]
    assert notes[0] is None and [run["steps"] for run in notes[1:]] == [1, 2] and "has ended" in notes[1]["tokens"]["note"]
    last = model_in(page.read_text())
    assert not last["following"] and last["runs"][0]["finished"] and last["runs"][0]["tokens"]["quantities"]


def test_following_is_interrupted_like_any_command(copied, capsys, monkeypatch):
    (copied / "summary.json").unlink()

    def stop(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", stop)
    with pytest.raises(SystemExit) as left:
        main(["report", str(copied), "--watch"])
    assert left.value.code == 130 and f"{copied}/report.html is as it was last written" in capsys.readouterr().err
    assert model_in((copied / "report.html").read_text())["following"]


def test_libraries_are_those_that_their_list_says():
    import hashlib

    import selfdistill

    folder = Path(selfdistill.__file__).parent / "assets" / "report" / "vendor"
    rows = re.findall(r"\| (\S+\.js) \|.*\| ISC, (\S+) \| ([0-9a-f]{64}) \|", (folder / "README.md").read_text())
    assert {name for name, *_ in rows} == {path.name for path in folder.glob("*.js")}
    for name, licence, sha in rows:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha and "Permission to use" in (folder / licence).read_text()
