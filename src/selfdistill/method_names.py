"""A method from its settings: a name, perhaps around another one, and arguments whose text may be the call of a part."""

import ast
import inspect
import re
from collections import abc
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from selfdistill import (
    advantages,
    contexts,
    conversations,
    critics,
    divergences,
    judges,
    labels,
    notes,
    null_contexts,
    peers,
    policy_losses,
    reductions,
    retrieval,
    rubrics,
    skills,
    sources,
    steps,
    targets,
    teachers,
    token_weights,
    transport,
    tutoring,
    windows,
    writers,
)
from selfdistill.brackets import unclosed
from selfdistill.conversations import Conversation
from selfdistill.imports import load_object, nearest
from selfdistill.judges import Judge
from selfdistill.method import Method, text_of
from selfdistill.methods import METHODS, WRAPPERS

KINDS = (
    *(advantages, contexts, conversations, critics, divergences, judges, labels, notes, null_contexts, peers, policy_losses),
    *(reductions, retrieval, rubrics, skills, sources, steps, targets, teachers, token_weights, transport, tutoring, windows, writers),
)
"""The modules whose parts a setting may name."""
DATA = (judges.Attempt, sources.Request)
"""What flows between parts there, and is none."""
PARTS: Mapping[str, type] = {
    name: value
    for module in KINDS
    for name, value in vars(module).items()
    if isinstance(value, type) and value.__module__ == module.__name__ and hasattr(value, "__dataclass_fields__") and value not in DATA
}

CALL = re.compile(r"\w+\(")
"""How the call of a part begins."""
OPEN_ENDED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
NOUNS = {float: "a number", int: "a whole number", bool: "true or false", str: "text", tuple: "a tuple in brackets"}
"""Types that are no parts, by what a user calls them."""


def build_method(name: str, arguments: Mapping[str, Any], *, max_completion_length: int) -> Method:
    """`hsd`, `grpo_plus(hsd)` or `package.module:name`, called with arguments; strings like "EMA(0.05)" become parts.

    Arguments go to the outermost function that knows them. Raises ValueError on an unknown name or argument, or a value of another type.
    """
    function, (outer, inner) = functions_of(name)[0], _nested(name)
    if inner is not None:
        own = {k: v for k, v in arguments.items() if k in list(inspect.signature(function).parameters)[1:]}
        method = build_method(inner, {k: v for k, v in arguments.items() if k not in own}, max_completion_length=max_completion_length)
        return function(method, **_values(function, own))
    known = inspect.signature(function).parameters
    for key in arguments:
        if key not in known:
            raise ValueError(f"method {outer!r} has no argument {key!r}{nearest(key, known)}; it takes {', '.join(known) or 'none'}")
    given = _values(function, arguments)
    if "max_completion_length" in known:
        given.setdefault("max_completion_length", max_completion_length)
    for key, parameter in known.items():
        if key not in given and parameter.default is parameter.empty and parameter.kind not in OPEN_ENDED:
            raise ValueError(f"method {outer!r} needs its argument {key!r}; set method.{key}")
    method = function(**given)
    if not isinstance(method, Method):
        raise ValueError(f"{outer!r} must return a selfdistill.Method, not {type(method).__name__}")
    return method


def functions_of(name: str) -> list[Callable[..., Method]]:
    """The functions behind a method's name, from the outermost to the one that stands alone. Raises ValueError on an unknown one."""
    if bracket := unclosed(name):
        raise ValueError(f"method {name!r} never closes its {bracket!r}; a wrapped one is written like grpo_plus(hsd)")
    outer, inner = _nested(name)
    if inner is not None:
        return [_find(outer, WRAPPERS), *functions_of(inner)]
    function: Callable[..., Method] = load_object(outer) if ":" in outer else _find(outer, METHODS)
    if not callable(function):
        raise ValueError(f"{outer!r} must be a function that returns a selfdistill.Method, not a {type(function).__name__}")
    return [function]


def arguments_of(name: str) -> dict[str, str]:
    """What a method's settings may set, with defaults as they would be written, wrappers' first. Raises ValueError on an unknown name."""
    *wrappers, alone = functions_of(name)
    known = [p for wrapper in wrappers for p in list(inspect.signature(wrapper).parameters.values())[1:]]
    known += [p for p in inspect.signature(alone).parameters.values() if p.name not in {k.name for k in known} and p.kind not in OPEN_ENDED]
    return {p.name: _default(p) for p in known}


def _default(parameter: inspect.Parameter) -> str:
    if parameter.name == "max_completion_length":
        return "sampling.max_completion_length"
    if parameter.default is parameter.empty:
        return "needed"
    return str(parameter.default).lower() if parameter.default is None or isinstance(parameter.default, bool) else text_of(parameter.default)


def build_conversation(text: str) -> Conversation:
    """`RawSharded()` and the like, for evaluations. Raises ValueError on anything else."""
    known = {name: part for name, part in PARTS.items() if part.__module__ == conversations.__name__}
    found = _value(text)
    if type(found) not in known.values():
        raise ValueError(f"eval.conversation = {text!r} is not the call of a conversation; there are {', '.join(f'{name}()' for name in known)}")
    return found


def build_judge(text: str) -> Judge:
    """`ModelJudge(Student())` and the like. Raises ValueError on anything else."""
    known = {name: part for name, part in PARTS.items() if part.__module__ == judges.__name__ and issubclass(part, Callable)}
    found = _value(text)
    if type(found) not in known.values():
        raise ValueError(f"judge {text!r} is not the call of a judge; there are {', '.join(f'{name}()' for name in known)}")
    return found


def _nested(name: str) -> tuple[str, str | None]:
    """ "grpo_plus(hsd)" -> ("grpo_plus", "hsd"); "hsd" and "hsd()" -> ("hsd", None)."""
    if not name.endswith(")"):
        return name, None
    outer, _, rest = name.partition("(")
    return outer.strip(), rest[:-1].strip() or None


def _find(name: str, among: tuple[Callable[..., Method], ...]) -> Callable[..., Method]:
    known = {f.__name__: f for f in among}
    if name in known:
        return known[name]
    every = [f.__name__ for f in (*METHODS, *WRAPPERS)]
    if name not in every:
        raise ValueError(f"there is no method {name!r}{nearest(name, every)}; `selfdistill methods` lists them")
    if among is METHODS:
        raise ValueError(f"method {name!r} wraps another one and is written around it, like {name}(hsd)")
    raise ValueError(f"method {name!r} wraps no other one; those that do are {', '.join(f.__name__ for f in WRAPPERS)}")


def _values(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with parts in place of their calls. Raises ValueError on a value that is not of the annotated type."""
    found = {}
    for key, value in arguments.items():
        try:
            found[key] = _value(value)
        except ValueError as error:
            raise ValueError(f"method.{key}: {error}") from error
    _check(function, found, where="method.")
    return found


def _check(function: Callable[..., Any], arguments: Mapping[str, Any], *, where: str) -> None:
    """Raises ValueError on an argument that is not of its annotated type."""
    parameters = inspect.signature(function).parameters
    for key, value in arguments.items():
        if not _fits(value, parameters[key].annotation):
            raise ValueError(f"{where}{key} = {value!r} must be {_wanted(value, parameters[key])}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type: numbers, text, parts and tuples of them; of other types everything is."""
    kind = get_origin(hint) or hint
    if kind is Literal:
        return value in get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    if kind is tuple:
        return isinstance(value, list | tuple) and (Ellipsis not in get_args(hint) or all(_fits(v, get_args(hint)[0]) for v in value))
    if kind is abc.Callable:
        return callable(value) and _takes(value, get_args(hint))
    return isinstance(value, kind) if kind in (bool, str, NoneType) or getattr(kind, "_is_runtime_protocol", False) else True


def _takes(part: Callable[..., Any], signature: tuple[Any, ...]) -> bool:
    """Whether a part can be called with as many arguments as the annotation of a callable lists."""
    listed = signature[0] if signature and isinstance(signature[0], list) else None
    try:
        return listed is None or bool(inspect.signature(part).bind(*listed))
    except TypeError:
        return False


def _wanted(value: Any, parameter: inspect.Parameter) -> str:
    """What an argument takes, with an example: the call of the part whose name was given, else the default."""
    hint = parameter.annotation
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    noun = next((NOUNS[kind] for kind in NOUNS if kind in (hint, get_origin(hint)) or kind in get_args(hint)), "a part of its kind, written as its call")
    example = "" if parameter.default is parameter.empty else f", like {parameter.default!r}"
    if isinstance(value, str) and value in PARTS and noun not in NOUNS.values():
        example = f", like {value}({', '.join(inspect.signature(PARTS[value]).parameters)})"
    return noun + example


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
        given, named = list(map(_part, node.args)), {k.arg: _part(k.value) for k in node.keywords if k.arg}
        try:
            arguments = inspect.signature(PARTS[name]).bind(*given, **named).arguments
        except TypeError as error:
            raise ValueError(f"{ast.unparse(node)}: {error}") from error
        _check(PARTS[name], arguments, where=f"{ast.unparse(node)}: ")
        return PARTS[name](**arguments)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f"{ast.unparse(node)!r} is neither a value nor a part") from error
