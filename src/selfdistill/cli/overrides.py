"""`--section.key value` pairs to dotted overrides; values read as TOML where they can be, else as text."""

import tomllib
from collections.abc import Sequence
from typing import Any

from selfdistill.brackets import unclosed


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """--steps 5 --method.teacher "EMA(0.05)" --model.gradient_checkpointing -> values. A key without a value is true; none is no value.

    Raises ValueError on anything that is not a key or a key's value, and on a list or table without its end.
    """
    found: dict[str, Any] = {}
    queue = list(arguments)
    while queue:
        key = queue.pop(0)
        if not key.startswith("--") or len(key) == 2:
            raise ValueError(f"unexpected argument {key!r}; settings are given as --key value, for example --steps 50")
        name, has_value, value = key[2:].partition("=")
        if not has_value:
            value = queue.pop(0) if queue and not queue[0].startswith("--") else "true"
        found[name.replace("-", "_")] = _value(value, name=name)
    return found


def _value(text: str, *, name: str) -> Any:
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if text.startswith(("[", "{")) and (bracket := unclosed(text)):
            raise ValueError(f"--{name} {text!r} never closes its {bracket!r}") from None
        return text
