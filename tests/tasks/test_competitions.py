"""Sets in the columns that AIME, HMMT and MATH come in: mapped by name, told with the boxed instruction, graded as mathematics."""

import json

import pytest

from selfdistill.config import make_settings
from selfdistill.tasks.files import BOXED_INSTRUCTION
from selfdistill.tasks.loading import load_task

AIME = {"ID": "2024-I-0", "Problem": "Find the remainder when $7^{3}$ is divided by $1000$.", "Solution": "$7^3 = 343$, so \\boxed{343}.", "Answer": 343}
AIME_ZEROS = {"id": 61, "problem": "Find $5^2$.", "answer": "025", "url": "https://example.org"}
HMMT = {"problem_idx": 3, "problem": "Compute $\\sqrt{8}$ over $2$.", "answer": "\\sqrt{2}", "problem_type": ["Algebra"]}
MATH = {
    "problem": "Convert $(0,3)$ to polar coordinates.",
    "solution": "The angle is $\\frac{\\pi}{2}$, so $\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}$.",
    "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
    "subject": "Precalculus",
    "level": 2,
    "unique_id": "test/precalculus/807.json",
}
STYLES = {
    "aime": (AIME, {"prompt": "Problem", "answer": "Answer", "solution": "Solution"}, "So \\boxed{343}.", "So \\boxed{344}."),
    "aime with zeros": (AIME_ZEROS, {"prompt": "problem"}, "\\boxed{25}", "\\boxed{250}"),
    "hmmt": (HMMT, {"prompt": "problem"}, "It is $\\boxed{2^{1/2}}$", "It is $\\boxed{\\sqrt{3}}$"),
    "math": (MATH, {"prompt": "problem"}, "Hence \\boxed{(3, \\pi/2)}", "Hence \\boxed{(3, \\pi)}"),
}


@pytest.mark.parametrize("style", STYLES)
def test_a_competition_set_is_read_and_graded(style, tmp_path):
    row, columns, right, wrong = STYLES[style]
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(row) + "\n")
    task = load_task(make_settings({"task": {"name": str(path), "test_path": str(path), "columns": columns}}, {}).task)
    (problem,) = task.problems("test")
    assert problem.prompt == row[columns["prompt"]] and problem.instruction == BOXED_INSTRUCTION
    assert (task.verify(problem, right), task.verify(problem, wrong)) == (1.0, 0.0)
    others = set(row) - set(columns.values()) - {"prompt", "answer", "solution"}
    assert others <= problem.columns.keys(), "the rest reaches reward functions"
