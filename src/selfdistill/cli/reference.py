"""The settings as `selfdistill train --help` shows them: every key with its default and what it does."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from selfdistill.config import keys


def print_settings(console: Console) -> None:
    """One row a key, in the order of the settings file."""
    table = Table(box=None, title="settings: as --key value here, as keys of the recipe's TOML", title_justify="left", padding=(0, 2, 0, 0))
    table.add_column("key", no_wrap=True)
    table.add_column("default")
    table.add_column("")
    for name, info in keys().items():
        default = "none" if info.default is None else info.default
        table.add_row(name, escape(str(default)), escape(info.description or ""))
    console.print(table)
    console.print("method.<argument> and task.<knob> reach the method's function and the task: see selfdistill describe METHOD")
