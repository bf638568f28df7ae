"""The example without the framework says what the framework does, and the page on adding a method runs as it stands."""

import ast
import copy
import importlib
import importlib.util
import json
import math
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from stepping import batch_of, gradient_of, perturb, signals_of, step
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfdistill.cli.main import main
from selfdistill.contexts import student_messages
from selfdistill.methods import opsd
from selfdistill.models import Policy
from selfdistill.reading import start_readers
from selfdistill.sampling.transformers import TransformersSampler
from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.types import Group, Rollout

ROOT = Path(__file__).parents[1]
PATH, PAGE = ROOT / "examples" / "minimal.py", ROOT / "docs" / "adding_a_method.md"


@pytest.fixture
def minimal():
    spec = importlib.util.spec_from_file_location("minimal", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def policy(minimal):
    return Policy(AutoModelForCausalLM.from_pretrained(minimal.BASE), AutoTokenizer.from_pretrained(minimal.BASE))


@pytest.mark.parametrize("clip", [0.05, 1.0, math.inf])
def test_the_loss_is_the_frameworks_opsd(minimal, policy, clip):
    minimal.CLIP = clip
    method, problems = opsd(clip=clip), Arithmetic(num_train=3).problems("train")
    readers, teacher = start_readers(method, policy), copy.deepcopy(policy.model)
    perturb(policy)

    plain = minimal.encode(policy.tokenizer, [p.prompt for p in problems for _ in range(2)])
    privileged = minimal.encode(policy.tokenizer, [minimal.with_solution(p.prompt, p.solution) for p in problems for _ in range(2)])
    completions = minimal.sample(policy.model, policy.tokenizer, plain)
    loss = minimal.distill(policy.model, teacher, plain=plain, privileged=privileged, completions=completions)
    loss.backward()
    gradient = gradient_of(policy)

    groups = [Group(problem=p, rollouts=[rollout(policy, p, c) for c in completions[2 * i : 2 * i + 2]]) for i, p in enumerate(problems)]
    expected, expected_gradient, _ = step(method, policy, groups, readers=readers)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4) and expected > 1e-3
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=1e-3)
    assert gradient.abs().max() > 1e-3 and all(p.grad is None for p in teacher.parameters())


def rollout(policy, problem, completion):
    prompt = policy.chat.encode(student_messages(problem))
    return Rollout(prompt_ids=prompt, completion_ids=completion, behavior_logp=[0.0] * len(completion), text=policy.chat.decode(completion))


def test_it_samples_what_the_framework_samples(minimal, policy):
    """Two programs draw with other random numbers: what they write is as likely and as long."""
    problems, n = Arithmetic(num_train=4).problems("train"), 16
    sampler = TransformersSampler(policy=policy, max_completion_length=minimal.MAX_NEW_TOKENS)
    torch.manual_seed(3)
    ours = [(r.prompt_ids, r.completion_ids) for g in sampler.sample(problems, n) for r in g.rollouts]
    prompts = minimal.encode(policy.tokenizer, [p.prompt for p in problems for _ in range(n)])
    theirs = list(zip(prompts, minimal.sample(policy.model, policy.tokenizer, prompts), strict=True))
    assert [prompt for prompt, _ in ours] == prompts and all(ids[-1] == policy.tokenizer.eos_token_id for _, ids in theirs)
    for measure in (lambda prompt, ids: float(len(ids)), lambda prompt, ids: surprisal(policy, prompt, ids)):
        one, other = (torch.tensor([measure(*written) for written in side]) for side in (ours, theirs))
        error = ((one.var() + other.var()) / len(one)).sqrt()
        assert error > 0 and abs(one.mean() - other.mean()) < 3 * error


@torch.no_grad()
def surprisal(policy, prompt: list[int], ids: list[int]) -> float:
    """Nats a token."""
    logp = policy.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return -float(logp[torch.arange(len(ids)), ids].mean())


def test_steps_on_one_batch_bring_the_student_to_its_teacher(minimal, policy):
    problems = Arithmetic(num_train=4).problems("train")
    plain = minimal.encode(policy.tokenizer, [p.prompt for p in problems])
    batch = {
        "plain": plain,
        "privileged": minimal.encode(policy.tokenizer, [minimal.with_solution(p.prompt, p.solution) for p in problems]),
        "completions": minimal.sample(policy.model, policy.tokenizer, plain),
    }
    student, teacher = policy.model, copy.deepcopy(policy.model)
    optimizer = torch.optim.AdamW(student.parameters(), lr=minimal.LEARNING_RATE, weight_decay=0.0)
    losses = []
    for _ in range(8):
        loss = minimal.distill(student, teacher, **batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_a_short_run_trains_and_tells_both_accuracies(minimal, capsys):
    before, after = minimal.main(steps=2, num_test=5)
    shown = capsys.readouterr().out
    assert 0 <= before <= 1 and 0 <= after <= 1
    assert shown.startswith(f"before: {before:.1%} of 5 held-out problems x {minimal.SAMPLES} samples\nstep 1/2: ")
    assert f"\nafter: {after:.1%}, {100 * (after - before):+.1f} points" in shown


def test_it_stands_on_torch_and_transformers_alone_and_stays_short():
    text = PATH.read_text()
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {m for m in modules if m.startswith("selfdistill")} == {"selfdistill.tasks.arithmetic"}
    assert modules - {"selfdistill.tasks.arithmetic"} <= {"copy", "random", "collections.abc", "pathlib", "torch", "jaxtyping", "transformers"}
    assert len(text.splitlines()) <= 130


def test_the_page_on_adding_a_method_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (module, loop), (recipe,), (commands,) = ([text for kind, text in blocks if kind == wanted] for wanted in ("python", "toml", "bash"))
    (tmp_path / "mine.py").write_text(module)
    (tmp_path / "mine.toml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    small = ["--steps", "1", "--prompts_per_step", "2", "--eval.at_end", "false"]
    for line in commands.splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "selfdistill"
        main(words + (small if words[0] == "train" else []))
    shown = capsys.readouterr().out
    assert "Undecided" in shown and "SequenceMean" in shown, "the two parts that differ"
    kept = [json.loads((tmp_path / "runs" / run / "settings.json").read_text()) for run in ("mine", "mine_2")]
    assert [(k["method"]["scale"], k["task"].get("num_problems")) for k in kept] == [(0.5, None), (2, 500)]
    exec(compile(loop.replace("steps=5", "steps=1").replace("prompts_per_step=8", "prompts_per_step=2"), "loop", "exec"), {})
    step, reward, divergence = capsys.readouterr().out.split()
    assert step == "1" and 0 <= float(reward) <= 1 and math.isfinite(float(divergence))
    weight = importlib.import_module("mine").Undecided(0.5)
    signals = signals_of(batch_of([2, 3]))
    assert weight(signals).tolist() == pytest.approx([1 - math.exp(-float(h) / 0.5) for h in signals.entropy])
