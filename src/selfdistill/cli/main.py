"""Arguments to one command; a user's mistake is one sentence on stderr and exit code 2."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args

import tyro

from selfdistill import __version__
from selfdistill.cli import blame as b
from selfdistill.cli import claims as k
from selfdistill.cli import commands as c
from selfdistill.cli import diagnostics as d
from selfdistill.cli import probing as p
from selfdistill.cli import report as r
from selfdistill.cli.overrides import parse_overrides
from selfdistill.cli.parsing import one_sentence, refuse_twice
from selfdistill.errors import interrupted, sentence
from selfdistill.imports import nearest

Command = (
    Annotated[c.Train, tyro.conf.subcommand("train")]
    | Annotated[c.Eval, tyro.conf.subcommand("eval")]
    | Annotated[c.Compare, tyro.conf.subcommand("compare")]
    | Annotated[k.Claims, tyro.conf.subcommand("claims")]
    | Annotated[c.Methods, tyro.conf.subcommand("methods")]
    | Annotated[c.Recipes, tyro.conf.subcommand("recipes")]
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
BY_NAME = {command.__name__.lower(): command for command, *_ in map(get_args, get_args(Command))}
DESCRIPTION = (
    "On-policy self-distillation of language-model reasoning. Start with: selfdistill train quickstart. "
    "SELFDISTILL_TRACEBACK=1 in the environment shows where an error came from."
)


def main(arguments: list[str] | None = None) -> None:
    """Runs one command and leaves with its exit code: 0, 2 for bad input, 130 when interrupted, 141 when nobody reads on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(f"selfdistill {__version__}")
        return
    command: Any = None
    overrides: dict[str, Any] = {}
    try:
        command, rest = _parse(arguments)
        if rest and not command.takes_settings:
            raise ValueError(f"unexpected argument {rest[0]}; see selfdistill {type(command).__name__.lower()} --help")
        overrides = parse_overrides(rest)
        command.run(overrides)
        sys.stdout.flush()
    except (KeyboardInterrupt, Exception) as error:
        if interrupted(error):
            print(f"\ninterrupted{_where(command, overrides)}", file=sys.stderr)
            sys.exit(130)
        if isinstance(error, BrokenPipeError):
            # `selfdistill methods | head -3`: nobody reads on; the interpreter's own flush at its end must not fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        # with SELFDISTILL_TRACEBACK set, the place the sentence came from
        if os.environ.get("SELFDISTILL_TRACEBACK") or (said := sentence(error)) is None:
            raise
        print(f"selfdistill: {said}", file=sys.stderr)
        sys.exit(2)


def _where(command: Any, overrides: Mapping[str, Any]) -> str:
    """What an interrupted command leaves behind; nothing where its settings were never read, or at a second Ctrl-C."""
    try:
        return command.where(overrides) if command else ""
    except (ValueError, KeyboardInterrupt):
        return ""


def _parse(arguments: Sequence[str]) -> tuple[Any, list[str]]:
    """The command and the `--key value` pairs it does not know itself; help of a command that takes settings lists them."""
    arguments = arguments or ["--help"]
    # the named command alone: building the arguments of all of them takes longer than some of them run
    named = BY_NAME.get(arguments[0])
    if named is None and not arguments[0].startswith(("-h", "--help", "--tyro-")):
        raise ValueError(f"there is no command {arguments[0]!r}{nearest(arguments[0], BY_NAME)}; selfdistill --help lists them")
    prog, rest = ("selfdistill", arguments) if named is None else (f"selfdistill {arguments[0]}", arguments[1:])
    refuse_twice(rest, prog=prog)
    # none is what stands where an option is left out; none of them takes it as a value
    config = (tyro.conf.DisallowNone,)
    try:
        with one_sentence(prog):
            return tyro.cli(named or Command, prog=prog, description=None if named else DESCRIPTION, args=rest, return_unknown_args=True, config=config)
    except SystemExit:
        if {"-h", "--help"} & set(arguments) and named and named.takes_settings:
            from rich.console import Console

            from selfdistill.cli.reference import print_settings

            print_settings(Console(highlight=False))
        raise
