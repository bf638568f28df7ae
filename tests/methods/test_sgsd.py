"""SGSD: K teachers, each with one skill and one mistake, believed as far as they side with the outcome."""

import math

import pytest
import torch
from scene import Scene
from stepping import SKILLS, batch_of, prepared, signals_of, tools_of
from tiny_models import full_logp

from selfdistill.divergences import Welsch
from selfdistill.feedback import MarkContent
from selfdistill.loss import objective
from selfdistill.method_names import build_method
from selfdistill.methods import sgsd
from selfdistill.metrics import token_metrics
from selfdistill.notes import SkillsAndAnswer
from selfdistill.retrieval import RandomPairs
from selfdistill.token_weights import ContentMean, PolarityGate
from selfdistill.types import Note

END = 1
NOTES = (
    Note(fields={"skill": "w3 w4", "mistake": "w9"}, score=1.2),
    Note(fields={"skill": "w30", "mistake": "w31 w32 w33"}, score=-0.5),
    Note(fields={"skill": "w12", "mistake": "w5"}, score=0.1),
)


def scene_of(method) -> Scene:
    """Rollouts that end in a special token, under three pairs of unequal scores."""
    scene = Scene(method)
    for rollout, group in scene.rollouts():
        group.notes["skill"] = NOTES
        rollout.completion_ids.append(END)
        rollout.behavior_logp.append(-1.0)
    MarkContent()(scene.groups, tools_of(scene.policy, method))
    return scene


def loop(scene: Scene, *, clip: float, threshold: float, polarity: bool = True) -> tuple[torch.Tensor, list[tuple[int, float]]]:
    """The paper's equation, and (rho, a) of every rollout's teachers."""
    exponentials = [math.exp(note.score) for note in NOTES]
    per_rollout, found = [], []
    for rollout, group in scene.rollouts():
        student = scene.student(rollout)
        content = [t for t, token in enumerate(rollout.completion_ids) if token != END]
        total = 0
        for note, weight in zip(NOTES, exponentials, strict=True):
            prompt = group.problem.templates["skill"].format(problem=group.problem.prompt, **note.fields)
            teacher = full_logp(scene.policy, scene.policy.chat.encode(({"role": "user", "content": prompt},)), rollout.completion_ids).detach()
            deltas = [teacher[t, rollout.completion_ids[t]] - student[t, rollout.completion_ids[t]] for t in content]
            support = sum(max(-clip, min(clip, float(d.detach()))) for d in deltas) / len(content)
            outcome = 1 if rollout.reward == 1 else -1
            rho = outcome * (1 if support > 0 else -1) if abs(support) > threshold else 0
            losses = [math.log(2) - torch.log(1 + torch.exp(-(d**2) / 2)) for d in deltas]
            total = total + weight / sum(exponentials) * (rho if polarity else 1) * sum(losses) / len(content)
            found.append((rho, support))
        per_rollout.append(total)
    return torch.stack(per_rollout).mean(), found


@pytest.mark.parametrize(("clip", "threshold"), [(3.0, 0.05), (1.0, 0.3)], ids=["published", "tight"])
def test_equation(clip, threshold):
    """L = mean over rollouts of sum_k alpha_k rho_k mean over content of (log 2 - softplus(-Delta^2 / 2)); the special token is in neither mean."""
    scene = scene_of(sgsd(gate=PolarityGate(clip, threshold)))
    expected, found = loop(scene, clip=clip, threshold=threshold)
    assert {rho for rho, _ in found} >= {1, -1} and (threshold < 0.3 or 0 in {rho for rho, _ in found})
    sums = scene.check(expected)
    metrics = token_metrics(sums)
    for name, rho in (("helpful_share", 1), ("harmful_share", -1), ("neutral_share", 0)):
        assert metrics[name] == pytest.approx([r for r, _ in found].count(rho) / len(found))
    assert metrics["support"] == pytest.approx(sum(a for _, a in found) / len(found), abs=1e-5)
    assert 0 < metrics["support_clip_share"] < 1


def test_without_polarity_every_teacher_is_followed():
    scene = scene_of(sgsd(gate=ContentMean()))
    sums = scene.check(loop(scene, clip=3.0, threshold=0.05, polarity=False)[0])
    assert "helpful_share" not in token_metrics(sums)


@pytest.mark.parametrize("reward", [1.0, 0.0], ids=["right", "wrong"])
@pytest.mark.parametrize("delta", [0.8, -0.8], ids=["supports", "opposes"])
def test_what_was_right_becomes_likelier_and_what_was_wrong_less_likely_whatever_the_teacher_says(reward, delta):
    """A teacher that sides with the outcome draws the student to itself, one that does not pushes it away: both in the outcome's direction."""
    logp = torch.full((4,), -1.5).requires_grad_()
    target = logp.detach() + delta
    divergence = Welsch()(logp[:, None], target[:, None], torch.zeros(4, dtype=torch.long))
    signals = signals_of(batch_of((4,), rewards=[reward]), logp=logp, target_logp=target, divergence=divergence)
    objective(sgsd(), signals)[0].backward()
    assert torch.equal(logp.grad.sign(), torch.full((4,), -1.0 if reward else 1.0))


def test_shares_are_the_softmax_of_scores_and_the_ungraded_are_untaught():
    scene = scene_of(sgsd())
    group = scene.groups[0]
    shares = torch.tensor([t.weight for t in scene.method.context(group.rollouts[0], group)])
    torch.testing.assert_close(shares, torch.tensor([n.score for n in NOTES]).softmax(0))
    group.rollouts[0].reward = None
    assert scene.method.context(group.rollouts[0], group) == []
    group.notes.clear()
    assert scene.method.context(group.rollouts[1], group) == []


def test_stages_find_pairs_for_every_problem():
    scene = Scene(sgsd(bank=SKILLS))
    prepared(scene.method, scene.groups, scene.policy)
    for group in scene.groups:
        teachings = scene.method.context(group.rollouts[0], group)
        assert len(teachings) == 3, "as many as the bank has mistakes"
        shown = teachings[0].views["teacher"].messages[-1]["content"]
        assert shown.startswith(group.problem.prompt) and " w46 " in shown and " w47 " in shown


def ablation(**arguments: str):
    return build_method("sgsd", {"bank": SKILLS, **arguments}, max_completion_length=16)


def test_ablations_are_reached_from_the_command_line():
    assert ablation(gate="ContentMean()") == sgsd(bank=SKILLS, gate=ContentMean())
    alone, random, answer = ablation(pairs=1), ablation(retrieval="RandomPairs()"), ablation(context="SkillsAndAnswer(thinking=True)")
    assert random == sgsd(bank=SKILLS, retrieval=RandomPairs()) and answer == sgsd(bank=SKILLS, context=SkillsAndAnswer(thinking=True))
    for method, count in ((alone, 1), (random, 3), (answer, 3)):
        scene = Scene(method)
        prepared(method, scene.groups, scene.policy)
        group = scene.groups[0]
        teachings = method.context(group.rollouts[0], group)
        shown = [t.views["teacher"].messages[-1]["content"] for t in teachings]
        assert len(set(shown)) == count
        assert all((f" w1 {group.problem.answer} w46 " in text) == (method is answer) for text in shown)
        assert (len({t.weight for t in teachings}) == 1) == (method is not answer), "random pairs share alike"
