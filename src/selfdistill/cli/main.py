"""Arguments to one command; a user's mistake is one sentence on stderr and exit code 2."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, get_args

import tyro
from rich.console import Console

from selfdistill.cli import blame as b
from selfdistill.cli import claims as k
from selfdistill.cli import commands as c
from selfdistill.cli import diagnostics as d
from selfdistill.cli import probing as p
from selfdistill.cli import report as r
from selfdistill.cli.overrides import parse_overrides
from selfdistill.errors import sentence

Command = (
    Annotated[c.Train, tyro.conf.subcommand("train")]
    | Annotated[c.Eval, tyro.conf.subcommand("eval")]
    | Annotated[c.Compare, tyro.conf.subcommand("compare")]
    | Annotated[k.Claims, tyro.conf.subcommand("claims")]
    | Annotated[c.Methods, tyro.conf.subcommand("methods")]
    | Annotated[c.Describe, tyro.conf.subcommand("describe")]
    | Annotated[c.Preview, tyro.conf.subcommand("preview")]
    | Annotated[c.Sample, tyro.conf.subcommand("sample")]
    | Annotated[c.Export, tyro.conf.subcommand("export")]
    | Annotated[c.Pretrain, tyro.conf.subcommand("pretrain")]
    | Annotated[r.Report, tyro.conf.subcommand("report")]
    | Annotated[d.Credit, tyro.conf.subcommand("credit")]
    | Annotated[b.Blame, tyro.conf.subcommand("blame")]
    | Annotated[d.Gap, tyro.conf.subcommand("gap")]
    | Annotated[d.Markers, tyro.conf.subcommand("markers")]
    | Annotated[d.Leakage, tyro.conf.subcommand("leakage")]
    | Annotated[d.Pmi, tyro.conf.subcommand("pmi")]
    | Annotated[p.Transport, tyro.conf.subcommand("transport")]
    | Annotated[p.Viability, tyro.conf.subcommand("viability")]
    | Annotated[p.Judge, tyro.conf.subcommand("judge")]
)
TAKES_SETTINGS = [command.__name__.lower() for command, *_ in map(get_args, get_args(Command)) if command.takes_settings]
DESCRIPTION = (
    "On-policy self-distillation of language-model reasoning. Start with: selfdistill train quickstart. "
    "SELFDISTILL_TRACEBACK=1 in the environment shows where an error came from."
)


def main(arguments: list[str] | None = None) -> None:
    """Runs one command and leaves with its exit code: 0, 2 for bad input, 130 when interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    command, rest = _parse(sys.argv[1:] if arguments is None else arguments)
    overrides: dict[str, Any] = {}
    try:
        overrides = parse_overrides(rest)
        if overrides and not command.takes_settings:
            raise ValueError(f"unexpected argument --{next(iter(overrides))}; see selfdistill {type(command).__name__.lower()} --help")
        command.run(overrides)
    except KeyboardInterrupt:
        print(f"\ninterrupted{command.where(overrides)}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        # with SELFDISTILL_TRACEBACK set, the place the sentence came from
        if os.environ.get("SELFDISTILL_TRACEBACK") or (said := sentence(error)) is None:
            raise
        print(f"selfdistill: {said}", file=sys.stderr)
        sys.exit(2)


def _parse(arguments: Sequence[str]) -> tuple[Any, list[str]]:
    """The command and the `--key value` pairs it does not know itself; help of a command that takes settings lists them."""
    try:
        return tyro.cli(Command, prog="selfdistill", description=DESCRIPTION, args=arguments, return_unknown_args=True)
    except SystemExit:
        if {"-h", "--help"} & set(arguments) and arguments[0] in TAKES_SETTINGS:
            from selfdistill.cli.reference import print_settings

            print_settings(Console(highlight=False))
        raise
