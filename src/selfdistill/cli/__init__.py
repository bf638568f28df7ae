"""The command line. Importing it loads neither torch nor transformers, so that help comes at once."""

import sys

from selfdistill.errors import interrupted

try:
    from selfdistill.cli.main import main
except BaseException as error:
    if not interrupted(error):
        raise
    # before there is a command that could say what it leaves behind
    sys.exit(130)

__all__ = ["main"]
