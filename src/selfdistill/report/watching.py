"""Follows live runs: rewrites the page whenever one of them has something new, until all have ended."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from selfdistill.config import read_settings
from selfdistill.report.data import finished, page_model
from selfdistill.report.page import write_page
from selfdistill.report.selection import Selection
from selfdistill.runs import SavedRun

SECONDS = 5.0
"""Between two looks at the folders."""
COLOURLESS = "The page follows the run: tokens get their colours when it has ended, so that reading them takes nothing from training."


def follow(folders: Sequence[Path], selection: Selection, path: Path, *, say: Callable[[str], None], colourless: str | None, seconds: float = SECONDS) -> int:
    """Returns the last page's bytes. A run without a finished step is waited for. Raises ValueError where a folder is no run."""
    seen: tuple[object, ...] | None = None
    while True:
        runs = [SavedRun(folder=folder, settings=read_settings(folder / "settings.json")) for folder in folders]
        if all(map(finished, runs)):
            return write_page(page_model(folders, selection, colourless=colourless), path)
        now = tuple((len(run.metrics), (*(run.folder / "evaluations").glob("step_*.json"),)) for run in runs)
        if now != seen and all(run.metrics for run in runs):
            write_page(page_model(folders, selection, colourless=colourless or COLOURLESS, following=True), path)
            say(", ".join(f"{run.folder.name} at step {int(run.metrics[-1]['step'])} of {run.settings.steps}" for run in runs))
        elif now != seen:
            say("waiting for a first step of every run")
        seen = now
        time.sleep(seconds)
