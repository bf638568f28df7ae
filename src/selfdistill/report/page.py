"""The page: a page model in, one HTML file out that needs nothing beside it. Text of runs enters as JSON alone and is never parsed as HTML or script."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from selfdistill.atomic import write_whole

LIBRARIES = ("vendor/d3.min.js", "vendor/plot.min.js")
SCRIPTS = ("basics.js", "curves.js", "comparison.js", "tokens.js", "settings.js", "page.js")
"""In the order in which they are read, as one."""
MARK = re.compile(r"<!--(\w+)-->")


def write_page(model: Mapping[str, Any], path: Path) -> int:
    """Writes the page whole or not at all and returns its bytes."""
    text = render(model)
    write_whole(path, text)
    return len(text.encode())


def render(model: Mapping[str, Any]) -> str:
    """The template with its places filled. The browser is told to run these scripts alone, and to fetch nothing."""
    scripts = [*map(_asset, LIBRARIES), '"use strict";\n(() => {\n' + "\n".join(map(_asset, SCRIPTS)) + "\n})();\n"]
    assert not any("</script" in script.lower() for script in scripts), "a script that names its own end would be cut there"
    names = ", ".join(run["name"] for run in model["runs"])
    filled = {
        "POLICY": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {' '.join(map(_hash, scripts))}",
        "TITLE": html.escape(f"{names} — selfdistill report"),
        "STYLE": _asset("page.css"),
        "DATA": _inert(model),
        "SCRIPTS": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    return MARK.sub(lambda mark: filled[mark[1]], _asset("page.html"))


def _inert(model: Mapping[str, Any]) -> str:
    """JSON in which no character can end or open anything in HTML, whatever a rollout wrote."""
    text = json.dumps(model, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return (files("selfdistill") / "assets" / "report" / name).read_text(encoding="utf-8")
