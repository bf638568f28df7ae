"""The shape of the code itself: imports point one way, files and functions stay short, methods hold no tensors."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import selfdistill

SOURCE = Path(selfdistill.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
NAMES = [str(path.relative_to(SOURCE)) for path in FILES]
PARTS = (
    *(
        "sources",
        "conversations",
        "contexts",
        "notes",
        "null_contexts",
        "feedback",
        "peers",
        "rubrics",
        "skills",
        "retrieval",
        "writers",
        "critics",
        "judges",
        "steps",
    ),
    *("windows", "transport", "tutoring", "labels", "targets", "divergences", "token_weights", "advantages", "policy_losses", "reductions", "teachers"),
)
LAYERS = (
    ("types", "imports", "templates"),
    ("sampling", "tools", *PARTS),
    ("method",),
    ("samples", "packing", "scoring", "loss", "kernels", "reading", "metrics"),
    ("trainer", "lockstep"),
    ("api", "runner", "runs", "report", "diagnostics", "cli"),
)
"""From the bottom up: a layer imports from itself and from those before it."""


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(path: Path, *, at_run_time: bool = False) -> set[str]:
    """Modules a file imports, without those that are for type checkers only, or (unless asked for) inside functions."""
    checked = {id(n) for node in ast.walk(tree(path)) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) for n in node.body}
    found: set[str] = set()
    for node in _nodes(tree(path), into_functions=at_run_time):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and id(node) not in checked:
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _nodes(node: ast.AST, *, into_functions: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not into_functions:
            continue
        yield child
        yield from _nodes(child, into_functions=into_functions)


def own(modules: set[str]) -> set[str]:
    """The first name under `selfdistill` of each module."""
    return {name.split(".")[1] for name in modules if name.startswith("selfdistill.")}


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_files_are_at_most_300_lines_and_say_what_they_are(path):
    assert len(path.read_text().splitlines()) <= 300
    assert ast.get_docstring(tree(path)), "a file opens with what flows in and out"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_functions_are_at_most_40_lines(path):
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions(path) if f.end_lineno - f.lineno + 1 > 40}
    assert not long


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_everything_is_annotated(path):
    bare = [
        f"{f.name}({a.arg})"
        for f in functions(path)
        for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs)
        if a.annotation is None and a.arg not in ("self", "cls")
    ]
    bare += [f"{f.name} ->" for f in functions(path) if f.returns is None]
    assert not bare


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_nothing_is_left_undone(path):
    text = path.read_text()
    assert not [word for word in ("TODO", "FIXME", "XXX", "HACK") if word in text]
    hollow = [f.name for f in functions(path) if [type(n) for n in f.body] == [ast.Raise] and "NotImplementedError" in ast.dump(f.body[0])]
    assert not hollow


@pytest.mark.parametrize("layer", range(len(LAYERS)), ids=[layer[0] for layer in LAYERS])
def test_imports_point_one_way(layer):
    above = {name for names in LAYERS[layer + 1 :] for name in names} | ({"methods"} if layer < 4 else set())
    for name in LAYERS[layer]:
        for path in [SOURCE / f"{name}.py"] if (SOURCE / f"{name}.py").exists() else sorted((SOURCE / name).rglob("*.py")):
            assert not own(imported(path)) & above, f"{path.name} imports from above itself"


KERNELS = [f"kernels/{path.stem}" for path in sorted((SOURCE / "kernels").glob("*.py"))]


@pytest.mark.parametrize("name", [*PARTS, *KERNELS, "samples", "packing", "scoring", "loss", "reading", "trainer", "types", "method"])
def test_nothing_below_imports_methods(name):
    """Not even inside a function: methods are values that the rest is handed."""
    assert "methods" not in own(imported(SOURCE / f"{name}.py", at_run_time=True))


METHOD_FILES = [p for p in FILES if p.parent.name == "methods" and p.name != "__init__.py"]


@pytest.mark.parametrize("path", METHOD_FILES, ids=lambda p: p.stem)
def test_a_method_is_a_page_of_parts_without_tensors(path):
    assert not {name.split(".")[0] for name in imported(path, at_run_time=True)} & {"torch", "numpy", "transformers", "jaxtyping"}
    assert not own(imported(path)) & {"samples", "packing", "scoring", "loss", "reading", "trainer", "models", "api"}
    assert len(path.read_text().splitlines()) <= 40


def test_vocabulary_stays_in_scoring():
    """Only scoring and its kernels, pointwise parts (of methods and of the diagnostic pmi), the head and who chooses tokens name a vocabulary axis."""
    holders = {path.stem for path, name in zip(FILES, NAMES, strict=True) if '"tokens vocab"' in path.read_text() or '"rows vocab"' in path.read_text()}
    assert holders <= {"scoring", "triton_scoring", "triton_sweeps", "divergences", "targets", "heads", "pmi", "loop", "choosing"}
    for name in ("token_weights", "advantages", "policy_losses", "loss", "packing", "samples", "trainer", "metrics"):
        assert "vocab" not in {n.id for n in ast.walk(tree(SOURCE / f"{name}.py")) if isinstance(n, ast.Name)}


def test_parts_are_frozen():
    for path in (SOURCE / f"{name}.py" for name in PARTS):
        for node in ast.walk(tree(path)):
            for decorator in getattr(node, "decorator_list", []):
                text = ast.unparse(decorator)
                assert not text.startswith("dataclass") or "frozen=True" in text, f"{path.name}: {node.name} can be changed after it is made"
