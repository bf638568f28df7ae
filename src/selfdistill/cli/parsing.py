"""What tyro says of wrong arguments, as the one sentence that every other mistake of a user becomes."""

import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr

COLOR = re.compile("\x1b\\[[0-9;]*m")
RULE = re.compile(r"\s*(─+|-{3,})\s*$")
"""The second is what tyro draws where stdout is not UTF-8, and no frame."""
READ = re.compile(r"Error parsing (?P<key>\S+): .*?(?P<value>'[^']*'(, '[^']*')*)")
CHOICE = re.compile(r"invalid choice (?P<value>'.*') for argument '(?P<key>.*)'\. Expected one of \((?P<choices>.*)\)")
MISSING = re.compile(r"Missing from (?P<prog>.*):$")
NO_VALUE = re.compile(r"Missing value for argument '(?P<key>.*?)'\. Expected (?P<count>\S+) values?\.$")


@contextmanager
def one_sentence(prog: str) -> Iterator[None]:
    """Raises ValueError with the sentence where the body leaves with exit code 2; what else it writes on stderr is passed on."""
    held, code = io.StringIO(), None
    try:
        with redirect_stderr(held):
            yield
    except SystemExit as left:
        code = left.code
        if code == 2:
            raise ValueError(f"{told(held.getvalue())}; see {prog} --help") from None
        raise
    finally:
        if code != 2:
            sys.stderr.write(held.getvalue())


def refuse_twice(arguments: Sequence[str], *, prog: str) -> None:
    """Raises ValueError where a key is given twice, also as --no-key or with its words joined the other way: only the last one would count."""
    keys = [argument.partition("=")[0] for argument in arguments if argument.startswith("--") and len(argument) > 2]
    names = [key[2:].replace("-", "_").removeprefix("no_") for key in keys]
    for i, (key, name) in enumerate(zip(keys, names, strict=True)):
        if name in names[:i]:
            both = dict.fromkeys((keys[names.index(name)], key))
            said = f"{' and '.join(both)} {'are one key' if len(both) > 1 else 'is given twice'}"
            raise ValueError(f"{said}, of which only the last would count; give it once, as {prog} --help shows")


def told(box: str) -> str:
    """A box of tyro's in one line: what is missing, or the key, what it takes and what it got; any other text as it is, up to its first rule."""
    lines = COLOR.sub("", box).splitlines()
    title = 1 if lines and lines[0].startswith("╭") else 2 if len(lines) > 1 and RULE.match(lines[1]) else 0
    if title:
        lines = [line[2:].rstrip("│ ") for line in lines[title:] if not line.startswith("╰")]
    end = next((i for i, line in enumerate(lines) if RULE.match(line)), len(lines))
    said, help_text = " ".join(map(str.strip, lines[:end])), [line.strip() for line in lines[end + 1 :]]
    if lines and MISSING.match(lines[0].strip()):
        # a name stands in its column, what it means further in
        names = [line.strip() for line in lines[:end] if re.match(r" {4}\S", line)]
        return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing"
    if found := NO_VALUE.match(said):
        return f"{found['key']} is given without a value"
    if found := READ.match(said):
        form = next((line.removeprefix(found["key"]).strip() for line in help_text if line.startswith(found["key"])), "")
        return f"{found['key']} takes {form}, not {found['value']}"
    if found := CHOICE.match(said):
        return f"{found['key']} takes one of {found['choices']}, not {found['value']}"
    return said.rstrip(".")
