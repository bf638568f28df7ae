"""Brackets in text that a user wrote: which one was forgotten."""

import re

PAIRS = {"(": ")", "[": "]", "{": "}"}
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


def unclosed(text: str) -> str | None:
    """The last bracket that a text opens and does not close; those inside quotes do not count."""
    opened: list[str] = []
    for character in QUOTED.sub("", text):
        if character in PAIRS:
            opened.append(character)
        elif opened and character == PAIRS[opened[-1]]:
            opened.pop()
    return opened[-1] if opened else None
