"""The example without the framework says what the framework does: the same completions, the same loss, the same gradient."""

import ast
import copy
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from stepping import gradient_of, perturb, step
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfdistill.contexts import student_messages
from selfdistill.methods import opsd
from selfdistill.models import Policy
from selfdistill.reading import start_readers
from selfdistill.sampling.transformers import TransformersSampler
from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.types import Group, Rollout

PATH = Path(__file__).parents[1] / "examples" / "minimal.py"


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
    (problem,) = Arithmetic(num_train=1).problems("train")
    sampler = TransformersSampler(policy=policy, max_completion_length=minimal.MAX_NEW_TOKENS)
    torch.manual_seed(3)
    expected = [r.completion_ids for r in sampler.sample([problem], 6)[0].rollouts]
    torch.manual_seed(3)
    assert minimal.sample(policy.model, policy.tokenizer, minimal.encode(policy.tokenizer, [problem.prompt] * 6)) == expected
    assert len({tuple(ids) for ids in expected}) > 1


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
