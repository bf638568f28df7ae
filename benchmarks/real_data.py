"""What benchmarks on the real model work with: its folder, problems that it solves sometimes, with a column for every method, and a bank of skills."""

import json
import operator
from pathlib import Path
from typing import Any

import torch
from workload import STORE, model_folder

import selfdistill
from selfdistill.loading import load_policy, save_policy
from selfdistill.sampling.transformers import TransformersSampler
from selfdistill.tasks.files import Dataset
from selfdistill.tasks.grading import grade
from selfdistill.tasks.reasoning_gym import ReasoningGym
from selfdistill.types import Problem

MODEL = "smollm2-135m"
DATA = STORE / "models" / "sums.jsonl"
"""Beside the model, and not kept in git as it is not."""
BANK = Path(__file__).parent / "skills.json"
INSTRUCTION = "Reply with one line: 'Answer: ' and the number."
KEPT, ASKED, SAMPLES = 8, 20, 8
RUBRIC = (
    ("Reads both numbers", "The numbers that are added are those of the problem, with their signs.", 1),
    ("Adds them", "The sum of both numbers is right.", 3),
    ("Says the answer", "The reply ends with the word Answer, a colon and one number.", 2),
)


def base_folder() -> Path:
    """The model as a plain folder: its 4-bit file takes 20 seconds to unpack each time."""
    return model_folder(MODEL)


def bank_file() -> Path:
    return BANK


def problems_file() -> Path:
    """Sums of two one-digit numbers, those nearest to being solved half the time by the base, one JSON object a line."""
    if not DATA.is_file():
        gym = ReasoningGym(generator="chain_sum", knobs={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}, instruction=INSTRUCTION, num_test=1)
        sums = [p for p in gym.problems("train") if "+" in p.columns["entry"]["metadata"]["expression"]][:ASKED]
        shares = _solved(gym, sums)
        nearest = sorted(range(len(sums)), key=lambda i: (abs(shares[i] - 0.5), i))[:KEPT]
        rows = [_row(sums[i]) | {"solved": shares[i]} for i in sorted(nearest)]
        DATA.parent.mkdir(parents=True, exist_ok=True)
        DATA.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DATA


def task() -> Dataset:
    """All of the file to train on."""
    return Dataset(path=str(problems_file()), instruction=INSTRUCTION, test_share=0.0)


def teacher_folder() -> Path:
    """The base after eight steps of SFT on the same problems, its adapter merged."""
    folder = STORE / "models" / f"{MODEL}-sums"
    if not (folder / "config.json").is_file():
        lora = {"path": str(base_folder()), "dtype": "bfloat16", "device": "cpu", "lora": {"r": 16, "alpha": 32}}
        *_, last = selfdistill.train(model=lora, method="sft", dataset=task(), steps=8, prompts_per_step=4, optimizer={"lr": 5e-4})
        save_policy(last.policy, folder, merge=True)
    return folder


def _solved(gym: ReasoningGym, problems: list[Problem]) -> list[float]:
    """The share of each problem's samples that are right."""
    torch.manual_seed(0)
    policy = load_policy(str(base_folder()), dtype="bfloat16", device="cpu")
    groups = TransformersSampler(policy=policy, max_completion_length=40, temperature=0.7).sample(problems, SAMPLES)
    grade(groups, gym)
    return [sum(map(operator.attrgetter("reward"), g.rollouts)) / SAMPLES for g in groups]


def _row(problem: Problem) -> dict[str, Any]:
    """A problem with what each method asks for."""
    left, _, right = problem.columns["entry"]["metadata"]["expression"].split()
    return {
        "id": problem.id,
        "prompt": problem.prompt,
        "answer": problem.answer,
        "solution": problem.solution,
        "demonstration": f"I add {left} and {right} and get {problem.answer}.\nAnswer: {problem.answer}",
        "rubric": json.dumps([dict(zip(("title", "description", "weight"), criterion, strict=True)) for criterion in RUBRIC]),
        "shards": [f"I am adding two numbers. The first one is {left}.", f"The second one is {right}. What is their sum?"],
    }
