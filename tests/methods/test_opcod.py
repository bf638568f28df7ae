"""OPCoD: SDPO's loss under the student's own success and what its peer says of the rollout, where the peer is right often enough."""

import math
from dataclasses import replace

import pytest
import torch
from scene import Scene, jsd
from stepping import tools_of
from tiny_models import tiny_groups, tiny_policy

from selfdistill.method import diff
from selfdistill.methods import opcod, sdpo
from selfdistill.tutoring import AsWritten, Cognizance


def says(chats, tools):
    """Feedback on each of the chats: which of them it is."""
    return [f"w3{i} w7" for i in range(len(chats))]


OPEN = {"writer": says, "anchor": AsWritten(), "breaks_every": 0}


def beside_a_peer(scene: Scene) -> Scene:
    """A peer that is right on half of the first problem's rollouts and on none of the second's; one success of the student's own, on the first."""
    policy = tiny_policy(seed=3)
    peers = tiny_groups(policy, seed=5)
    for rollout in peers[1].rollouts:
        rollout.reward = 0.0
    for group, peer in zip(scene.groups, peers, strict=True):
        group.peer = peer
        for rollout in group.rollouts:
            rollout.reward = float(group is scene.groups[0] and rollout.index == 2)
    tools = tools_of(scene.policy, scene.method, readers=scene.readers)
    for stage in scene.method.feedback:
        stage(scene.groups, replace(tools, peer=tools_of(policy, scene.method)))
    return scene


def prompts(scene: Scene) -> list[str]:
    shown = [[t.views["teacher"].messages[-1]["content"] for t in scene.method.context(r, g)] for r, g in scene.rollouts()]
    return [text[0] if text else "" for text in shown]


def test_equation():
    """mean over taught tokens of min(rho, 2) JSD(0.5) between the student's top 5 and a tail; the peer is believed on the first problem only."""
    scene = beside_a_peer(Scene(opcod(top_k=5, **OPEN)))
    values = []
    for rollout, group in scene.rollouts():
        if group is scene.groups[1]:
            assert not scene.method.context(rollout, group)
            continue
        student, teacher = scene.student(rollout), scene.view(rollout, group, "teacher")
        for t in range(len(rollout.completion_ids)):
            top = student[t].detach().topk(5).indices
            s = torch.cat([student[t][top], (1 - student[t][top].exp().sum()).log()[None]])
            q = torch.cat([teacher[t][top], (1 - teacher[t][top].exp().sum()).log()[None]])
            weight = min(math.exp(float(student[t][rollout.completion_ids[t]].detach()) - rollout.behavior_logp[t]), 2.0)
            values.append(weight * jsd(s, q))
    scene.check(torch.stack(values).mean())


def test_each_rollout_reads_its_own_feedback_beside_the_students_success():
    scene = beside_a_peer(Scene(opcod(**OPEN)))
    group = scene.groups[0]
    success = group.rollouts[2].text
    both = [f"{group.problem.prompt} w5 w3{i} w7 w2 {success}" for i in (0, 1, 3)]
    # the success itself has no other one to read
    assert prompts(scene)[:4] == [both[0], both[1], f"{group.problem.prompt} w5 w32 w7", both[2]]
    assert prompts(scene)[4:] == [""] * 4


def test_without_the_gate_the_peer_speaks_where_it_is_always_wrong():
    scene = beside_a_peer(Scene(opcod(gate=Cognizance(0.0), **OPEN)))
    assert prompts(scene)[4:] == [f"{scene.groups[1].problem.prompt} w5 w3{i} w7" for i in range(4, 8)]


@pytest.mark.parametrize("way", [{"gate": lambda group: False}, {"anchor": lambda text, problem, task: None}])
def test_where_no_feedback_is_let_through_it_is_sdpo(way):
    method = opcod(top_k=5, **(OPEN | way))
    ours, theirs = beside_a_peer(Scene(method)), beside_a_peer(Scene(sdpo(top_k=5)))
    assert any(prompts(ours)) and prompts(ours) == prompts(theirs)
    assert ours.found()[0] == theirs.found()[0]


def test_it_differs_from_sdpo_in_what_is_written_and_read():
    assert set(diff(opcod(), sdpo())) == {"feedback", "context"}


def test_one_model_alone_is_told_what_is_missing():
    scene = Scene(opcod())
    with pytest.raises(ValueError, match=r"second model .* set \[peer\] path"):
        scene.method.feedback[0](scene.groups, tools_of(scene.policy, scene.method))
