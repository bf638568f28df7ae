"""A judge that errs at a known rate is found to; each kind of reference is what it says; the likelihood judge reads what it is shown."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
from planted import rollout, tools_with
from tiny_models import full_logp, tiny_groups, tiny_policy

from selfdistill.diagnostics.judge import KINDS, Likelihood, judged, misplacement
from selfdistill.null_contexts import BLANK
from selfdistill.types import Group, Problem


def groups(problems=40, n=8):
    made = []
    for p in range(problems):
        own = [rollout([i], float(i % 2), index=i) for i in range(n)]
        for i, r in enumerate(own):
            r.text = f"text {p} {i}"
        made.append(Group(problem=Problem(prompt="q", answer=str(p), solution=f"solution {p}", id=str(p)), rollouts=own))
    return made


@dataclass(frozen=True)
class Erring:
    """Right about a rollout but with probability `rate`: scores 1 and 0."""

    rate: float

    def __call__(self, attempts, tools):
        rng = random.Random(0)
        return [float((a.rollout.reward == 1) != (rng.random() < self.rate)) for a in attempts]


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 1.0])
def test_the_planted_rate_is_found(rate):
    """A pair is lost where both are judged wrongly and half lost where one is: rate^2 + rate (1 - rate) = rate."""
    made = groups()
    scores = judged(Erring(rate), made, tools_with(), reference="correct")
    found = misplacement(made, scores, reference="correct", exact=[float(r.reward) for g in made for r in g.rollouts])
    assert (found.judged, found.pairs) == (320, 40 * 16)
    assert found.share == pytest.approx(rate, abs=0.04) and found.exact == pytest.approx(rate, abs=0.04)
    assert found.share_ci95[0] <= found.share <= found.share_ci95[1]


def test_misplacement_by_a_plain_loop_with_ties_and_silence():
    made = groups(problems=5)
    rng = random.Random(1)
    scores = [rng.choice([None, 0.0, 0.5, 1.0]) for _ in range(40)]
    lost = pairs = 0.0
    for g, own in zip(made, zip(*[iter(scores)] * 8, strict=True), strict=True):
        for r, s in zip(g.rollouts, own, strict=True):
            for other, t in zip(g.rollouts, own, strict=True):
                if r.reward == 1 and other.reward == 0 and s is not None and t is not None:
                    pairs += 1
                    lost += (t > s) + 0.5 * (t == s)
    found = misplacement(made, scores, reference="none")
    assert found.share == pytest.approx(lost / pairs) and found.pairs == pairs and found.judged == sum(s is not None for s in scores)


@dataclass(frozen=True)
class Echo:
    """Remembers what it was shown."""

    seen: list

    def __call__(self, attempts, tools):
        self.seen.extend((a.text, a.group.problem.solution, a.group.problem.answer) for a in attempts)
        return [0.0] * len(attempts)


def test_references_are_the_own_one_a_blank_and_a_false_one():
    made = groups(problems=2, n=4)
    made[1].rollouts = [r for r in made[1].rollouts if r.reward == 1]
    shown = {kind: [] for kind in KINDS}
    for kind, seen in shown.items():
        judged(Echo(seen), made, tools_with(), reference=kind)
    assert {solution for text, solution, _ in shown["correct"]} == {"solution 0", "solution 1"}
    assert {(solution, answer) for _, solution, answer in shown["none"]} == {(BLANK, "")}
    wrong = {text: (solution, answer) for text, solution, answer in shown["wrong"]}
    assert all(wrong[f"text 0 {i}"][0] in ("text 0 0", "text 0 2") and wrong[f"text 0 {i}"][1] == "1" for i in range(4)), "another failed rollout"
    assert all(wrong[f"text 0 {i}"][0] != f"text 0 {i}" for i in range(4)), "never the attempt itself"
    assert {wrong[f"text 1 {i}"] for i in (1, 3)} == {("solution 0", "0")}, "the next problem's, where none failed"


def test_no_judgement_is_a_sentence():
    made = groups(problems=1)
    with pytest.raises(ValueError, match=r"'none' reference \(0 of 8 have a judgement\)"):
        misplacement(made, [None] * 8, reference="none")


def test_likelihood_is_the_geometric_mean_under_the_reference():
    policy = tiny_policy()
    made = tiny_groups(policy)
    scores = judged(Likelihood(budget=300), made, tools_with(policy), reference="correct")
    attempts = [(g, r) for g in made for r in g.rollouts]
    for score, (group, own) in zip(scores, attempts, strict=True):
        prompt = policy.chat.encode(({"role": "user", "content": f"{group.problem.prompt} w2 {group.problem.solution}"},))
        logp = full_logp(policy, prompt, own.completion_ids).detach()
        chosen = [float(logp[t, token]) for t, token in enumerate(own.completion_ids)]
        assert score == pytest.approx(float(np.exp(np.mean(chosen))), rel=1e-3)
