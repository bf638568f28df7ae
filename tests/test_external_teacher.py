"""An external teacher is another model: its own weights read the student's tokens, and another vocabulary is refused."""

from dataclasses import replace

import pytest
import torch
from tiny_models import full_logp, tiny_groups, tiny_model, tiny_policy, tiny_tokenizer

from selfdistill.methods import opd
from selfdistill.packing import pack
from selfdistill.reading import read, start_readers
from selfdistill.samples import training_samples
from selfdistill.teachers import External


def saved(folder, *, seed=9, extra=()):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(list(extra))
    tiny_model("llama", seed=seed, vocab=64).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return External(str(folder))


def test_another_family_teaches(tmp_path):
    policy = tiny_policy()
    method = opd(teacher=saved(tmp_path / "teacher"))
    groups = tiny_groups(policy)
    readers = start_readers(method, policy)
    (batch,) = pack(training_samples(groups, method, encode=policy.chat.encode), 10**6)
    signals = read(policy, readers, method, batch)
    with readers["teacher"].reading() as teacher:
        assert teacher.base.config.model_type == "llama"
        for sample in range(len(batch.length)):
            mine = batch.sample == sample
            rollout = next(r for g in groups for r in g.rollouts if r.completion_ids == batch.token[mine].tolist())
            expected = full_logp(teacher, rollout.prompt_ids, rollout.completion_ids).gather(-1, batch.token[mine][:, None])[:, 0]
            torch.testing.assert_close(signals.target_logp[mine], expected, atol=1e-5, rtol=0)


def test_another_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match="another vocabulary"):
        start_readers(opd(teacher=saved(tmp_path / "teacher", extra=["w99"])), tiny_policy())


def test_no_teacher_names_the_setting():
    with pytest.raises(ValueError, match=r"method\.teacher"):
        start_readers(replace(opd()), tiny_policy())


def test_a_teacher_in_bfloat16_holds_nothing_in_fp32(tmp_path):
    """The student's fp32 copy is for small updates, which a teacher that is never trained does not get."""
    policy = tiny_policy()
    policy.autocast_dtype = torch.bfloat16
    with start_readers(opd(teacher=saved(tmp_path / "teacher")), policy)["teacher"].reading() as teacher:
        assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16} and teacher.dtype == torch.bfloat16
