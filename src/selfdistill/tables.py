"""A comparison as people read it: rows in, a terminal table, a Markdown page and JSON out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from selfdistill.compare import TOKENS_APART, Difference, Row, tokens_apart
from selfdistill.config import Settings

FORMAT = 1
"""Of compare.json."""
NOTHING = ""
WIDE = 120
"""Characters of a line where nobody's terminal says otherwise."""
OVER = "method minus control"
GAP = 2
"""Characters between columns."""


def terminal(rows: Sequence[Row], *, k: int, reference: str, width: int) -> Table:
    """What decides between methods, one line a row, in as many columns as `width` characters have room for; the rest stands in compare.md."""
    differences = {"gain, points": lambda row: row.gain}
    differences |= {f"minus {reference}": lambda row: row.over_reference} if _has(rows)[0] else {}
    differences |= {OVER: lambda row: row.under_method} if _has(rows)[1] else {}
    shares = {"base": "base_avg_at_k", "trained": "avg_at_k", f"pass@{k}": "pass_at_k"}
    for left_out in ([], [f"pass@{k}"], [f"pass@{k}", "base"], list(shares)):
        found = _terminal(rows, {name: figure for name, figure in shares.items() if name not in left_out}, differences, k=k)
        if sum(_widths(found)) - GAP <= width:
            return found
    found = _terminal(rows, {}, differences, k=k, intervals=False)
    # names give way, figures do not
    found.columns[0].max_width = max(width - sum(_widths(found)[1:]), GAP)
    return found


def _terminal(
    rows: Sequence[Row], shares: Mapping[str, str], differences: Mapping[str, Callable[[Row], Difference | None]], *, k: int, intervals: bool = True
) -> Table:
    """The table with these columns; without `intervals` the gain alone has one."""
    table = Table(title=f"avg@{k}, 95 % intervals over problems and seeds", box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    table.add_column("method", no_wrap=True, overflow="ellipsis")
    for column in ("seeds", *shares, *differences):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        name = escape(("  ↳ " if row.control_of else "") + row.name)
        if not row.seeds:
            table.add_row(name, "0", "failed")
            continue
        told = [points(find(row)) for find in differences.values()]
        told = [cell if intervals or i == 0 else cell.partition(" ")[0] for i, cell in enumerate(told)]
        table.add_row(name, _seeds(row), *(_share(row.figures[figure]) for figure in shares.values()), *map(escape, told))
    return table


def _widths(table: Table) -> list[int]:
    """Characters of each column with what stands between it and the next."""
    return [max(cell_len(Text.from_markup(str(cell)).plain) for cell in (column.header, *column.cells)) + GAP for column in table.columns]


def markdown(rows: Sequence[Row], settings: Settings, *, reference: str) -> str:
    """The whole table with what its columns mean, as compare.md holds it."""
    k = settings.eval.num_samples
    words, entropy = _entropy(rows)
    has_reference, has_controls = _has(rows)
    columns = ["method", "seeds", "base", "trained", "gain, points", "of each seed", *([f"minus `{reference}`"] if has_reference else [])]
    columns += [OVER] if has_controls else []
    columns += [f"pass@{k}", f"maj@{k}", "answers", "entropy", "truncated", "length", "rescued, broken", "rollout tokens", "seconds"]
    lines = [_line(columns), _line(["---"] * len(columns))]
    for row in rows:
        f = row.figures
        name = ("↳ " if row.control_of else "") + f"`{row.name}`"
        if not row.seeds:
            lines.append(_line([name, "0", "", "failed", *[NOTHING] * (len(columns) - 4)]))
            continue
        cells = [
            name,
            _seeds(row),
            _share(f["base_avg_at_k"]),
            _share(f["avg_at_k"]),
            points(row.gain),
            ", ".join(f"{100 * gain:+.1f}" for gain in row.gains.values()),
        ]
        cells += [points(row.over_reference)] if has_reference else []
        cells += [points(row.under_method)] if has_controls else []
        cells += [_share(f["pass_at_k"]), _share(f["maj_at_k"]), f"{f['distinct_answers']:.2f}", _number(f[entropy], ".3f"), _share(f["truncated"])]
        cells += [f"{f['mean_length']:.1f}", f"{f['rescued']:.1f}, {f['broken']:.1f}", f"{f['rollout_tokens']:,.0f}", f"{f['seconds']:,.0f}"]
        lines.append(_line(cells))
    return "\n".join([_caption(settings, words), "", *lines, "", *notes(rows)]) + "\n"


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader must know beside the figures: what each row ran, unequal tokens, seeds that are missing."""
    told = [
        f"- `{row.name}`: `{row.method}`" + (f", control of `{row.control_of}`" if row.control_of else "")
        for row in rows
        if row.method != row.name and not row.peer_of
    ]
    told += [f"- `{row.name}`: the other model of `{row.peer_of}`, from a base of its own" for row in rows if row.peer_of]
    apart = [f"`{name}` {share:+.0%}" for name, share in tokens_apart(rows).items()]
    told += [f"- Rollout tokens are more than {TOKENS_APART:.0%} from the table's median: {', '.join(apart)}."] if apart else []
    told += [f"- `{row.name}`, seed {seed}, failed: {why}" for row in rows for seed, why in row.failed.items()]
    return told


def as_json(rows: Sequence[Row], settings: Settings, *, reference: str) -> dict[str, Any]:
    """What compare.json holds; shares and points are fractions of 1."""
    about = {"format": FORMAT, "reference": reference, "step": "last", "model": settings.model.path, "task": settings.task.model_dump()}
    return about | {"eval": settings.eval.model_dump(), "tokens_apart": tokens_apart(rows), "rows": [asdict(row) for row in rows]}


def points(difference: Difference | None) -> str:
    """+16.4 [+13.8, +19.1]."""
    if difference is None:
        return NOTHING
    low, high = difference.ci95
    return f"{100 * difference.mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _caption(settings: Settings, entropy: str) -> str:
    e = settings.eval
    return (
        f"{settings.model.path} on {settings.task.name}, {e.num_problems} held-out problems by {e.num_samples} samples at temperature {e.temperature:g}. "
        "The last step of every run is reported. Figures are means over seeds; differences are paired by seed and problem, their 95 % intervals "
        "percentile bootstraps that draw seeds and problems (one seed: problems alone). Answers: different ones among a problem's samples. "
        f"Entropy: nats a token, {entropy}. Length: tokens of a sample. Rescued, broken: problems that only the trained model, or only the base, "
        "solves in any sample. Rollout tokens and seconds: of training, a seed."
    )


def _entropy(rows: Sequence[Row]) -> tuple[str, str]:
    """Which entropy all rows have, in words and as a figure: that of the evaluation, else that of the last step's rollouts."""
    measured = all(row.figures.get("entropy") is not None for row in rows if row.seeds)
    return ("of the samples", "entropy") if measured else ("of the student on the last step's rollouts", "training_entropy")


def _has(rows: Sequence[Row]) -> tuple[bool, bool]:
    """Whether there is a reference to be paired with, and a control."""
    return any(row.over_reference for row in rows), any(row.control_of for row in rows)


def _seeds(row: Row) -> str:
    return f"{len(row.seeds)}" + (f" of {len(row.seeds) + len(row.failed)}" if row.failed else "")


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f}%"


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
