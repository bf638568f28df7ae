"""The claims ledger as a page: judged claims and the runs behind them in, Markdown out."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from selfdistill.claims import COLUMNS, VERDICTS, Claim, Column, Figure, Judged, Measured, Verdict, untold
from selfdistill.compare import TOKENS_APART

NOT_MEASURED = "not measured"


def page(found: Sequence[Judged], measured: Sequence[Measured]) -> str:
    """The whole ledger: what was found, paper by paper, a line a claim, and what was run."""
    lines = ["# Claims", "", _head(measured), "", *_summary(found)]
    for paper in dict.fromkeys(judged.claim.paper for judged in found):
        lines += ["", f"## {paper}", "", "| claim | testbed | real model |", "|---|---|---|"]
        for judged in (j for j in found if j.claim.paper == paper):
            lines.append(f"| {_cell(judged.claim.statement)} | " + " | ".join(_figures(judged.claim, shown(judged, column)) for column in COLUMNS) + " |")
    return "\n".join([*lines, "", *_runs(measured)]) + "\n"


def shown(judged: Judged, column: Column) -> list[tuple[Figure, Verdict]]:
    """The figures of one column with their verdicts."""
    return [(figure, verdict) for figure, verdict in judged.figures if figure.column == column]


def summed(side: Sequence[tuple[Figure, Verdict]], claim: Claim) -> str:
    """One verdict for a column: that on which all figures agree that could tell, whichever it is."""
    verdicts = {verdict for figure, verdict in side if not untold(claim, figure)}
    return NOT_MEASURED if not side else verdicts.pop() if len(verdicts) == 1 else "cannot tell"


def _head(measured: Sequence[Measured]) -> str:
    runs = sum(len(one.entry.seeds) for one in measured)
    return (
        f"Written by `selfdistill claims RUN ...` from the {runs} runs listed at the end and the diagnostics in their folders; not edited by hand. "
        "A claim that fails stays on the page. Verdicts are about these models and tasks at these settings, not about the papers' own.\n\n"
        "- **Figures.** A claim is restated as one figure with a bound: a difference of avg@k after the last step, in points, paired by seed and problem "
        "(above 0 where no bound is said), or a figure of a [diagnostic](diagnostics.md). Bounds for which the paper has no number are ours.\n"
        "- **Brackets** are 95 % intervals: of differences, bootstraps that draw seeds and problems (one seed: problems alone); of a diagnostic's figure, "
        "the widest span of its seeds' bootstraps over problems, or Student's t over seeds where it has none of its own.\n"
        "- **Verdicts.** A claim *holds* where the interval lies wholly on the claimed side of the bound, *does not hold* where it lies wholly on the "
        "other, and *cannot* be *told* otherwise. Nor can it, wherever the interval lies, from fewer seeds than it asks for (three; one for figures with an "
        "interval over problems of their own), between runs whose settings differ beyond what the claim is about, or at rollout tokens that differ by more "
        "than 5 % where it is about equal ones; the reason stands behind the figure.\n"
        "- **Columns.** The testbed is the tiny base, trained from scratch, on arithmetic; a real model is a pretrained language model on any task. "
        "Where a column has several figures, those that could tell must agree."
    )


def _summary(found: Sequence[Judged]) -> list[str]:
    """Verdicts counted by paper."""
    names = " | ".join(f"{column}: {verdict}" for column in COLUMNS for verdict in (*VERDICTS, NOT_MEASURED))
    lines = [f"| paper | claims | {names} |", "|---" + "|---:" * (1 + len(COLUMNS) * (len(VERDICTS) + 1)) + "|"]
    papers = list(dict.fromkeys(judged.claim.paper for judged in found))
    for title, of in [*((paper, [j for j in found if j.claim.paper == paper]) for paper in papers), ("**all**", found)]:
        counts = [Counter(summed(shown(judged, column), judged.claim) for judged in of) for column in COLUMNS]
        cells = (str(count[verdict] or "") for count in counts for verdict in (*VERDICTS, NOT_MEASURED))
        lines.append(f"| {title} | {len(of)} | {' | '.join(cells)} |")
    return lines


def _figures(claim: Claim, side: Sequence[tuple[Figure, Verdict]]) -> str:
    return "<br>".join(_figure(claim, figure, verdict, named=len(side) > 1) for figure, verdict in side) or NOT_MEASURED


def _figure(claim: Claim, figure: Figure, verdict: Verdict, *, named: bool) -> str:
    """**holds** +16.4 [+13.8, +19.1], 3 seeds."""
    scale, form = (100, "+.1f") if figure.points else (1, ".3f")
    interval = "" if figure.ci95 is None else f" [{', '.join(format(scale * end, form) for end in figure.ci95)}]"
    said = f"**{verdict}**" if verdict != "cannot tell" else verdict
    seeds = f"{figure.seeds} seed{'s' if figure.seeds > 1 else ''}"
    why = untold(claim, figure)
    reason = why if why.startswith(seeds.partition(" ")[0] + " of ") else f"{seeds}; {why}" if why else seeds
    tokens = f"; rollout tokens {figure.tokens_apart:+.0%}" if abs(figure.tokens_apart) > TOKENS_APART and "tokens" not in why else ""
    return f"{f'{_cell(figure.of)}, {figure.bed[0]}: ' if named else ''}{said} {scale * figure.mean:{form}}{interval}, {_cell(reason)}{tokens}"


def _runs(measured: Sequence[Measured]) -> list[str]:
    """Every group of runs with its accuracies, by model and task."""
    lines = ["## What was run", "", "avg@k before and after training, mean over seeds; the method with the arguments that were set."]
    for bed in dict.fromkeys((one.column, one.bed) for one in sorted(measured, key=lambda m: (*COLUMNS, "").index(m.column))):
        lines += ["", f"### {', '.join(bed[1])}", ""]
        if not bed[0]:
            lines += ["In neither column: a base that was trained from scratch on arithmetic, on another task.", ""]
        lines += ["| runs | method | seeds | problems | base | trained |", "|---|---|---|---|---|---|"]
        own = sorted((one for one in measured if (one.column, one.bed) == bed and one.entry.seeds), key=lambda m: m.label)
        lines += [_run(one) for one in own]
    return lines


def _run(one: Measured) -> str:
    runs = list(one.entry.seeds.values())
    base, trained = (fmean(getattr(run, which).avg_at_k for run in runs) for which in ("base", "trained"))
    seeds, first = ", ".join(map(str, one.entry.seeds)), runs[0].base
    problems = f"{len(first.scores)} x {len(first.scores[0])}"
    return f"| {one.label} | `{_cell(one.method)}` | {seeds} | {problems} | {base:.1%} | {trained:.1%} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
