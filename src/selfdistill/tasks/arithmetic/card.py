"""The tiny base measured on held-out problems, written as its model card."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import mannwhitneyu

from selfdistill.contexts import Privileged, Solution
from selfdistill.loading import load_policy
from selfdistill.method import Method
from selfdistill.models import Policy
from selfdistill.packing import pack
from selfdistill.reading import read, start_readers
from selfdistill.samples import training_samples
from selfdistill.sampling.transformers import TransformersSampler
from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.tasks.arithmetic.checker import judge
from selfdistill.tasks.arithmetic.mixture import SHARES, Mixture
from selfdistill.tasks.arithmetic.programs import Program, parse_question
from selfdistill.teachers import Frozen
from selfdistill.types import Group, Problem

SAMPLES = 8
OTHER_PEERS = ("foreign_peer", "wrong_peer")


def write_card(folder: Path, task: Arithmetic, settings: Mapping[str, Any], *, problems: int, seconds: float) -> dict[str, Any]:
    """Measures the base in `folder` and writes README.md and card.json beside it. Returns the figures."""
    policy = load_policy(str(folder))
    sampler = TransformersSampler(policy=policy, max_completion_length=112)
    held_out = replace(task, num_test=problems).problems("test")
    free = sampler.sample(held_out, SAMPLES)
    scores = [[task.verify(g.problem, r.text) for r in g.rollouts] for g in free]
    figures: dict[str, Any] = {
        "seed": settings["seed"],
        "training_seconds": round(seconds),
        "parameters": sum(p.numel() for p in policy.parameters()),
        "problems": problems,
        "avg_at_8": _mean([_mean(s) for s in scores]),
        "pass_at_8": _mean([max(s) for s in scores]),
        "mean_length": _mean([len(r.completion_ids) for g in free for r in g.rollouts]),
        "truncated": _mean([r.truncated for g in free for r in g.rollouts]),
        "accuracy": {kind: _accuracy(sampler, task, kind, held_out) for kind in (*_known(task), *OTHER_PEERS, "sharded")},
        "slip_auroc": _slip_auroc(policy, task, free),
    }
    (folder / "card.json").write_text(json.dumps(figures, indent=2) + "\n")
    (folder / "README.md").write_text(_text(figures, settings))
    return figures


def _known(task: Arithmetic) -> list[str]:
    """The kinds of words that the base was pretrained on."""
    return [kind for kind in task.templates if kind == "student" or kind in SHARES]


def _accuracy(sampler: TransformersSampler, task: Arithmetic, kind: str, problems: list[Problem]) -> float:
    """Share of right answers of one sample a problem under a kind of context."""
    rng = random.Random(0)
    shown = [_under(task, kind, p, problems[(i + 1) % len(problems)], rng) for i, p in enumerate(problems)]
    groups = sampler.sample(shown, 1)
    return _mean([task.verify(g.problem, g.rollouts[0].text) for g in groups])


def _under(task: Arithmetic, kind: str, problem: Problem, other: Problem, rng: random.Random) -> Problem:
    """A problem whose prompt already carries the context."""
    assert isinstance(problem.prompt, str)
    program = parse_question(problem.prompt)
    if kind == "sharded":
        lines = [f"{v.text} ;" for v in judge(program, task.solution(program, rng), modulus=task.modulus)[:-1]]
        by_name = {line.split()[0]: line for line in lines}
        turns = [({"role": "user", "content": f"{s} ;"}, {"role": "assistant", "content": by_name[s.name]}) for s in program]
        return replace(problem, prompt=(*(m for turn in turns for m in turn), {"role": "user", "content": f"{program[-1].name} ?"}), templates={})
    peer = _peer(task, kind, program, other, rng)
    fields = {k: str(problem.columns[k]) for k in ("demonstration", "rubric", "skill", "mistake")}
    fields |= {"answer": problem.answer, "solution": problem.solution, "peer": peer, "critique": peer, "feedback": f"wrong {program[0].name}"}
    text = task.templates["peer" if kind in OTHER_PEERS else kind].format(problem=problem.prompt, instruction="", **fields)
    return replace(problem, prompt=text, templates={})


def _peer(task: Arithmetic, kind: str, program: Program, other: Problem, rng: random.Random) -> str:
    """Another working: of another problem, or of this one with a wrong or a right answer."""
    if kind == "foreign_peer":
        assert other.solution is not None
        return other.solution
    if kind == "wrong_peer":
        return Mixture(task=task, context_share=1.0, slip_rate=0.2).wrong_peer(program, rng)
    return task.solution(program, rng)


def _slip_auroc(policy: Policy, task: Arithmetic, groups: list[Group]) -> float:
    """How well minus the log-ratio under the solution ranks slipped numbers above every other token of rollouts with a slip."""
    method = Method(context=Privileged((Solution(),)), teacher=Frozen())
    wrong = {id(r): task.slips(g.problem, r.text) for g in groups for r in g.rollouts}
    chosen = [Group(problem=g.problem, rollouts=[r for r in g.rollouts if wrong[id(r)]][:2]) for g in groups]
    for rollout in (r for g in chosen for r in g.rollouts):
        rollout.reward = 0.0
    slipped_at = {tuple(r.completion_ids): wrong[id(r)] for g in chosen for r in g.rollouts}
    scores: tuple[list[float], list[float]] = ([], [])
    for batch in pack(training_samples(chosen, method, encode=policy.chat.encode), 20_000):
        with torch.no_grad():
            signals = read(policy, start_readers(method, policy), method, batch)
        for sample in range(len(batch.length)):
            own = batch.sample == sample
            slipped = slipped_at[tuple(batch.token[own].tolist())]
            for t, ratio in enumerate(signals.log_ratio[own].tolist()):
                scores[t in slipped].append(-ratio)
    others, slipped_scores = scores
    if not slipped_scores:
        return float("nan")
    return round(float(mannwhitneyu(slipped_scores, others).statistic) / (len(slipped_scores) * len(others)), 4)


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / max(len(values), 1), 4)


def _text(figures: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {kind} | {accuracy:.1%} |" for kind, accuracy in figures["accuracy"].items())
    return f"""---
license: apache-2.0
library_name: transformers
---
# tiny: the base of the arithmetic testbed

A Qwen3-architecture model of {figures["parameters"]:,} parameters with a tokenizer of its own (one token a word, chat template), trained
from scratch by `selfdistill pretrain tiny_base` (seed {figures["seed"]}, {figures["training_seconds"]} s) on chains of {settings["operations"]}
operations modulo {settings["modulus"]}. It knows the facts but errs: without context a step slips at the rate it was taught.

Measured on {figures["problems"]} held-out problems at temperature 1, {SAMPLES} samples each:

| | |
|---|---|
| avg@{SAMPLES} without context | {figures["avg_at_8"]:.1%} |
| pass@{SAMPLES} without context | {figures["pass_at_8"]:.1%} |
| mean length, tokens | {figures["mean_length"]:.1f} |
| truncated | {figures["truncated"]:.1%} |
| AUROC of slipped numbers among all tokens of rollouts with a slip, by the log-ratio under the solution | {figures["slip_auroc"]:.3f} |

Accuracy by what the prompt also shows (n = {figures["problems"]}, one sample each; beside the answer, `foreign_peer` shows a peer of another
problem, `wrong_peer` one whose slips were carried through to a wrong answer):

| context | accuracy |
|---|---|
{rows}

Settings: `{json.dumps({k: v for k, v in settings.items() if k != "output_dir"})}`
"""
