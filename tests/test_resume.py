"""A run that stops and resumes is the run that never stopped, bit for bit; one killed mid-write keeps its last good checkpoint."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import TEMPLATES, WORDS, tiny_model, tiny_tokenizer

from selfdistill import checkpoint
from selfdistill.api import assemble
from selfdistill.config import make_settings
from selfdistill.loading import Lora, load_policy
from selfdistill.runner import execute
from selfdistill.types import Problem


class Words:
    """Right where the first word's number is even: half of a random model's rollouts."""

    templates = TEMPLATES

    def problems(self, split):
        return [Problem(prompt=WORDS[i], answer=WORDS[i + 1], solution=f"{WORDS[i + 1]} w9", id=str(i), templates=TEMPLATES) for i in range(0, 20, 2)]

    def verify(self, problem, completion):
        first = (completion.split() or [""])[0]
        return float(first[1:].isdigit() and int(first[1:]) % 2 == 0)

    def lessons(self, problem, completion):
        """One a word: a skill of a right completion, a mistake of a wrong one."""
        if self.verify(problem, completion):
            return [{"title": w, "principle": "Say it.", "when": "Always."} for w in completion.split()]
        return [{"description": w, "why": "Unknown.", "avoid": "Say another."} for w in completion.split()]


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def settings(base, tmp_path, **changes):
    data = {
        "model": {"path": str(base)},
        "method": "hsd",
        "steps": 4,
        "prompts_per_step": 3,
        "checkpoint_every": 2,
        "output_dir": str(tmp_path / "run"),
        "sampling": {"num_generations": 3, "max_completion_length": 6},
        "optimizer": {"lr": 1e-2, "schedule": "cosine"},
        "eval": {"at_end": False},
        "task": {"name": "test_resume:Words"},
    }
    return make_settings(data, changes)


LORA = {"model.lora": {"r": 4, "alpha": 8}}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "sdpo"},
        {"method": "opsd"},
        {"method": "sdpo", **LORA},
        {"method": "opsd", **LORA},
        {"updates_per_step": 2, "method": "grpo"},
        {"method": {"name": "gkd", "on_policy_share": 0.5, "teacher": "EMA(0.05)"}},
        {"method": {"name": "null_context(opsd)", "kind": "random"}},
        {"method": "topd_self"},
        {"method": {"name": "sgsd", "extractor": "TaskLessons()", "cold_start": 4, "every": 1}},
    ],
    ids=["hsd-live", "sdpo-ema", "opsd-frozen", "sdpo-ema-lora", "opsd-lora", "grpo-two-updates", "gkd-mixed", "random-context", "topd-windows", "sgsd-bank"],
)
def test_resume_is_bit_for_bit(base, tmp_path, changes):
    config = settings(base, tmp_path, **changes)
    straight = assemble(config, task=Words())
    for _ in range(4):
        straight.trainer.step()

    first = assemble(config, task=Words())
    for _ in range(2):
        first.trainer.step()
    folder = checkpoint.save(first.trainer, tmp_path / "run", keep=2)
    torch.rand(100)
    second = assemble(config, task=Words())
    checkpoint.restore(second.trainer, folder)
    results = [second.trainer.step() for _ in range(2)]

    assert results[-1].step == 4
    for (name, one), (_, other) in zip(straight.policy.named_parameters(), second.policy.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    moments = [[s["exp_avg"] for s in t.trainer.optimizer.state.values()] for t in (straight, second)]
    assert moments[0] and all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
    assert second.trainer.schedule.get_last_lr() == straight.trainer.schedule.get_last_lr()
    assert second.trainer.tools.memory == straight.trainer.tools.memory


def test_command_resumes_from_its_folder(base, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    whole = execute(settings(base, tmp_path / "a", output_dir=str(tmp_path / "whole")))
    half = settings(base, tmp_path, output_dir=str(tmp_path / "half"), steps=4)

    class Stop(Exception): ...

    original = checkpoint.save

    def save_then_stop(trainer, run, *, keep):
        original(trainer, run, keep=keep)
        if trainer.steps_done == 2:
            raise Stop

    monkeypatch.setattr(checkpoint, "save", save_then_stop)
    with pytest.raises(Stop):
        execute(half)
    monkeypatch.setattr(checkpoint, "save", original)
    resumed = execute(half, resume=True)
    for name in ("checkpoints/step_000004/model.safetensors", "rollouts/step_000004.jsonl"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name
    steps = [json.loads(line)["step"] for line in (resumed / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_disk_that_fills_leaves_the_last_good_checkpoint(base, tmp_path, monkeypatch):
    parts = assemble(settings(base, tmp_path), task=Words())
    parts.trainer.step()
    good = checkpoint.save(parts.trainer, tmp_path / "run", keep=1)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    parts.trainer.step()
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(parts.trainer, tmp_path / "run", keep=1)
    assert checkpoint.checkpoints(tmp_path / "run") == [good] and checkpoint.latest(tmp_path / "run") == good
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [good.name]


def test_only_the_newest_checkpoints_are_kept(base, tmp_path):
    parts = assemble(settings(base, tmp_path), task=Words())
    for _ in range(3):
        parts.trainer.step()
        checkpoint.save(parts.trainer, tmp_path / "run", keep=2)
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "run")] == ["step_000002", "step_000003"]


def test_another_start_is_refused_for_a_frozen_teacher(base, tmp_path):
    config = settings(base, tmp_path, method="opsd")
    parts = assemble(config, task=Words())
    parts.trainer.step()
    folder = checkpoint.save(parts.trainer, tmp_path / "run", keep=1)
    tiny_model(seed=5).save_pretrained(base)
    with pytest.raises(ValueError, match="hash"):
        checkpoint.restore(assemble(config, task=Words()).trainer, folder)


def test_resuming_under_other_settings_is_refused(base, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    execute(settings(base, tmp_path))
    with pytest.raises(ValueError, match="optimizer"):
        execute(settings(base, tmp_path, **{"optimizer.lr": 1e-3}), resume=True)
    with pytest.raises(ValueError, match="already holds a run"):
        execute(settings(base, tmp_path))


def test_checkpoints_are_ordinary_folders(base, tmp_path):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name, changes in (("full", {}), ("lora", LORA)):
        parts = assemble(settings(base, tmp_path, **changes), task=Words())
        parts.trainer.step()
        folder = checkpoint.save(parts.trainer, tmp_path / name, keep=1)
        loaded = (AutoPeftModelForCausalLM if changes else AutoModelForCausalLM).from_pretrained(folder)
        ids = torch.tensor([[7, 8, 9]])
        with torch.no_grad():
            torch.testing.assert_close(loaded(ids).logits, parts.policy.model(ids).logits)
        assert AutoTokenizer.from_pretrained(folder).chat_template


def test_ema_with_lora_starts_at_the_student_and_follows_it(base):
    policy = load_policy(str(base), lora=Lora(r=4, alpha=8))
    from selfdistill.teachers import EMA

    reader = EMA(0.25).start(policy)
    student = policy.adapter_parameters("default")
    start = {n: p.detach().clone() for n, p in student.items()}
    with torch.no_grad():
        for p in student.values():
            p.add_(1.0)
    reader.update()
    average = policy.adapter_parameters("average")
    assert average.keys() == start.keys()
    for name, p in average.items():
        torch.testing.assert_close(p.detach(), start[name] + 0.25)
    trainable = [n for n, p in policy.named_parameters() if p.requires_grad]
    with reader.reading():
        pass
    assert trainable == [n for n, p in policy.named_parameters() if p.requires_grad] and all("default" in n for n in trainable)


def test_ema_rate_is_the_students_share():
    from tiny_models import tiny_policy

    from selfdistill.teachers import EMA

    policy = tiny_policy()
    reader = EMA(0.1).start(policy)
    before = policy.base.lm_head.weight.detach().clone()
    with torch.no_grad():
        policy.base.lm_head.weight.add_(1.0)
    reader.update()
    with reader.reading() as teacher:
        torch.testing.assert_close(teacher.base.lm_head.weight, before + 0.1)
    assert replace(EMA(0.1)) == EMA(0.1)
