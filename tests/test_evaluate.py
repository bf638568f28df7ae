"""Evaluation: accuracies against counting by hand, intervals over problems, and paired comparison of two models."""

import itertools
import json

import numpy
import pytest
import torch
from tiny_models import tiny_policy, tiny_problems

from selfdistill.evaluate import Evaluation, compare, evaluate, interval
from selfdistill.sampling.transformers import TransformersSampler


def evaluation(*scores, texts=None, truncated=None, ids=()):
    """Scores of problems; every text is its sample's number unless given, every sample has four tokens."""
    rows = tuple(tuple(float(s) for s in row) for row in scores)
    samples = sum(map(len, rows))
    return Evaluation(
        scores=rows,
        texts=texts or tuple(tuple(map(str, range(len(row)))) for row in rows),
        lengths=(4,) * samples,
        truncated_samples=tuple(truncated or (False,) * samples),
        problem_ids=tuple(ids),
    )


class LastWord:
    """A task whose answer is the last word of a completion; a completion without words cannot be judged."""

    def problems(self, split):
        return tiny_problems(3)

    def verify(self, problem, completion):
        return float(int(completion.split()[-1][1:]) % 2 == 0) if completion.split() else None


def test_accuracies_are_those_of_counting():
    found = evaluation((1, 0, 0, 0), (1, 1, 1, 1), (0, 0, 0, 0))
    assert found.avg_at_k == pytest.approx(5 / 12)
    assert found.pass_at_k == pytest.approx(2 / 3)
    assert found.pass_at(1) == pytest.approx(found.avg_at_k)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples(k):
    scores = [(1, 0, 0, 1, 0), (0, 0, 0, 0, 1), (0, 0, 0, 0, 0), (1, 1, 1, 1, 0)]
    choices = [[any(chosen) for chosen in itertools.combinations(row, k)] for row in scores]
    assert evaluation(*scores).pass_at(k) == pytest.approx(numpy.mean([numpy.mean(c) for c in choices]))


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_more_samples_than_there_are_is_refused(k):
    with pytest.raises(ValueError, match=rf"pass@{k} .* 4 samples .* eval.num_samples"):
        evaluation((1, 0, 0, 0)).pass_at(k)


@pytest.mark.parametrize(
    ("texts", "scores", "right"),
    [
        (("a = 1 + 1 = a 2 ; answer 2", "answer 5", "b = 2 + 3 = b 5 ; answer 5"), (0, 1, 1), 1.0),
        (("So it is \\boxed{7}.", "I found \\boxed{7}\nand checked it", "\\boxed{8}"), (0, 0, 1), 0.0),
        (("Answer: 4\nbecause", "The answer is 4.", "Answer: 9"), (1, 1, 0), 1.0),
        (("no idea\n3", "long work\n3", "12"), (1, 1, 0), 1.0),
        (("answer 1", "answer 2"), (0, 1), 0.0),
        (("", "", "answer 2"), (0, 0, 1), 0.0),
    ],
    ids=["clause", "boxed", "marked", "last line", "a tie goes to the first", "empty"],
)
def test_the_majority_is_taken_over_answers(texts, scores, right):
    assert evaluation(scores, texts=(texts,)).maj_at_k == right


def test_intervals_are_over_problems_not_samples():
    """100 samples of 2 problems say no more than that one was solved and one was not."""
    assert evaluation((1,) * 50, (0,) * 50).ci95 == (0.0, 1.0)


@pytest.mark.parametrize("n", [400, 6000])
def test_an_interval_is_as_wide_as_theory_says(n):
    """Far from the ends the percentile bootstrap of a mean is mean +- 1.96 s / sqrt(n)."""
    values = numpy.random.default_rng(1).binomial(8, 0.3, n) / 8
    low, high = interval(values.tolist())
    half = 1.96 * values.std() / n**0.5
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert interval(values.tolist()) == (low, high), "the same scores have the same interval"


def test_equal_values_have_an_interval_of_no_width():
    assert interval([0.25] * 7) == (0.25, 0.25)


def test_a_comparison_pairs_problems():
    """Every problem gains one sample in eight: however much problems differ, the difference is certain."""
    before = [(1,) * right + (0,) * (8 - right) for right in range(8)]
    after = [(1,) * (right + 1) + (0,) * (7 - right) for right in range(8)]
    base, trained = evaluation(*before), evaluation(*after)
    found = compare(base, trained)
    assert found.difference == pytest.approx(1 / 8) and found.difference_ci95 == pytest.approx((1 / 8, 1 / 8))
    assert base.ci95[1] > trained.ci95[0], "side by side the two would look alike"


def test_the_sign_of_a_difference_is_trained_minus_base():
    found = compare(evaluation((1, 1), (1, 0), (1, 1)), evaluation((0, 0), (0, 0), (1, 0)))
    assert found.difference == pytest.approx(-4 / 6) and found.difference_ci95[1] < 0


def test_rescued_and_broken_problems_are_counted_apart():
    base = evaluation((0, 0), (0, 0), (1, 0), (1, 1), (0, 0))
    trained = evaluation((1, 0), (0, 1), (0, 0), (0, 1), (0, 0))
    found = compare(base, trained)
    assert (found.rescued, found.broken) == (2, 1)


def test_truncation_is_compared_problem_by_problem():
    scores = [(0, 0)] * 4
    base = evaluation(*scores, truncated=[True, False] * 4)
    trained = evaluation(*scores, truncated=[True, True] * 4)
    assert (base.truncated, trained.truncated) == (0.5, 1.0)
    assert compare(base, trained).truncated_difference_ci95 == (0.5, 0.5)
    assert compare(base, base).truncated_difference_ci95 == (0.0, 0.0)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (evaluation((1, 0), ids=["a"]), "2 problems x 2 samples and 1 problems x 2 samples"),
        (evaluation((1, 0, 0), (1, 0, 0), ids=["a", "b"]), "2 problems x 2 samples and 2 problems x 3 samples"),
        (evaluation((1, 0), (0, 0), ids=["b", "a"]), "different 2 problems"),
    ],
    ids=["fewer problems", "more samples", "other problems"],
)
def test_models_measured_differently_are_not_compared(other, words):
    with pytest.raises(ValueError, match=words):
        compare(evaluation((1, 0), (0, 0), ids=["a", "b"]), other)


def test_an_evaluation_survives_its_file():
    found = evaluation((1, 0), (0, 0), truncated=[True, False, False, True], ids=["a", "b"])
    assert Evaluation.from_json(json.loads(json.dumps(found.to_json() | {"seconds": 1.5}))) == found


def test_a_model_is_sampled_and_graded_as_in_training():
    policy, problems, seen = tiny_policy(), tiny_problems(3), []
    sampler = TransformersSampler(policy=policy, max_completion_length=6, batch_size=4, on_progress=lambda done, total: seen.append((done, total)))
    torch.manual_seed(5)
    rollouts = [r for group in sampler.sample(problems, 3) for r in group.rollouts]
    torch.manual_seed(5)
    found = evaluate(sampler, LastWord(), problems, num_samples=3)
    assert [*itertools.chain(*found.texts)] == [r.text for r in rollouts]
    assert [*itertools.chain(*found.scores)] == [LastWord().verify(None, r.text) or 0.0 for r in rollouts]
    assert found.lengths == tuple(len(r.completion_ids) for r in rollouts)
    assert found.truncated_samples == tuple(r.truncated for r in rollouts)
    assert 0 < found.avg_at_k < 1, "a random model ends in even and odd words"
    assert found.problem_ids == ("p0", "p1", "p2") and seen[-1] == (9, 9)


def test_right_means_a_reward_of_one_and_ungraded_is_not_right():
    rewards = [1.0, 0.99, None, 2.0]
    sampler = TransformersSampler(policy=tiny_policy(), max_completion_length=2)
    found = evaluate(sampler, LastWord(), tiny_problems(1), num_samples=4, reward=lambda prompts, completions: rewards)
    assert found.scores == ((1.0, 0.0, 0.0, 1.0),)


def test_an_evaluation_that_nothing_can_grade_is_refused():
    sampler = TransformersSampler(policy=tiny_policy(), max_completion_length=2)
    with pytest.raises(ValueError, match=r"none of the 2 samples could be graded; .* eval.at_end = false"):
        evaluate(sampler, LastWord(), tiny_problems(1), num_samples=2, reward=lambda prompts, completions: [None, None])


@pytest.mark.parametrize(("problems", "samples"), [(0, 4), (2, 0)])
def test_an_evaluation_of_nothing_is_refused(problems, samples):
    sampler = TransformersSampler(policy=tiny_policy(), max_completion_length=2)
    with pytest.raises(ValueError, match=f"{problems} problems x {samples} samples are nothing"):
        evaluate(sampler, LastWord(), tiny_problems(2)[:problems], num_samples=samples)
