"""`selfdistill methods` and `recipes`: files in, a name and a line in words each out. Methods are read and not imported: their list comes without torch."""

import ast
import shutil
import textwrap
from importlib.resources import files
from itertools import takewhile

from selfdistill.recipes import shipped

INDENT = 20
"""Columns of a method's name."""
WIDEST = 100
"""Columns of a line, in a wider terminal too."""


def list_methods() -> str:
    """Every method, then every wrapper written as `name(X)`, in lines that the terminal holds; 80 columns where there is none."""
    folder = files("selfdistill") / "methods"
    trees = {path.name.removesuffix(".py"): ast.parse(path.read_text()) for path in folder.iterdir() if path.name.endswith(".py")}
    own, words = trees.pop("__init__"), {}
    for stem, tree in trees.items():
        # the paper in words: a file's line is that of the method it is named after
        words |= {node.name: _first_line(tree if node.name == stem else node) for node in tree.body if isinstance(node, ast.FunctionDef)}
    methods, wrappers = _listed(own, "METHODS"), _listed(own, "WRAPPERS")
    shown = [_wrapped(name, words[name]) for name in methods], [_wrapped(f"{name}(X)", words[name]) for name in wrappers]
    return "\n\n".join(map("\n".join, shown))


def list_recipes() -> str:
    """Every shipped recipe by the name that commands take, with the words that its file opens with, up to the line that ends a sentence."""
    indent = max(map(len, shipped())) + 1
    return "\n".join(_wrapped(name, _opening(path.read_text()), indent=indent) for name, path in shipped().items())


def _opening(recipe: str) -> str:
    comment = [line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), recipe.splitlines())]
    end = next((i for i, line in enumerate(comment, start=1) if line.endswith(".")), len(comment))
    return " ".join(comment[:end])


def _listed(tree: ast.Module, name: str) -> list[str]:
    """The names in a tuple of the module, those of a tuple inside it in its place."""
    value = next(node.value for node in tree.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name)
    assert isinstance(value, ast.Tuple)
    found: list[str] = []
    for item in value.elts:
        inner = item.value if isinstance(item, ast.Starred) else item
        assert isinstance(inner, ast.Name)
        found += _listed(tree, inner.id) if isinstance(item, ast.Starred) else [inner.id]
    return found


def _first_line(node: ast.Module | ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").split("\n")[0]


def _wrapped(name: str, text: str, *, indent: int = INDENT) -> str:
    width = min(shutil.get_terminal_size((80, 24)).columns, WIDEST)
    return textwrap.fill(text, max(width, 2 * indent), initial_indent=f"{name} ".ljust(indent), subsequent_indent=" " * indent)
