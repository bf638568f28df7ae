"""What a person sees while a run goes: settings, bars with rates and time left, a few completions, the result. Quiet lines without a terminal."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rich.console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from selfdistill.config import Settings
from selfdistill.method import UNUSED
from selfdistill.trainer import StepResult

EVERY = 5.0
"""Seconds between the lines that stand for a bar where there is no terminal."""


class Console:
    """Prints to the terminal through rich."""

    def __init__(self, *, stderr: bool = False) -> None:
        self.out = rich.console.Console(highlight=False, soft_wrap=True, stderr=stderr)
        self.progress: Progress | None = None
        self.lines: dict[str, float] = {}

    def begin(self, settings: Settings, method: Mapping[str, str], memory: Mapping[str, float]) -> None:
        """The method's parts and what the run will need."""
        peer = f" and peer {settings.peer.path}" if settings.peer else ""
        size = f"{settings.steps} steps of {settings.prompts_per_step} x {settings.sampling.num_generations} rollouts"
        self.out.print(f"[bold]{settings.method.name}[/] on {settings.task.name}, model {settings.model.path}{peer}, {size}")
        for name in ("context", "teacher", "target", "divergence", "token_weight", "reduction"):
            if method[name] != UNUSED:
                self.out.print(f"  {name:13s} {escape(method[name])}", style="dim")
        total = sum(memory.values())
        self.out.print(f"  estimated memory {total:.2f} GiB ({', '.join(f'{k} {v:.2f}' for k, v in memory.items())})", style="dim")

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        self._line(text, at_once=True)
        with self.out.status(text):
            yield

    def aligned(self, found: Mapping[str, float]) -> None:
        self.out.print(
            f"aligned: the student is {found['own_divergence']:.1e} nats from itself, sampler and trainer differ by {found['engine_gap']:.1e} nats a token"
        )

    @contextmanager
    def bar(self, what: str, total: int | None, *, unit: str = "samples") -> Iterator[Callable[[int, int], None]]:
        """A bar over samples; yields the function that moves it to (done, total), where the total may become known."""
        nested, known = self.progress is not None, total
        if total is not None:
            self._line(what, f"{total} {unit}", at_once=True)
        with self._bars() as progress:
            task = progress.add_task(what, total=total, note="")

            def advance(done: int, of: int) -> None:
                nonlocal known
                known = of
                progress.update(task, completed=done, total=of)
                self._line(what, f"{done}/{of}")

            yield advance
            if nested:
                progress.remove_task(task)
        if total is None:
            self._line(what, "" if known is None else f"{known} {unit}", at_once=True)

    @contextmanager
    def training(self, steps: int, *, done: int, whose: str = "") -> Iterator[Callable[[StepResult, bool], None]]:
        """The bar of a model's training; yields the function that shows a step and, where asked, one of its completions."""
        with self._bars() as progress:
            task = progress.add_task(f"training{whose}", total=steps, completed=done, note="")

            def show(result: StepResult, with_sample: bool) -> None:
                m = result.metrics
                note = f"reward {m['reward']:.3f}, loss {m['loss']:.4f}, taught {m['taught_share']:.0%}, {m['tokens_per_s']:,.0f} tokens/s"
                progress.update(task, completed=result.step, note=note)
                if with_sample:
                    self.sample(result)
                else:
                    self._line(f"training{whose}", f"step {result.step}/{steps}, {note}", at_once=result.step in (1, steps))

            yield show

    def _line(self, what: str, text: str = "", *, at_once: bool = False) -> None:
        """What a bar would show, as a line where there is no terminal: `at_once`, or where the last one on the same matter is old."""
        now = time.monotonic()
        if not self.out.is_terminal and (at_once or now - self.lines.get(what, 0.0) >= EVERY):
            self.lines[what] = now
            self.out.print(f"{what}: {text}" if text else what, markup=False)

    def sample(self, result: StepResult) -> None:
        """One completion of a step, with its question and reward."""
        group = result.groups[0]
        rollout = group.rollouts[0]
        self.out.print(f"step {result.step}, reward {rollout.reward}, gold {escape(group.problem.answer)}", style="bold")
        self.out.print(f"  {escape(_short(group.problem.question))}\n  {escape(_short(rollout.text))}", style="dim")

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Base, trained and their difference."""
        table = Table(title=f"{summary['method']}: {summary['num_problems']} held-out problems x {summary['num_samples']} samples")
        for column in ("", f"avg@{summary['num_samples']}", "95 %", f"pass@{summary['num_samples']}", "truncated", "tokens"):
            table.add_column(column, justify="right" if column else "left")
        for who in ("base", "trained"):
            f = summary[who]
            cells = (f"{f['avg_at_k']:.1%}", _interval(f["ci95"]), f"{f['pass_at_k']:.1%}", f"{f['truncated']:.1%}", f"{f['mean_length']:.1f}")
            table.add_row(who, *cells)
        table.add_row("difference", f"{100 * summary['difference']:+.1f} points", _interval(summary["difference_ci95"], signed=True), "", "", "")
        self.out.print(table)

    def end(self, run: Path, settings: Settings) -> None:
        """Where everything is, and what to try next."""
        results = [run / name for name in ("summary.json", "metrics.jsonl", "rollouts") if (run / name).exists()]
        self.out.print(f"results    {', '.join(map(str, results))}")
        self.out.print(f"picture    {run}/learning_curve.png")
        self.out.print(f"model      {run}/checkpoints/step_{settings.steps:06d}")
        other = "grpo" if settings.method.name != "grpo" else "hsd"
        self.out.print(f"try next   selfdistill describe {settings.method.name} --vs {other}")
        self.out.print(f"           selfdistill train quickstart --method {other} --output_dir runs/{other}")
        self.out.print(f"           selfdistill export {run} --output exported")

    @contextmanager
    def _bars(self) -> Iterator[Progress]:
        """The bars on the screen; an evaluation inside training adds its own below."""
        if self.progress is not None:
            yield self.progress
            return
        counts, times = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()), (TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*counts, TextColumn("{task.fields[note]}"), *times, console=self.out, disable=not self.out.is_terminal) as self.progress:
            try:
                yield self.progress
            finally:
                self.progress = None


def _interval(pair: list[float], *, signed: bool = False) -> str:
    return f"[{100 * pair[0]:{'+' if signed else ''}.1f}, {100 * pair[1]:{'+' if signed else ''}.1f}]"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:300] + " ..."
