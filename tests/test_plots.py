"""The picture of a run: its lines are the run's numbers, and what a method has not is not drawn."""

import json

import numpy
import pytest
from matplotlib import pyplot as plt
from matplotlib.image import imread

from selfdistill.evaluate import Evaluation
from selfdistill.plots import _accuracy, _lines, learning_curve


def row(step, **changes):
    base = {
        "step": step,
        "reward": step / 10,
        "entropy": 2.0,
        "target_entropy": 1.0,
        "mean_length": 9.0,
        "truncated": 0.5,
        "taught_share": 1.0,
        "divergence": 0.3,
    }
    return base | changes


def evaluation(*scores):
    texts = tuple(("x",) * len(s) for s in scores)
    return Evaluation(scores=scores, texts=texts, lengths=(3,) * sum(map(len, scores)), truncated_samples=(False,) * sum(map(len, scores)))


@pytest.fixture
def axis():
    figure, axis = plt.subplots()
    yield axis
    plt.close(figure)


def drawn(axis):
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axis.get_lines()}


def test_lines_are_the_metrics(axis):
    _lines(axis, [row(1), row(2), row(3, taught_share=0.0, target_entropy=0.0)], {"entropy": "student", "target_entropy": "target"})
    assert drawn(axis) == {"student": [(1, 2.0), (2, 2.0), (3, 2.0)], "target": [(1, 1.0), (2, 1.0)]}
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["student", "target"]


def test_a_method_without_a_teacher_has_no_divergence(axis):
    _lines(axis, [row(1, taught_share=0.0, divergence=0.0)], {"divergence": "divergence"})
    assert drawn(axis) == {} and axis.texts[0].get_text() == "not part of this method"


def test_accuracy_is_drawn_with_its_interval(axis, tmp_path):
    (tmp_path / "evaluations").mkdir()
    measured = {0: evaluation((0.0, 1.0), (0.0, 0.0), (1.0, 1.0)), 40: evaluation((1.0, 1.0), (1.0, 0.0), (1.0, 1.0))}
    for step, result in measured.items():
        (tmp_path / "evaluations" / f"step_{step:06d}.json").write_text(json.dumps(result.to_json()))
    _accuracy(axis, tmp_path)
    (container,) = axis.containers
    steps, means = container[0].get_data()
    assert list(steps) == [0, 40] and list(means) == pytest.approx([0.5, 5 / 6])
    for segment, result in zip(container[2][0].get_segments(), measured.values(), strict=True):
        assert sorted(segment[:, 1]) == pytest.approx(list(result.ci95))
    assert [text.get_text() for text in axis.texts] == ["50.0%", "83.3%"]


def test_the_picture_is_written_and_is_not_blank(tmp_path):
    assert learning_curve(tmp_path, title="nothing yet") is None
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row(step)) + "\n" for step in range(1, 6)))
    path = learning_curve(tmp_path, title="hsd on arithmetic")
    assert path == tmp_path / "learning_curve.png"
    pixels = imread(path)
    panels = [half for third in numpy.array_split(pixels, 3, axis=1) for half in numpy.array_split(third, 2, axis=0)]
    assert pixels.shape[1] > 1000 and all(panel[..., :3].std() > 0.02 for panel in panels)
    assert not plt.get_fignums(), "figures are closed"
