"""What a teacher says of every token is what the model's own log-probs say, by plain loops."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_models import full_logp, tiny_groups, tiny_policy

from selfdistill.contexts import Answer, Privileged, Solution
from selfdistill.diagnostics.readings import token_readings, under
from selfdistill.method import Method
from selfdistill.methods import grpo, opsd
from selfdistill.reading import start_readers
from selfdistill.teachers import Live


def readings(policy, method, groups):
    return token_readings(groups, policy=policy, readers=start_readers(method, policy), method=method, budget=200)


def read_under(policy, rollout, text):
    """(log T, log S) over the vocabulary at every completion token, at temperature 1."""
    prompt = policy.chat.encode(({"role": "user", "content": text},))
    return tuple(full_logp(policy, ids, rollout.completion_ids).detach() for ids in (prompt, rollout.prompt_ids))


def test_signals_are_those_of_the_log_probs():
    policy = tiny_policy()
    groups = tiny_groups(policy)
    groups[0].rollouts[0].trained = (0, 2)
    found = readings(policy, under("solution"), groups)
    assert [id(r.rollout) for r in found] == [id(r) for g in groups for r in g.rollouts], "in the order of the groups"
    for reading in found:
        rollout, problem = reading.rollout, reading.group.problem
        teacher, student = read_under(policy, rollout, f"{problem.prompt} w2 {problem.solution}")
        assert reading.position.tolist() == list(rollout.positions)
        for i, t in enumerate(rollout.positions):
            token = rollout.completion_ids[t]
            assert reading.log_ratio[i] == pytest.approx(float(teacher[t, token] - student[t, token]), abs=1e-4)
            assert reading.target_logp[i] == pytest.approx(float(teacher[t, token]), abs=1e-4)
            assert reading.divergence[i] == pytest.approx(float((teacher[t].exp() * (teacher[t] - student[t])).sum()), abs=1e-4)
            assert reading.entropy[i] == pytest.approx(-float((student[t].exp() * student[t]).sum()), abs=1e-4)
            assert reading.target_entropy[i] == pytest.approx(-float((teacher[t].exp() * teacher[t]).sum()), abs=1e-4)


class Both:
    """Two teachers with shares of 1 and 3."""

    def __call__(self, rollout, group):
        (one,), (other,) = (Privileged((source,))(rollout, group) for source in (Answer(), Solution()))
        return [one, replace(other, weight=3.0)]


def test_several_teachers_are_averaged_by_their_shares():
    policy = tiny_policy()
    groups = tiny_groups(policy, problems=1, n=3)
    both, answer, solution = (readings(policy, m, groups) for m in (Method(context=Both(), teacher=Live()), under("answer"), under("solution")))
    for mixed, one, other in zip(both, answer, solution, strict=True):
        np.testing.assert_allclose(mixed.log_ratio, 0.25 * one.log_ratio + 0.75 * other.log_ratio, atol=1e-5)


def test_nothing_to_read_is_a_sentence():
    policy = tiny_policy()
    groups = tiny_groups(policy)
    with pytest.raises(ValueError, match="none of the 8 rollouts is taught"):
        readings(policy, grpo(), groups)
    with pytest.raises(ValueError, match="no context 'novel'; contexts are answer"):
        under("novel")
    assert readings(policy, opsd(), groups)
