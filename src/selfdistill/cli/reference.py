"""The settings as `selfdistill train --help` shows them: every key with its default and what it does."""

import json
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from selfdistill.config import Settings
from selfdistill.setting_names import keys


def print_settings(console: Console) -> None:
    """A key and its default, and under it what it means, in the order of a run's settings.json."""
    console.print("settings, as --key value after the recipe or as keys of its TOML, with their defaults:\n")
    for name, info in keys(Settings).items():
        console.print(f"  [bold]--{name}[/] {escape(_written(info.default))}")
        console.print(Padding(escape(info.description or ""), (0, 0, 0, 6)), style="dim")
    console.print("\n  [bold]--method.[/]<argument> goes to the method's function, [bold]--task.[/]<knob> to the task")
    console.print("      Parts are written as calls: --method.teacher 'EMA(0.05)'", style="dim")


def _written(value: Any) -> str:
    """A default as it would be written on the command line."""
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)
