"""Words are counted whole, phrases before the words inside them, and rates are a thousand tokens."""

import pytest

from selfdistill.diagnostics.markers import EPISTEMIC, counted, markers
from selfdistill.evaluate import Evaluation
from selfdistill.types import Group, Problem, Rollout


def test_whole_words_and_longest_phrases():
    text = "Wait, waiter: maybe. MAYBE let me check; let me double-check, or double-check"
    counts = {word: n for word, n in counted(text, EPISTEMIC).items() if n}
    assert counts == {"wait": 1, "maybe": 2, "let me check": 1, "let me double-check": 1, "double-check": 1}


def rollout(text, tokens):
    return Rollout(prompt_ids=[1], completion_ids=[0] * tokens, behavior_logp=[0.0] * tokens, text=text)


def test_rates_by_step_and_evaluation():
    groups = {3: [Group(problem=Problem(prompt="q", id=str(i)), rollouts=[rollout("hmm x", 10), rollout("x", 30 + i)]) for i in range(2)]}
    told = Evaluation(scores=((1.0, 1.0), (0.0, 0.0)), texts=(("hmm hmm", "x"), ("x", "hmm")), lengths=(2, 1, 1, 1), truncated_samples=(False,) * 4)
    result = markers(groups, {0: told}, words=("hmm", "wait"))
    (step,), (base,) = result.rollouts, result.evaluations
    assert (step.name, step.texts, step.total, step.counts) == ("rollouts, step 3", 4, 2, {"hmm": 2, "wait": 0})
    assert step.per_1k == pytest.approx(1000 * 2 / 81) and step.per_1k_ci95 == pytest.approx((1000 / 41, 1000 / 40))
    assert base.per_1k == pytest.approx(1000 * 3 / 5) and base.per_1k_ci95 == pytest.approx((500, 2000 / 3))


def test_nothing_to_count_is_a_sentence():
    with pytest.raises(ValueError, match="0 words and 1 sets of texts leave nothing"):
        markers({1: []}, {}, words=())
