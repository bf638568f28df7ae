"""The command line. Importing it loads neither torch nor transformers, so that help comes at once."""

from selfdistill.cli.main import main

__all__ = ["main"]
