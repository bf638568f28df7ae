"""summary.json: the promised keys with the right figures in them, written whole or not at all."""

import json

import pytest

from selfdistill.config import make_settings
from selfdistill.evaluate import Evaluation
from selfdistill.summary import summarize

BASE = Evaluation(
    scores=((1.0, 0.0), (0.0, 0.0), (0.0, 0.0)),
    texts=(("answer 3", "answer 4"), ("answer 1", "answer 2"), ("answer 5", "answer 6")),
    lengths=(4, 4, 5, 5, 6, 7),
    truncated_samples=(False, False, False, False, False, True),
)
TRAINED = Evaluation(
    scores=((1.0, 1.0), (1.0, 0.0), (0.0, 0.0)),
    texts=(("answer 3", "answer 3"), ("answer 9", "answer 2"), ("answer 5", "answer 6")),
    lengths=(4, 4, 4, 4, 4, 4),
    truncated_samples=(False,) * 6,
)


def written(path, base=BASE, trained=TRAINED):
    """The file, which is what the call returns too."""
    settings = make_settings({"method": "hsd", "task": "arithmetic", "steps": 3}, {})
    returned = summarize(settings, base, trained, seconds={"train": 12.34, "eval": 5.67}, path=path)
    found = json.loads(path.read_text())
    assert json.loads(json.dumps(returned)) == found
    return found


@pytest.fixture(autouse=True)
def no_install(monkeypatch):
    monkeypatch.delenv("SELFDISTILL_INSTALL_SECONDS", raising=False)


def test_every_figure_stands_under_its_promised_name(tmp_path):
    found = written(tmp_path / "runs" / "quickstart" / "summary.json")
    assert (found["method"], found["task"], found["num_problems"], found["num_samples"]) == ("hsd", "arithmetic", 3, 2)
    expected = {"avg_at_k": 0.1667, "pass_at_k": 0.3333, "maj_at_k": 0.3333, "ci95": [0.0, 0.5], "truncated": 0.1667, "mean_length": 5.1667}
    expected |= {"distinct_answers": 2.0, "entropy": None}
    assert found["base"] == expected
    assert (found["trained"]["avg_at_k"], found["trained"]["truncated"], found["trained"]["mean_length"]) == (0.5, 0.0, 4.0)
    assert found["difference"] == 0.3333 and found["difference_ci95"] == [0.0, 0.5]
    assert (found["rescued"], found["broken"], found["majority_rescued"], found["majority_broken"], found["mcnemar_p"]) == (1, 0, 1, 0, 1.0)
    assert found["settings"]["steps"] == 3


@pytest.mark.parametrize(("given", "seconds"), [("93", 93.0), ("93.5", 93.5), ("", None), ("unknown", None), (None, None)])
def test_seconds_of_the_installation_are_null_where_nobody_measured_them(tmp_path, monkeypatch, given, seconds):
    if given is not None:
        monkeypatch.setenv("SELFDISTILL_INSTALL_SECONDS", given)
    assert written(tmp_path / "summary.json")["seconds"] == {"install": seconds, "train": 12.3, "eval": 5.7}


def test_two_models_that_cannot_be_compared_leave_the_file_as_it_was(tmp_path):
    path = tmp_path / "summary.json"
    before = written(path)
    with pytest.raises(ValueError, match="3 problems x 2 samples"):
        written(path, base=Evaluation(scores=((1.0,),), texts=(("answer 3",),), lengths=(4,), truncated_samples=(False,)))
    assert json.loads(path.read_text()) == before and [p.name for p in tmp_path.iterdir()] == ["summary.json"]
