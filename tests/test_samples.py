"""Who is taught, and with which share of the step: counts are global, per term, and never diluted by rows without signal."""

from dataclasses import dataclass, replace

import pytest
from stepping import ScriptedSampler, request_for, tools_of
from tiny_models import tiny_policy

from selfdistill.advantages import BlendedCredit
from selfdistill.contexts import Privileged, Solution
from selfdistill.feedback import SoftOverlong
from selfdistill.method import Method
from selfdistill.methods import dapo, dr_grpo, grpo, grpo_plus, hsd, opsd, sdft, sdpo, sft
from selfdistill.reductions import Constant, SequenceMean, TokenMean
from selfdistill.samples import training_samples
from selfdistill.sources import OnPolicy, Reference, UntilMixed
from selfdistill.types import Group, Problem, Rollout, Teaching, View


def encode(messages, thinking):
    return [len(m["content"]) for m in messages]


def rollout(length: int, reward: float | None = 0.0, **given) -> Rollout:
    return Rollout(prompt_ids=[1], completion_ids=list(range(length)), behavior_logp=[-1.0] * length, text="x", reward=reward, **given)


def group(*rollouts: Rollout, **problem) -> Group:
    return Group(problem=Problem(prompt="q", **problem), rollouts=list(rollouts))


def samples(method, *groups):
    return training_samples(list(groups), method, encode=encode)


def test_distillation_is_averaged_over_taught_rollouts_only():
    taught, untaught = group(rollout(3), rollout(5), solution="s"), group(rollout(90))
    mine = samples(opsd(), taught, untaught)
    assert [s.distill_scale for s in mine] == pytest.approx([1 / 8, 1 / 8, 0.0])
    by_rollout = samples(replace(opsd(), reduction=SequenceMean()), taught, untaught)
    assert [s.distill_scale for s in by_rollout] == pytest.approx([1 / 3 / 2, 1 / 5 / 2, 0.0])


def test_over_all_counts_untaught_rollouts_as_zeros():
    taught, untaught = group(rollout(3), solution="s"), group(rollout(5))
    assert samples(replace(opsd(), reduction=TokenMean("all")), taught, untaught)[0].distill_scale == pytest.approx(1 / 8)
    assert samples(replace(opsd(), reduction=SequenceMean("all")), taught, untaught)[0].distill_scale == pytest.approx(1 / 6)
    assert samples(replace(opsd(), reduction=Constant(10, "all")), taught, untaught)[0].distill_scale == pytest.approx(1 / 20)


def test_other_terms_count_every_rollout():
    method = replace(grpo_plus(opsd(), distill_coef=0.5), reference_coef=0.25)
    mine = samples(method, group(rollout(3, 1.0), rollout(5, 0.0), solution="s"), group(rollout(2, 1.0), rollout(10, 0.0)))
    assert [s.policy_scale for s in mine] == pytest.approx([1 / 20] * 4)
    assert [s.reference_scale for s in mine] == pytest.approx([0.25 / 20] * 4)
    assert [s.distill_scale for s in mine] == pytest.approx([0.5 / 8, 0.5 / 8, 0, 0])


def test_ungraded_rollouts_leave_a_loss_that_reads_rewards_and_its_counts():
    graded, mixed = group(rollout(4, 1.0), rollout(6, 0.0)), group(rollout(4, 1.0), rollout(50, None), rollout(6, 0.0))
    for method in (grpo(), dr_grpo(max_completion_length=9), grpo_plus(opsd())):
        one, other = samples(method, graded), samples(method, mixed)
        assert [(s.advantage, s.policy_scale) for s in one] == [(s.advantage, s.policy_scale) for s in other]


def test_ungraded_rollouts_stay_where_no_reward_is_read():
    mine = samples(opsd(), group(rollout(4, None), rollout(6, None), solution="s"))
    assert [s.distill_scale for s in mine] == pytest.approx([0.1, 0.1])


def test_rollouts_without_trained_tokens_are_nowhere():
    mine = samples(sdft(), group(rollout(5, trained=(3, 4)), rollout(2, trained=()), solution="s"))
    assert [s.distill_scale for s in mine] == pytest.approx([1 / 2])


@dataclass(frozen=True)
class Weighted:
    weights: tuple[float, ...]

    def __call__(self, rollout, group):
        return [Teaching(views={"teacher": View(messages=(), prompt_ids=(0,))}, weight=w) for w in self.weights]


def test_shares_of_a_rollouts_teachers_sum_to_one():
    mine = samples(replace(opsd(), context=Weighted((1.0, 3.0))), group(rollout(4)))
    assert [s.distill_scale for s in mine] == pytest.approx([1 / 16, 3 / 16])


def test_a_teacher_of_weight_zero_is_no_teacher():
    assert [s.distill_scale for s in samples(replace(opsd(), context=Weighted((0.0, 2.0))), group(rollout(4)))] == pytest.approx([1 / 4])


@pytest.mark.parametrize("weights", [(0.0, 0.0), (3.0, -1.0)])
def test_shares_that_cannot_sum_to_one_are_refused(weights):
    with pytest.raises(ValueError, match=r"weights.*token_weight"):
        samples(replace(opsd(), context=Weighted(weights)), group(rollout(4)))


def test_teachers_of_one_rollout_have_the_same_roles():
    class Odd:
        def __call__(self, rollout, group):
            return [Teaching(views={role: View(messages=(), prompt_ids=(0,))}) for role in ("teacher", "live")]

    with pytest.raises(ValueError, match="same roles"):
        samples(replace(opsd(), context=Odd()), group(rollout(4)))


def test_zero_coefficients_ask_no_teacher():
    """The context is not even called."""

    class Never:
        def __call__(self, rollout, group):
            raise AssertionError("a method without distillation must not build contexts")

    assert samples(replace(grpo(), context=Never()), group(rollout(3, 1.0), rollout(3, 0.0)))[0].views == {}
    assert samples(replace(sft(), context=Never()), group(rollout(3)))[0].label_scale == pytest.approx(1 / 3)


def test_policy_scale_is_zero_without_credit():
    uniform = group(rollout(3, 1.0), rollout(4, 1.0), solution="s")
    assert [s.policy_scale for s in samples(grpo(), uniform)] == [0.0, 0.0]
    blended = replace(grpo_plus(opsd()), credit=BlendedCredit(0.5))
    assert all(s.policy_scale > 0 for s in samples(blended, uniform)), "the teacher's credit is there even if the outcome's is not"


def test_shaping_moves_advantages_but_is_never_success():
    penal = SoftOverlong(limit=10, buffer=4)
    mine = group(rollout(10, 1.0), rollout(6, 1.0), rollout(8, 1.0), rollout(12, 0.0))
    penal([mine], tools_of(tiny_policy(), Method()))
    assert [r.shaping for r in mine.rollouts] == pytest.approx([-1.0, 0.0, -0.5, -1.0])
    assert [r.reward for r in mine.rollouts] == [1.0, 1.0, 1.0, 0.0]
    advantages = [s.advantage for s in samples(dapo(max_completion_length=10), mine)]
    assert advantages[1] > advantages[2] > advantages[0] > advantages[3]
    teacherless = samples(sdpo(), mine)
    assert [bool(s.views) for s in teacherless] == [True] * 4, "peers are picked by reward, not by shaped reward"


def test_thinking_reaches_the_encoder():
    flags = []
    training_samples([group(rollout(2), solution="s")], opsd(), encode=lambda m, thinking: flags.append(thinking) or [0])
    training_samples([group(rollout(2), answer="s")], hsd(), encode=lambda m, thinking: flags.append(thinking) or [0])
    training_samples([group(rollout(2), solution="s")], replace(opsd(), context=Privileged((Solution(),))), encode=lambda m, t: flags.append(t) or [0])
    assert flags == [True, False, None]


def source(part, sampler, n_problems):
    problems = [Problem(prompt=str(i), solution="abc") for i in range(n_problems)]
    return part(replace(request_for(sampler, problems, 2), draw=lambda k: [Problem(prompt="new")] * k))


def test_on_policy_skips_first_tokens_even_of_short_rollouts():
    groups = source(OnPolicy(3), ScriptedSampler([0.0, 1.0]), 1)
    assert [r.positions for r in groups[0].rollouts] == [(3, 4), (3, 4)]
    assert source(OnPolicy(9), ScriptedSampler([0.0, 1.0]), 1)[0].rollouts[0].positions == ()


def test_until_mixed_replaces_uniform_groups_and_gives_up_in_the_end():
    sampler = ScriptedSampler([1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0])
    groups = source(UntilMixed(3), sampler, 2)
    assert sampler.asked == [2, 1, 1] and [[r.reward for r in g.rollouts] for g in groups] == [[0.0, 1.0], [1.0, 0.0]]
    never = ScriptedSampler(*[[1.0, 1.0]] * 3)
    assert [r.reward for r in source(UntilMixed(3), never, 1)[0].rollouts] == [1.0, 1.0]


def test_until_mixed_does_not_take_an_ungraded_rollout_for_a_failed_one():
    groups = source(UntilMixed(2), ScriptedSampler([1.0, None], [1.0, 0.0]), 1)
    assert [r.reward for r in groups[0].rollouts] == [1.0, 0.0]


def test_reference_needs_a_solution():
    assert source(Reference(), ScriptedSampler(), 2)[1].rollouts[0].completion_ids == [0, 1, 2]
    with pytest.raises(ValueError, match=r"1 problems have no solution.*task.columns.solution"):
        Reference()(request_for(ScriptedSampler(), [Problem(prompt="q", id="x7")], 1))
