"""What models of the testbed make of a context: accuracy by domain under each kind of words, the texts being correct workings.

python benchmarks/reading.py tiny runs/plus_minus/checkpoints/step_000030
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from selfdistill import Problem, load_policy
from selfdistill.sampling.transformers import TransformersSampler
from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.tutoring import without_answer

KINDS = ("student", "solution", "feedback", "solution_feedback")
PROBLEMS, SAMPLES = 100, 2


def shown(problem: Problem, kind: str) -> Problem:
    """The problem with a prompt that already carries its solution, and as feedback another working without the answer."""
    feedback = without_answer(problem.columns["demonstration"], problem.answer)
    text = problem.templates[kind].format(problem=problem.prompt, solution=problem.solution, feedback=feedback)
    return replace(problem, prompt=text, templates={})


def main(models: Sequence[str]) -> None:
    torch.set_num_threads(1)
    task = Arithmetic(operators=("+-", "*"))
    problems = task.problems("test")[:PROBLEMS]
    for model in models:
        sampler = TransformersSampler(policy=load_policy(model), max_completion_length=112)
        for kind in KINDS:
            torch.manual_seed(0)
            groups = sampler.sample([shown(p, kind) for p in problems], SAMPLES)
            right = {d: [task.verify(g.problem, r.text) for g in groups if g.problem.columns["domain"] == d for r in g.rollouts] for d in task.operators}
            print(f"| `{model}` | {kind} | " + " | ".join(f"{sum(v) / len(v):.1%}" for v in right.values()) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
