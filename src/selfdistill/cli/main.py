"""Arguments to one command; a user's mistake is one sentence on stderr and exit code 2."""

import os
import sys
from typing import Annotated

import tyro

from selfdistill.cli import commands as c
from selfdistill.cli.overrides import parse_overrides

Command = (
    Annotated[c.Train, tyro.conf.subcommand("train")]
    | Annotated[c.Eval, tyro.conf.subcommand("eval")]
    | Annotated[c.Methods, tyro.conf.subcommand("methods")]
    | Annotated[c.Describe, tyro.conf.subcommand("describe")]
    | Annotated[c.Preview, tyro.conf.subcommand("preview")]
    | Annotated[c.Sample, tyro.conf.subcommand("sample")]
    | Annotated[c.Export, tyro.conf.subcommand("export")]
    | Annotated[c.Pretrain, tyro.conf.subcommand("pretrain")]
)
DESCRIPTION = "On-policy self-distillation of language-model reasoning. Start with: selfdistill train quickstart"


def main(arguments: list[str] | None = None) -> None:
    """Runs one command and leaves with its exit code: 0, 2 for bad input, 130 when interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    command, rest = tyro.cli(Command, prog="selfdistill", description=DESCRIPTION, args=arguments, return_unknown_args=True)
    try:
        overrides = parse_overrides(rest)
        if overrides and not command.takes_settings:
            raise ValueError(f"unexpected argument --{next(iter(overrides))}; see selfdistill {type(command).__name__.lower()} --help")
        command.run(overrides)
    except KeyboardInterrupt:
        print(f"\ninterrupted{command.where(overrides)}", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        # with SELFDISTILL_TRACEBACK set, the place the sentence came from
        if os.environ.get("SELFDISTILL_TRACEBACK"):
            raise
        print(f"selfdistill: {_sentence(error)}", file=sys.stderr)
        sys.exit(2)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        path = f" {error.filename}" if error.filename else ""
        hint = "; free some space or choose another --output_dir" if error.errno == 28 else ""
        return f"{error.strerror}:{path}{hint}" if path else error.strerror + hint
    return " ".join(str(error).split())
