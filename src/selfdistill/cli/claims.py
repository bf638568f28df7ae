"""`selfdistill claims`: folders of finished runs in, the claims ledger as a Markdown page out."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from selfdistill.cli.commands import _Command
from selfdistill.recipes import ASSETS

if TYPE_CHECKING:
    from selfdistill.claims import Measured
    from selfdistill.config import Settings

SHIPPED = "tiny"
"""The testbed's base, as model.path names it."""


@dataclass(frozen=True)
class Claims(_Command):
    """Writes the claims ledger: each paper's directional claims beside what these runs and their diagnostics say, with interval, seeds and a verdict."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN ...")]
    """Folders of finished runs, with the diagnostics in them."""
    output: Path = Path("docs/claims.md")
    """The page."""

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.atomic import require_file, write_whole
        from selfdistill.claims import COLUMNS, VERDICTS, judge_claims, read_claims
        from selfdistill.cli.actions import out
        from selfdistill.cli.ledger import NOT_MEASURED, page, shown, summed

        if not self.runs:
            # a ledger of nothing would be written over the one that is there
            raise ValueError("there are no runs to judge the claims by; give folders of finished runs")
        require_file(self.output)
        measured = measure(self.runs)
        found = judge_claims(read_claims(), measured)
        write_whole(self.output, page(found, measured))
        for column in COLUMNS:
            counts = Counter(summed(shown(judged, column), judged.claim) for judged in found)
            out.print(f"{column}: " + ", ".join(f"{counts[v]} {v}" for v in (*VERDICTS, NOT_MEASURED)))
        out.print(f"wrote {self.output}")


def measure(folders: Sequence[Path]) -> "list[Measured]":
    """Runs that differ only in their seed together, under every model, task and way of measuring, with the JSON files in their diagnostics/.

    Raises ValueError on a folder without a finished run.
    """
    from selfdistill.claims import Measured
    from selfdistill.cli.comparing import entries, finished, models
    from selfdistill.pairing import MEASURED, group, with_peers
    from selfdistill.runs import open_run

    beds: dict[str, list[tuple[Path, Any]]] = {}
    for folder in folders:
        own = open_run(folder).settings
        key = repr((own.model.path, own.task.model_dump(), [getattr(own.eval, name) for name in MEASURED]))
        beds.setdefault(key, []).append((folder, own))
    done = {folder: finished(folder) for folder in models(folders)}
    found = []
    for runs in beds.values():
        groups = with_peers(group(runs))
        for one, entry in zip(groups, entries(groups, done, {}), strict=True):
            files = {seed: _diagnostics(folder) for seed, folder in one.folders.items()}
            found.append(Measured(settings=one.settings, entry=entry, diagnostics=files, tiny=any(_is_tiny(one.settings, f) for f in one.folders.values())))
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


def _is_tiny(settings: "Settings", folder: Path) -> bool:
    """Whether a run's model is the testbed's base or a checkpoint of its shape and vocabulary, by the path, the folder there or the run's own checkpoints."""
    if settings.model.path == SHIPPED:
        return True
    known = _shape(ASSETS / "tiny_base")
    return any(_shape(place) == known for place in (Path(settings.model.path), *(folder / "checkpoints").glob("step_*")))


def _shape(folder: Path) -> dict[str, Any] | None:
    """None of a folder without a model."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text())
    return {key: config.get(key) for key in ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
