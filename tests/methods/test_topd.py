"""TOPD: reverse KL on every token, and transported labels in windows where loss and transport distance are both high."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from scene import Scene, kl
from stepping import prepared, tools_of
from test_resume import Words
from test_transport import least_cost
from tiny_models import tiny_policy
from torch import Tensor

from selfdistill.api import assemble
from selfdistill.cli.main import main
from selfdistill.config import make_settings
from selfdistill.divergences import ReverseKL
from selfdistill.methods import null_context, opd, topd, topd_self
from selfdistill.metrics import rollout_metrics, token_metrics
from selfdistill.preflight import check_windows, prove_alignment
from selfdistill.samples import training_samples
from selfdistill.sampling.transformers import TransformersSampler
from selfdistill.teachers import Frozen
from selfdistill.tools import Tools
from selfdistill.transport import Sinkhorn, cosine_cost
from selfdistill.types import Rollout
from selfdistill.windows import TeacherWindow

K = 4


def scene_of(seed: int = 0, method=topd, **arguments) -> Scene:
    """A step with windows of 4 tokens, enough of them to be kept; the student has moved, the teacher has not."""
    scene = Scene(method(teacher=Frozen(), **arguments))
    torch.manual_seed(seed)
    prepared(scene.method, scene.groups, scene.policy, readers=scene.readers)
    return scene


def windows(scene: Scene) -> list[Rollout]:
    return [w for r, _ in scene.rollouts() for w in r.windows]


def token_mean_of_reverse_kl(scene: Scene) -> Tensor:
    total, tokens = torch.zeros(()), 0
    for rollout, group in scene.rollouts():
        student, teacher = scene.student(rollout), scene.view(rollout, group, "teacher").detach()
        total = total + sum(kl(student[t], teacher[t]) for t in range(len(rollout.completion_ids)))
        tokens += len(rollout.completion_ids)
    return total / tokens


@pytest.mark.parametrize("arguments", [{}, {"transport": Sinkhorn(0.3)}], ids=["exact", "sinkhorn"])
def test_equation(arguments):
    """mean_t KL(S_t || T_t) + lambda mean over windows of (1/K) sum_i KL(y~_i || S_i)."""
    scene = scene_of(window=K, share=0.3, control_share=0.3, trajectory_coef=0.7, **arguments)
    kept = windows(scene)
    assert len(kept) > 1
    trajectory = torch.zeros(())
    for window in kept:
        student = scene.student(window)
        for i, label in enumerate(window.labels):
            for token, share in label.items():
                trajectory = trajectory + share * (torch.tensor(share).log() - student[i, token]) / K / len(kept)
    widest = max(len(label) for w in kept for label in w.labels)
    assert widest > 1 if arguments else widest == 1 or any(len(w.completion_ids) < K for w in kept)
    scene.check(token_mean_of_reverse_kl(scene) + 0.7 * trajectory)


def test_the_self_variant_reads_the_solution():
    scene = scene_of(method=self_variant, seed=1)
    kept = windows(scene)
    assert kept
    lines = [(scene.student(w)[i], label) for w in kept for i, label in enumerate(w.labels)]
    trajectory = [p * (torch.tensor(p).log() - student[token]) / K for student, label in lines for token, p in label.items()]
    scene.check(token_mean_of_reverse_kl(scene) + sum(trajectory) / len(kept))


def self_variant(*, teacher):
    full = topd_self(teacher=teacher)
    return replace(full, feedback=topd(window=K, share=0.2, control_share=0.2).feedback, labels=topd(window=K).labels)


def test_the_control_is_cross_entropy_on_the_teachers_window():
    scene = scene_of(window=K, share=0.2, control_share=0.2, lesson=TeacherWindow())
    kept = windows(scene)
    total = torch.zeros(())
    for window in kept:
        assert window.labels is None
        student = scene.student(window)
        for i, token in enumerate(window.completion_ids):
            total = total - student[i, token] / K / len(kept)
    scene.check(token_mean_of_reverse_kl(scene) + total)


@dataclass(kw_only=True)
class Recorder(TransformersSampler):
    """The sampler, with every batch of windows that it has written."""

    calls: list[list[Rollout]] = field(default_factory=list)

    def complete(self, prompts):
        self.calls.append(super().complete(prompts))
        return self.calls[-1]


def recorded(method) -> tuple[Scene, Tools, list[list[Rollout]]]:
    """A step after its stage, with (the student's, the teacher's) windows of all probes."""
    scene = Scene(method)
    recorder = Recorder(policy=scene.policy, max_completion_length=16)
    tools = replace(tools_of(scene.policy, scene.method, readers=scene.readers), sampler=recorder)
    torch.manual_seed(0)
    (stage,) = scene.method.feedback
    stage(scene.groups, tools)
    return scene, tools, recorder.calls


def distance(scene: Scene, one: Rollout, other: Rollout) -> float:
    embedding = scene.policy.base.get_input_embeddings().weight.detach()
    return least_cost(cosine_cost(embedding[one.completion_ids], embedding[other.completion_ids]))


@pytest.mark.parametrize("length", [4, 24])
def test_windows_are_kept_where_loss_and_transport_are_high(length):
    """Over a loop: top share of all positions by loss; kept above the upper quartile of the low-loss probes' distances."""
    scene, tools, (by_student, by_teacher) = recorded(topd(teacher=Frozen(), window=length, share=0.2, control_share=0.1))
    losses = {}
    for rollout, group in scene.rollouts():
        student, teacher = scene.student(rollout).detach(), scene.view(rollout, group, "teacher").detach()
        for t in range(len(rollout.completion_ids)):
            losses[(*rollout.prompt_ids, *rollout.completion_ids[:t]), rollout.index] = float(kl(student[t], teacher[t]))
    ordered = sorted(losses, key=losses.__getitem__, reverse=True)
    n, m = round(0.2 * len(ordered)), round(0.1 * len(ordered))
    assert {tuple(w.prompt_ids) for w in by_student[:n]} == {prompt for prompt, _ in ordered[:n]}
    assert {tuple(w.prompt_ids) for w in by_student[n + m :]} == {prompt for prompt, _ in ordered[-m:]}
    assert [w.prompt_ids for w in by_student] == [w.prompt_ids for w in by_teacher] and len(by_student) == n + 2 * m > n

    distances = np.array([distance(scene, one, other) for one, other in zip(by_student, by_teacher, strict=True)])
    expected = [i for i in range(n) if distances[i] > np.quantile(distances[n + m :], 0.75)]
    assert 0 < len(expected) < n
    kept = windows(scene)
    assert sorted((w.prompt_ids, w.completion_ids) for w in kept) == sorted((by_student[i].prompt_ids, by_student[i].completion_ids) for i in expected)
    for window in kept:
        i = next(i for i in expected if by_student[i].completion_ids == window.completion_ids and by_student[i].prompt_ids == window.prompt_ids)
        check_labels(scene, window, by_teacher[i], distances[i])

    loss_at = {prompt: loss for (prompt, _), loss in losses.items()}
    assert tools.metrics == pytest.approx(
        {
            "windows": len(expected),
            "false_alarm_share": 1 - len(expected) / n,
            "ot_high": np.median(distances[:n]),
            "ot_random": np.median(distances[n : n + m]),
            "ot_low": np.median(distances[n + m :]),
            "ot_loss_pearson": np.corrcoef([loss_at[tuple(w.prompt_ids)] for w in by_student], distances)[0, 1],
        },
        abs=1e-5,
    )


def test_controls_are_a_few_of_the_positions_of_low_loss():
    """3 of the lowest 20 %, and 3 of all; those of high loss are all there."""
    scene, tools, (by_student, _) = recorded(topd(teacher=Frozen(), window=2, share=0.2, control_share=0.2, controls=3))
    losses = {(*s.rollout.prompt_ids, *s.rollout.completion_ids[:t]): d for s in tools.score(scene.groups) for t, d in enumerate(s.divergence.tolist())}
    n = round(0.2 * sum(len(r.completion_ids) for r, _ in scene.rollouts()))
    assert len(by_student) == n + 3 + 3
    limit = sorted(losses.values())[n]
    low = [losses[tuple(w.prompt_ids)] for w in by_student[n + 3 :]]
    assert max(low) <= limit and low != sorted(losses.values())[:3], "drawn, not the very lowest"


def check_labels(scene: Scene, window: Rollout, teacher: Rollout, least: float) -> None:
    """Labels are distributions over the teacher's tokens; together they carry what the teacher wrote, at the least cost."""
    n, m = len(window.completion_ids), len(teacher.completion_ids)
    embedding = scene.policy.base.get_input_embeddings().weight.detach()
    carried, paid = dict.fromkeys(teacher.completion_ids, 0.0), 0.0
    for token, label in zip(window.completion_ids, window.labels, strict=True):
        assert sum(label.values()) == pytest.approx(1) and (len(label) == 1 or n != m)
        for id_, share in label.items():
            carried[id_] += share / n
            paid += share / n * float(cosine_cost(embedding[[token]], embedding[[id_]]))
    assert carried == pytest.approx({t: teacher.completion_ids.count(t) / m for t in carried})
    assert paid == pytest.approx(least, abs=1e-8)


def test_windows_end_with_their_text():
    _, _, calls = recorded(topd(teacher=Frozen(), window=24, share=0.2, control_share=0.2))
    for written in calls:
        ended = [w for w in written if len(w.completion_ids) < 24]
        assert ended and all(w.completion_ids[-1] == 1 and not w.truncated for w in ended)


def test_equation_with_windows_that_ended():
    """K divides short windows too."""
    scene = scene_of(window=24, share=0.3, control_share=0.2)
    kept = windows(scene)
    assert min(len(w.completion_ids) for w in kept) < 24
    trajectory = torch.zeros(())
    for window in kept:
        student = scene.student(window)
        for i, label in enumerate(window.labels):
            trajectory = trajectory + sum(p * (torch.tensor(p).log() - student[i, v]) for v, p in label.items()) / 24 / len(kept)
    scene.check(token_mean_of_reverse_kl(scene) + trajectory)


def test_where_both_write_the_same_nothing_is_kept():
    """Greedy windows of one and the same model: no distance anywhere, and the loss is on-policy distillation alone."""
    method = topd(teacher=Frozen())
    stage = replace(method.feedback[0], temperature=0.0)
    scene = Scene(method)
    scene.policy.load_state_dict(scene.readers["teacher"].teacher.state_dict())
    tools = tools_of(scene.policy, method, readers=scene.readers)
    stage(scene.groups, tools)
    assert windows(scene) == [] and tools.metrics["windows"] == 0 and tools.metrics["false_alarm_share"] == 1
    assert tools.metrics["ot_high"] == tools.metrics["ot_low"] == tools.metrics["ot_loss_pearson"] == 0


def test_a_step_without_windows_is_reverse_kl_alone():
    scene = Scene(topd(teacher=Frozen()))
    scene.check(token_mean_of_reverse_kl(scene))


def test_nothing_taught_writes_nothing():
    scene = Scene(topd_self())
    for group in scene.groups:
        group.problem = replace(group.problem, solution="")
    tools = tools_of(scene.policy, scene.method, readers=scene.readers)
    scene.method.feedback[0](scene.groups, tools)
    assert windows(scene) == [] and tools.metrics == {} and scene.batches() == []


def test_windows_are_in_no_other_term_and_in_no_count():
    with_windows = scene_of(window=K, share=0.2, control_share=0.2)
    without = Scene(with_windows.method)
    assert windows(with_windows)
    encode = with_windows.policy.chat.encode
    first, second = (training_samples(s.groups, s.method, encode=encode) for s in (with_windows, without))
    own = [s for s in first if s.label_scale == 0]
    assert [s.distill_scale for s in own] == [s.distill_scale for s in second] and all(s.label_scale == 0 for s in second)
    beside = [s for s in first if s.label_scale]
    assert not any(s.distill_scale or s.policy_scale or s.reference_scale or s.views for s in beside)
    assert rollout_metrics(with_windows.groups, first) == rollout_metrics(without.groups, second)
    (_, _, sums), (_, _, expected) = with_windows.found(), without.found()
    assert sums.pop("loss_label") > 0.1 and expected.pop("loss_label") == 0
    found, wanted = token_metrics(sums), token_metrics(expected)
    assert found.keys() == wanted.keys() and all(found[name] == pytest.approx(wanted[name], abs=1e-5) for name in found)


def test_windows_carry_the_steps_temperature_and_are_sampled_at_their_own():
    scene = Scene(topd(teacher=Frozen(), window=K, share=0.2, control_share=0.2))
    for rollout, _ in scene.rollouts():
        rollout.temperature = 0.7
    torch.manual_seed(0)
    prepared(scene.method, scene.groups, scene.policy, readers=scene.readers)
    assert {w.temperature for w in windows(scene)} == {0.7} and len(scene.batches()) == 1
    for window in windows(scene):
        logp = scene.student(window).detach()
        assert window.behavior_logp == pytest.approx([float(logp[i, t]) for i, t in enumerate(window.completion_ids)], abs=1e-4)


def test_without_its_windows_it_is_full_vocabulary_opd():
    method = replace(topd(teacher=Frozen()), feedback=(), labels=None, label_coef=0.0)
    assert method == replace(opd(teacher=Frozen()), divergence=ReverseKL(), distill_coef=1.0, policy_coef=0.0, credit=method.credit)


@pytest.mark.parametrize("arguments", [{"share": 0.0}, {"share": 1.5}, {"control_share": 0.0}, {"window": 0}, {"controls": 0}], ids=str)
def test_impossible_windows_are_refused(arguments):
    with pytest.raises(ValueError, match="share"):
        topd(**arguments)


@pytest.mark.parametrize("method", [topd_self(), null_context(topd_self(), kind="shuffled")], ids=["own", "shuffled"])
def test_windows_that_leave_the_models_positions_are_refused_before_the_run(method):
    """Of 256: the student's prompt is 4 tokens here, the teacher's 7, a completion and its window the rest."""
    for completion, fits in ((199, True), (200, False)):
        settings = make_settings({"sampling": {"num_generations": 2, "max_completion_length": completion}}, {})
        trainer = assemble(settings, policy=tiny_policy(), method=method, task=Words()).trainer
        if fits:
            check_windows(trainer)
        else:
            with pytest.raises(
                ValueError, match=r"windows of 50 tokens behind a prompt of 7 and a completion of 200 .* 256 positions; lower .* method\.window"
            ):
                prove_alignment(trainer)


def test_windows_do_not_disturb_the_proof_that_both_read_the_same_in_bf16(tmp_path):
    """They are rows of the student's alone, and bf16 rounds a batch of another shape otherwise."""
    size = ["--steps", "1", "--prompts_per_step", "2", "--sampling.num_generations", "2", "--sampling.max_completion_length", "24", "--model.dtype", "bfloat16"]
    told = ["--method", "topd", "--method.teacher", "External('tiny')", "--eval.at_end", "false", "--eval.every", "0", "--checkpoint_every", "0"]
    main(["train", "quickstart", *told, *size, "--output_dir", str(tmp_path / "run")])
    assert (tmp_path / "run" / "metrics.jsonl").exists()
