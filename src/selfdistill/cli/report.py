"""`selfdistill report`: runs as one HTML page."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from selfdistill.cli.commands import _Command


@dataclass(frozen=True)
class Report(_Command):
    """Write one HTML page about one run or several: curves, a comparison, rollouts token by token, settings and parts."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN ...")]
    """Runs' folders."""
    output: Path | None = None
    """The page's file; none: report.html in the run's folder, or in the folder that all of them are in."""
    steps: tuple[int, ...] = ()
    """Whose rollouts are shown; none: the first, the middle and the last that are kept."""
    problems: int = 3
    """Problems a step whose rollouts are shown, those with a success beside a failure first."""
    tokens: bool = True
    """Reads the shown rollouts with the run's weights again, to colour their tokens; --no-tokens loads no model."""
    watch: bool = False
    """Rewrites the page as the runs go on, until they have ended."""

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.atomic import require_file
        from selfdistill.report import Selection, follow, write_page
        from selfdistill.report.data import page_model

        # where no page is named and there is no run, that is what is told
        if self.output or self.page.parent.is_dir():
            require_file(self.page)
        selection = Selection(steps=self.steps, problems=self.problems)
        colourless = None if self.tokens else "Tokens have no colours here: the page was made with --no-tokens."
        if self.watch:
            print(f"following into {self.page}, Ctrl-C stops", flush=True)
            size = follow(self.runs, selection, self.page, say=lambda line: print(line, flush=True), colourless=colourless)
        else:
            size = write_page(page_model(self.runs, selection, colourless=colourless), self.page)
        print(f"wrote {self.page} ({size / 1e6:.1f} MB)")

    def where(self, overrides: Mapping[str, Any]) -> str:
        return f"; {self.page} is as it was last written" if self.page.exists() else ""

    @property
    def page(self) -> Path:
        """Where the page goes. Raises ValueError where no run is given."""
        if not self.runs:
            raise ValueError("give the folder of a run, or several: selfdistill report runs/quickstart")
        if self.output:
            return self.output
        one = len(self.runs) == 1
        return (self.runs[0] if one else Path(os.path.commonpath([run.absolute().parent for run in self.runs]))) / "report.html"
