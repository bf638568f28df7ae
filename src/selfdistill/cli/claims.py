"""`selfdistill claims`: folders of finished runs in, the claims ledger as a Markdown page out."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from selfdistill.cli.commands import _Command

if TYPE_CHECKING:
    from selfdistill.claims import Judged, Measured

TESTBED = "arithmetic"
"""The task whose figures stand in the ledger's first column; every other one is a real model's."""


@dataclass(frozen=True)
class Claims(_Command):
    """Writes the claims ledger: each paper's directional claims beside what these runs and their diagnostics say, with interval, seeds and a verdict."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN ...")]
    """Folders of finished runs, with the diagnostics in them."""
    output: Path = Path("docs/claims.md")
    """The page."""

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.atomic import require_file, write_whole
        from selfdistill.claims import VERDICTS, judge_claims, read_claims
        from selfdistill.cli.actions import out

        if not self.runs:
            # a ledger of nothing would be written over the one that is there
            raise ValueError("there are no runs to judge the claims by; give folders of finished runs")
        require_file(self.output)
        found = judge_claims(read_claims(), measure(self.runs))
        write_whole(self.output, page(found, self.runs))
        for name, real in (("testbed", False), ("real models", True)):
            counts = Counter(_verdict(_of(judged, real=real)) for judged in found)
            out.print(f"{name}: " + ", ".join(f"{counts[v]} {v}" for v in (*VERDICTS, "not measured")))
        out.print(f"wrote {self.output}")


def measure(folders: Sequence[Path]) -> "list[Measured]":
    """Runs that differ only in their seed together, under every model, task and way of measuring, with the JSON files in their diagnostics/.

    Raises ValueError on a folder without a finished run.
    """
    from selfdistill.claims import Measured, unplaced
    from selfdistill.cli.comparing import entries, finished, models
    from selfdistill.pairing import MEASURED, group, with_peers
    from selfdistill.runs import open_run

    beds: dict[str, list[tuple[Path, Any]]] = {}
    for folder in folders:
        own = unplaced(open_run(folder).settings)
        key = repr((own.model.path, own.task.model_dump(), [getattr(own.eval, name) for name in MEASURED]))
        beds.setdefault(key, []).append((folder, own))
    done = {folder: finished(folder) for folder in models(folders)}
    found = []
    for runs in beds.values():
        groups = with_peers(group(runs))
        for one, entry in zip(groups, entries(groups, done, {}), strict=True):
            found.append(Measured(settings=one.settings, entry=entry, diagnostics={seed: _diagnostics(folder) for seed, folder in one.folders.items()}))
    return found


def _diagnostics(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted((folder / "diagnostics").rglob("*.json")):
        try:
            data = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is not whole JSON ({error}); run the diagnostic again, or remove the file") from error
        if not {"diagnostic", "result"} <= data.keys():
            raise ValueError(f"{path} is not what a diagnostic wrote; remove it from diagnostics/")
        found.append(data)
    return found


def page(found: "Sequence[Judged]", folders: Sequence[Path]) -> str:
    """The whole ledger as Markdown."""
    lines = ["# Claims", "", _head(folders), "", _summary(found)]
    for paper in dict.fromkeys(judged.claim.paper for judged in found):
        lines += ["", f"## {paper}", "", "| claim | testbed | verdict | real model | verdict |", "|---|---|---|---|---|"]
        for judged in (j for j in found if j.claim.paper == paper):
            sides = [_of(judged, real=real) for real in (False, True)]
            lines.append(f"| {_cell(judged.claim.statement)} | " + " | ".join(f"{_figures(side)} | {_verdicts(side)}" for side in sides) + " |")
    names = ", ".join(f"`{folder.name}`" for folder in sorted(folders, key=lambda f: f.name))
    return "\n".join([*lines, "", "## Runs", "", names or "none"]) + "\n"


def _head(folders: Sequence[Path]) -> str:
    return (
        f"Written by `selfdistill claims RUN ...` from the {len(folders)} runs named at the end and the diagnostics in their folders; not edited by hand. "
        "A claim that fails stays on the page.\n\n"
        "The claims are the papers', restated as one figure with a bound: a difference of avg@k after the last step, mean over seeds, paired by seed and "
        "problem, in points (0 is the bound where none is said), or a figure of a [diagnostic](diagnostics.md). Bounds for which the paper has no number "
        "are ours. Brackets are 95 % intervals: of differences, bootstraps that draw seeds and problems (one seed: "
        "problems alone); of a diagnostic's figure, the widest span of its seeds' bootstraps over problems, "
        "or Student's t over seeds where the figure has none of its own. A claim *holds* where its interval lies wholly on the claimed side of the bound, "
        "*does not hold* where it lies wholly on the other, and *cannot* be *told* otherwise: also from fewer seeds than three (one for figures whose "
        "interval over problems is their own), or where it is about equal rollout tokens and these differ by more than 5 %. Settings in which two methods "
        "differ beyond the method stand beside the figure. Verdicts are about these models and tasks at these settings, not about the papers' own."
    )


def _summary(found: "Sequence[Judged]") -> str:
    from selfdistill.claims import VERDICTS

    names = (*VERDICTS, "not measured")
    rows: list[tuple[str, ...]] = [("", *names)]
    for name, real in (("testbed", False), ("real model", True)):
        counts = Counter(_verdict(_of(judged, real=real)) for judged in found)
        rows.append((name, *(str(counts[v]) for v in names)))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _of(judged: "Judged", *, real: bool) -> "list[tuple[Any, str]]":
    """The figures of one column with their verdicts."""
    return [(figure, verdict) for figure, verdict in judged.figures if figure.bed[1].partition(",")[0].startswith(TESTBED) is not real]


def _verdict(side: "Sequence[tuple[Any, str]]") -> str:
    """One for all: that of the figures where they agree."""
    verdicts = {verdict for _, verdict in side}
    return "not measured" if not verdicts else verdicts.pop() if len(verdicts) == 1 else "cannot tell"


def _verdicts(side: "Sequence[tuple[Any, str]]") -> str:
    return "<br>".join(verdict for _, verdict in side) or "cannot tell"


def _figures(side: "Sequence[tuple[Any, str]]") -> str:
    return "<br>".join(_figure(figure) for figure, _ in side) or "not measured"


def _figure(figure: Any) -> str:
    """+16.4 [+13.8, +19.1], 3 seeds x 250 problems."""
    scale, form = (100, "+.1f") if figure.points else (1, ".3f")
    interval = "" if figure.ci95 is None else f" [{', '.join(format(scale * end, form) for end in figure.ci95)}]"
    counts = f"{figure.seeds} seed{'s' if figure.seeds > 1 else ''}" + (f" x {figure.problems} problems" if figure.problems else "")
    tokens = f"; rollout tokens {figure.tokens_apart:+.1%}" if abs(figure.tokens_apart) >= 0.001 else ""
    told = f"{_cell(figure.of)}: " if figure.of else ""
    return f"{told}**{scale * figure.mean:{form}}**{interval}, {counts}{tokens} ({', '.join(figure.bed)})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
