"""A method from its settings: a name, perhaps around another one, and arguments whose text may be the call of a part."""

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from selfdistill import (
    advantages,
    contexts,
    divergences,
    labels,
    peers,
    policy_losses,
    reductions,
    sources,
    targets,
    teachers,
    token_weights,
    transport,
    windows,
)
from selfdistill.brackets import unclosed
from selfdistill.imports import load_object, nearest
from selfdistill.method import Method
from selfdistill.methods import METHODS, WRAPPERS

PARTS: Mapping[str, type] = {
    name: value
    for module in (advantages, contexts, divergences, labels, peers, policy_losses, reductions, sources, targets, teachers, token_weights, transport, windows)
    for name, value in vars(module).items()
    if isinstance(value, type) and value.__module__ == module.__name__ and hasattr(value, "__dataclass_fields__")
}

CALL = re.compile(r"\w+\(")
"""How the call of a part begins."""


def build_method(name: str, arguments: Mapping[str, Any], *, max_completion_length: int) -> Method:
    """`hsd`, `grpo_plus(hsd)` or `package.module:name`, called with arguments; strings like "EMA(0.05)" become parts.

    Arguments go to the innermost function that knows them. Raises ValueError on an unknown name or argument.
    """
    if bracket := unclosed(name):
        raise ValueError(f"method {name!r} never closes its {bracket!r}; a wrapped one is written like grpo_plus(hsd)")
    outer, inner = _nested(name)
    given = {key: _value(value) for key, value in arguments.items()}
    if inner is not None:
        wrapper = _find(outer, WRAPPERS)
        own = {k: given.pop(k) for k in list(given) if k in list(inspect.signature(wrapper).parameters)[1:]}
        return wrapper(build_method(inner, given, max_completion_length=max_completion_length), **own)
    function = load_object(outer) if ":" in outer else _find(outer, METHODS)
    known = inspect.signature(function).parameters
    if "max_completion_length" in known:
        given.setdefault("max_completion_length", max_completion_length)
    for key in given:
        if key not in known:
            raise ValueError(f"method {outer!r} has no argument {key!r}{nearest(key, known)}; it takes {', '.join(known) or 'none'}")
    method = function(**given)
    if not isinstance(method, Method):
        raise ValueError(f"{outer!r} must return a selfdistill.Method, not {type(method).__name__}")
    return method


def _nested(name: str) -> tuple[str, str | None]:
    """ "grpo_plus(hsd)" -> ("grpo_plus", "hsd"); "hsd" -> ("hsd", None)."""
    if not name.endswith(")"):
        return name, None
    outer, _, rest = name.partition("(")
    return outer.strip(), rest[:-1].strip()


def _find(name: str, among: tuple[Callable[..., Method], ...]) -> Callable[..., Method]:
    known = {f.__name__: f for f in among}
    if name not in known:
        every = [f.__name__ for f in (*METHODS, *WRAPPERS)]
        raise ValueError(f"there is no method {name!r}{nearest(name, every)}; `selfdistill methods` lists them")
    return known[name]


def _value(value: Any) -> Any:
    """A string that reads as the call of a part, as that part."""
    if not isinstance(value, str):
        return value
    if (bracket := unclosed(value)) and CALL.match(value):
        raise ValueError(f"{value!r} never closes its {bracket!r}; a part is written as a whole call, like EMA(0.05)")
    if not value.endswith(")"):
        return value
    try:
        return _part(ast.parse(value, mode="eval").body)
    except SyntaxError as error:
        raise ValueError(f"{value!r} is not the call of a part, like EMA(0.05) or JSD(beta=0.5)") from error


def _part(node: ast.expr) -> Any:
    """A part's call, its arguments being literals, parts or tuples of them: read, never evaluated."""
    if isinstance(node, ast.Tuple):
        return tuple(map(_part, node.elts))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        name = node.func.id
        if name not in PARTS:
            raise ValueError(f"there is no part {name!r}{nearest(name, PARTS)}")
        try:
            return PARTS[name](*map(_part, node.args), **{k.arg: _part(k.value) for k in node.keywords if k.arg})
        except TypeError as error:
            raise ValueError(f"{ast.unparse(node)}: {error}") from error
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f"{ast.unparse(node)!r} is neither a value nor a part") from error
