"""A measurement is made once, by whoever asks first; one that is cut off goes on after its last whole batch and ends as if it had not been."""

import json
import os
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from peft import LoraConfig, get_peft_model
from test_resume import Words
from tiny_models import tiny_policy, tiny_problems

from selfdistill.api import make_eval_sampler
from selfdistill.config import make_settings
from selfdistill.conversations import Full
from selfdistill.evaluate import Evaluation, evaluate
from selfdistill.measuring import STALE_S, Measurement
from selfdistill.models import Policy


@pytest.fixture
def own(tmp_path):
    """Seven problems by two samples in batches of six samples: three whole batches."""
    return measurement(tmp_path)


def measurement(folder: Path, *, seed: int = 0, weights: int = 0, reward=None, **evaluation) -> Measurement:
    task = {"name": "test_resume:Words"}
    data = {
        "seed": seed,
        "task": task,
        "output_dir": str(folder / "run"),
        "eval": {"num_samples": 2, "batch_size": 6, "max_completion_length": 5, **evaluation},
    }
    policy = tiny_policy(seed=weights)
    return Measurement(policy=policy, settings=make_settings(data, {}), task=Words(), problems=tiny_problems(7), reward=reward, conversation=Full())


def counting(monkeypatch, stop_after: int | None = None) -> list[int]:
    """Prompts of every batch that is sampled; the power fails after so many batches."""
    from selfdistill.sampling.transformers import TransformersSampler

    seen, write = [], TransformersSampler.complete

    def complete(self, prompts):
        if len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append(len(prompts))
        return write(self, prompts)

    monkeypatch.setattr(TransformersSampler, "complete", complete)
    return seen


def test_in_batches_or_at_once_the_same_is_sampled(own):
    """The batches are those that a sampler makes of all problems, on one stream of random numbers."""
    record = own.measure()
    torch.manual_seed(own.settings.seed)
    whole = evaluate(make_eval_sampler(own.policy, own.settings), own.task, own.problems, num_samples=2)
    found = Evaluation.from_json(record)
    assert found.texts == whole.texts and found.scores == whole.scores and found.lengths == whole.lengths and found.problem_ids == whole.problem_ids
    assert found.surprisal == pytest.approx(whole.surprisal) and found.entropy == pytest.approx(sum(whole.surprisal) / sum(whole.lengths))


def test_the_random_state_of_training_is_untouched_and_progress_counts_samples(own):
    seen = []
    torch.manual_seed(7), random.seed(7)
    before = (torch.rand(2), random.random())
    torch.manual_seed(7), random.seed(7)
    own.measure(lambda done, total: seen.append((done, total)))
    assert torch.rand(2).equal(before[0]) and random.random() == before[1]
    assert seen == [(6, 14), (12, 14), (14, 14)]


def test_what_was_measured_is_not_sampled_again_by_anybody(own, tmp_path, monkeypatch):
    seen = counting(monkeypatch)
    first = own.measure()
    assert sum(seen) == 14
    other_run = replace(own, settings=own.settings.model_copy(update={"output_dir": str(tmp_path / "other"), "steps": 7}), policy=tiny_policy())
    assert other_run.kept() == first and other_run.measure() == first and sum(seen) == 14
    assert not list((tmp_path / ".evaluations").glob("*.parts")), "nothing is left of the way there"


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"weights": 1}, {"temperature": 0.5}, {"top_p": 0.9}, {"num_samples": 3}, {"max_completion_length": 4}, {"batch_size": 8}],
    ids=lambda change: next(iter(change)),
)
def test_another_measurement_is_another_one(own, tmp_path, change):
    assert measurement(tmp_path, **change).key != own.key and measurement(tmp_path).key == own.key


def test_problems_and_graders_are_part_of_what_is_measured(own):
    problems = [replace(own.problems[0], answer="w9"), *own.problems[1:]]
    assert replace(own, problems=problems).key != own.key
    worded = [replace(p, instruction="w1") for p in own.problems]
    assert replace(own, problems=worded).key != own.key

    class Others(Words):
        """Of this file, which grades otherwise."""

    assert replace(own, task=Others()).key != own.key


def test_interrupted_and_continued_is_what_was_not_interrupted(own, tmp_path, monkeypatch):
    whole = own.measure()
    cut = replace(own, settings=own.settings.model_copy(update={"output_dir": str(tmp_path / "elsewhere" / "run")}))
    with monkeypatch.context() as patch:
        counting(patch, stop_after=2)
        with pytest.raises(KeyboardInterrupt):
            cut.measure()
    seen = counting(monkeypatch)
    found = cut.measure()
    assert seen == [2], "the two whole batches are not sampled again"
    assert {k: v for k, v in found.items() if k != "seconds"} == {k: v for k, v in whole.items() if k != "seconds"}


def test_without_a_cache_nothing_is_kept(tmp_path, monkeypatch):
    own, seen = measurement(tmp_path, cache=None), counting(monkeypatch)
    own.measure(), own.measure()
    assert sum(seen) == 28 and not list(tmp_path.iterdir())


def test_a_damaged_cache_is_a_sentence(own, tmp_path):
    own.measure()
    path = tmp_path / ".evaluations" / f"{own.key}.json"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match=r"not whole JSON .*; remove it to measure anew"):
        own.kept()


def test_files_of_earlier_and_of_later_versions(own):
    record = own.measure()
    old = {k: v for k, v in record.items() if k not in ("format", "surprisal")}
    assert Evaluation.from_json(json.loads(json.dumps(old))).entropy is None
    with pytest.raises(ValueError, match="format 3, this version reads 1 to 2"):
        Evaluation.from_json({**record, "format": 3})
    with pytest.raises(ValueError, match="lacks 'scores'"):
        Evaluation.from_json({"texts": [], "lengths": [], "truncated_samples": []})


def test_nothing_that_can_be_graded_is_refused_and_not_kept(tmp_path):
    own = measurement(tmp_path, reward=lambda prompts, completions: [None] * len(completions))
    with pytest.raises(ValueError, match="none of the 14 samples could be graded"):
        own.measure()
    assert own.kept() is None


def test_another_rope_other_stops_and_another_template_are_other_models(own):
    """What a checkpoint's config and tokenizer say changes what is sampled as much as its weights do."""
    key = own.key
    for change in (
        lambda p: setattr(p.base.config, "rms_norm_eps", 0.5),
        lambda p: setattr(p.base.generation_config, "eos_token_id", 3),
        lambda p: setattr(p.tokenizer, "chat_template", p.tokenizer.chat_template + " "),
    ):
        policy = tiny_policy(seed=0)
        change(policy)
        assert replace(own, policy=policy).key != key
    assert replace(own, policy=tiny_policy(seed=0)).key == key
    assert replace(own, reward=lambda prompts, completions: [0.0] * len(completions)).key != key


def adapted(rank: int = 4, *, alpha: int = 8, seed: int = 0, trained: bool = False, teacher: bool = False, **kind) -> Policy:
    """The base of `own` under an adapter; `teacher` keeps a second one beside."""
    policy = tiny_policy(seed=0)
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM", **kind)
    policy = Policy(get_peft_model(policy.model, config), policy.tokenizer, fresh_adapter=True)
    if trained:
        torch.manual_seed(7)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn_like(parameter))
    if teacher:
        policy.add_adapter("average")
    return policy


def test_an_untrained_adapter_is_its_base_and_a_trained_one_is_known_by_its_configuration(own):
    """A base is measured once for all methods, ranks and full training, and alpha makes another function of the same factors."""
    base = {replace(own, policy=adapted(**kind)).key for kind in ({}, {"rank": 2, "alpha": 4}, {"seed": 1}, {"teacher": True}, {"lora_dropout": 0.1})}
    assert base == {own.key}
    trained = replace(own, policy=adapted(trained=True)).key
    assert trained == replace(own, policy=adapted(trained=True, teacher=True)).key == replace(own, policy=adapted(trained=True, lora_dropout=0.1)).key
    others = [adapted(trained=True, **kind) for kind in ({"alpha": 64}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 1}})]
    assert len({own.key, trained, *(replace(own, policy=policy).key for policy in others)}) == 5
    assert replace(own, policy=adapted(use_dora=True)).key != own.key, "normalised weights are rounded: another function"


def test_one_seed_for_all_evaluations_measures_a_base_once(tmp_path, monkeypatch):
    seen = counting(monkeypatch)
    own = [measurement(tmp_path, seed=seed) for seed in (0, 1, 2)]
    runs = [replace(m, settings=m.settings.model_copy(update={"eval": m.settings.eval.model_copy(update={"seed": 5})})) for m in own]
    first = runs[0].measure()
    assert [run.measure()["scores"] for run in runs] == [first["scores"]] * 3 and sum(seen) == 14
    assert runs[0].key == measurement(tmp_path, seed=5).key, "what was measured under a run's own seed is found again"
    assert first["texts"] == measurement(tmp_path, seed=5, cache=None).measure()["texts"]


def test_what_nobody_continues_is_swept_away_and_what_may_be_continued_stays(own, tmp_path):
    cache, old = tmp_path / ".evaluations", time.time() - STALE_S - 60
    for name in ("gone", "held", "fresh"):
        (cache / f"{name}.parts").mkdir(parents=True)
        (cache / f"{name}.parts" / "000000.pt").write_text("")
        (cache / f"{name}.lock").write_text("")
    with FileLock(cache / "held.lock"):
        for path in [p for p in cache.rglob("*") if "fresh" not in str(p)]:
            os.utime(path, (old, old))
        own.measure()
    left = {path.name for path in cache.iterdir()}
    assert left >= {"held.parts", "held.lock", "fresh.parts", "fresh.lock"} and not left & {"gone.parts", "gone.lock"}


def test_many_who_ask_at_once_wait_for_the_first(tmp_path, monkeypatch):
    """The one who measures removes its parts at the end, under the feet of nobody."""
    from concurrent.futures import ThreadPoolExecutor

    seen, asking = counting(monkeypatch), [measurement(tmp_path) for _ in range(12)]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda one: one.measure()["scores"], asking))
    assert all(scores == found[0] for scores in found) and len(seen) == 3
