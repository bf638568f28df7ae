"""Where a run's time goes: its second step timed by part, its third traced by torch.profiler; one table and a folder of traces out.

The two are apart because a traced step is slower: shares and rates are of a step that nobody recorded. A run of fewer steps has both of its last one.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from selfdistill.atomic import whole_folder
from selfdistill.flops import matmul_peak, step_flops
from selfdistill.models import Policy
from selfdistill.trainer import PHASES, StepResult, Trainer

LEARNING = PHASES[PHASES.index("pack") + 1 : PHASES.index("step")]
"""The phases that read, score and differentiate, whose parts are told apart."""
PARTS = ("teachers", "student forward", "scoring", "student backward")
TRACES = {"sample": "sampling", "grade": "annotating", "annotate": "annotating"}
"""Which trace a phase is in; all others are in `learning`."""
WRITTEN_PASSES = 32
"""Where texts are written, one pass a token, a trace ends with as many: the next thousand look alike and would fill the disk."""
OPERATORS = ("aten::", "mkldnn::")
"""Namespaces of the operators that a model runs."""
TOP_OPERATORS = 8
QUIET = "7"
"""The level of its log at which torch's profiler says nothing."""


class Stopwatch:
    """Seconds of the parts of learning; an accelerator is waited for where one part follows another.

    Backward through the layers begins where their output has its gradient and ends with the phase; scoring is what is left: the head's products,
    targets and divergences, forward and backward.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.part: str | None = None
        self.since = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._switch("scoring" if name in LEARNING else None)
        yield
        self._switch(None)

    def before(self, part: str) -> None:
        if self.part:
            self._switch(part)

    def after(self, part: str, states: Tensor) -> None:
        if self.part:
            self._switch("scoring")
        if self.part and states.requires_grad:
            states.register_hook(lambda gradient: self._switch("student backward"))

    def _switch(self, part: str | None) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.part:
            self.seconds[self.part] += now - self.since
        self.part, self.since = part, now


class Trace:
    """A step in three traces, with its phases as ranges; the passes of teachers and student, where they learn, are ranges inside."""

    def __init__(self) -> None:
        self.profiles: dict[str, profile] = {}
        self.running: str | None = None
        self.passes = 0
        self.learns = False
        self.ranges: list[record_function] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._run(TRACES.get(name, "learning"))
        self.learns = name in LEARNING
        self._open(name)
        yield
        while self.ranges:
            self._close()

    def before(self, part: str) -> None:
        if self.learns:
            self._open(part)
        elif self.running:
            self.passes += 1
            if self.passes > WRITTEN_PASSES:
                self.stop()

    def after(self, part: str, states: Tensor) -> None:
        if self.learns:
            self._close()

    def stop(self) -> None:
        while self.ranges:
            self._close()
        if self.running:
            self.profiles[self.running].stop()
        self.running = None

    def _run(self, which: str) -> None:
        if which == self.running:
            return
        self.stop()
        # it would write lines of its own among the run's
        os.environ.setdefault("KINETO_LOG_LEVEL", QUIET)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self.profiles[which], self.running, self.passes = profile(activities=activities), which, 0
        self.profiles[which].start()

    def _open(self, name: str) -> None:
        self.ranges.append(record_function(name))
        self.ranges[-1].__enter__()

    def _close(self) -> None:
        self.ranges.pop().__exit__(None, None, None)


def profiled(steps: Iterator[tuple[StepResult, ...]], trainer: Trainer, *, folder: Path, console: Console) -> Iterator[tuple[StepResult, ...]]:
    """The same steps; when the last that is watched is done, `folder` is filled and the tables are printed."""
    left = trainer.settings.steps - trainer.steps_done
    stopwatch, trace, timed = Stopwatch(), Trace(), None
    for number in range(1, left + 1):
        watchers: list[Stopwatch | Trace] = [*([stopwatch] if number == min(2, left) else []), *([trace] if number == min(3, left) else [])]
        with _attached(trainer, watchers):
            results = next(steps)
        timed = results[0] if stopwatch in watchers else timed
        if trace in watchers:
            trace.stop()
            assert timed is not None, "no step is traced before one was timed"
            found = _figures(timed, stopwatch, trainer)
            _write(folder, found, trace, step=results[0].step)
            _show(found, trace, folder, console)
        yield results


@contextmanager
def _attached(trainer: Trainer, watchers: Sequence[Stopwatch | Trace]) -> Iterator[None]:
    """Watchers hear of everything while a step is made, and of nothing after it."""
    if not watchers:
        yield
        return

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        with ExitStack() as around:
            for watcher in watchers:
                around.enter_context(watcher.phase(name))
            yield

    def before(module: Any, arguments: Any) -> None:
        for watcher in watchers:
            watcher.before(_part())

    def after(module: Any, arguments: Any, output: Any) -> None:
        for watcher in watchers:
            watcher.after(_part(), output.last_hidden_state)

    copies = [copy for reader in set(trainer.readers.values()) if isinstance(copy := getattr(reader, "teacher", None), Policy)]
    with ExitStack() as until_done:
        for layers in {p.base.base_model for p in (trainer.policy, *copies)}:
            until_done.callback(layers.register_forward_pre_hook(before).remove)
            until_done.callback(layers.register_forward_hook(after).remove)
        usual, trainer.watch = trainer.watch, phase
        until_done.callback(setattr, trainer, "watch", usual)
        yield


def _part() -> str:
    return "student forward" if torch.is_grad_enabled() else "teachers"


def _figures(timed: StepResult, stopwatch: Stopwatch, trainer: Trainer) -> dict[str, Any]:
    """What profile.json holds."""
    policy, settings = trainer.policy, trainer.settings
    seconds = {"sampling": timed.seconds["sample"], **stopwatch.seconds}
    flops = step_flops(timed.groups, timed.samples, policy=policy, readers=trainer.readers, updates=settings.updates_per_step)
    total, peak = sum(timed.seconds.values()), matmul_peak(policy.device, policy.dtype)
    work = {name: {"seconds": seconds[name], "flops": flops[name]} for name in flops} | {"step": {"seconds": total, "flops": sum(flops.values())}}
    return {
        "step": timed.step,
        "phases": timed.seconds,
        "work": {name: w | {"utilisation": w["flops"] / w["seconds"] / peak if w["seconds"] else 0.0} for name, w in work.items()},
        "peak": {"flops_per_s": peak, "dtype": str(policy.dtype).removeprefix("torch."), "device": str(policy.device), "threads": torch.get_num_threads()},
    }


def _write(folder: Path, found: dict[str, Any], trace: Trace, *, step: int) -> None:
    with whole_folder(folder) as partial:
        (partial / "profile.json").write_text(json.dumps(found, indent=2) + "\n")
        for which, recorded in trace.profiles.items():
            recorded.export_chrome_trace(str(partial / f"step_{step:06d}_{which}.json.gz"))


def _show(found: dict[str, Any], trace: Trace, folder: Path, console: Console) -> None:
    total = found["work"]["step"]["seconds"]
    phases = Table("phase", "seconds", "share", title=f"step {found['step']}, {total:.3f} s", title_justify="left")
    for name, seconds in found["phases"].items():
        phases.add_row(name, f"{seconds:.3f}", f"{seconds / total:.1%}")
    peak = found["peak"]
    where = f"{peak['dtype']} on {peak['device']}, {peak['threads']} threads" if peak["device"] == "cpu" else f"{peak['dtype']} on {peak['device']}"
    work = Table("part", "seconds", "share", "GFLOP", "GFLOP/s", "utilisation", title="model FLOPs", title_justify="left")
    for name, w in found["work"].items():
        rate = f"{w['flops'] / w['seconds'] / 1e9:,.1f}" if w["seconds"] else ""
        work.add_row(name, f"{w['seconds']:.3f}", f"{w['seconds'] / total:.1%}", f"{w['flops'] / 1e9:,.2f}", rate, f"{w['utilisation']:.1%}")
    console.print(phases, work)
    console.print(f"utilisation is of {peak['flops_per_s'] / 1e9:,.1f} GFLOP/s, the fastest matrix product of a second in {where}")
    for which, recorded in trace.profiles.items():
        if table := _operators(recorded, which):
            console.print(table)
    console.print(f"traces     {folder} (open in ui.perfetto.dev or chrome://tracing)")


def _operators(recorded: profile, which: str) -> Table | None:
    """The operators with most time of their own, on an accelerator in the kernels that they start; None where there are none."""
    own = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    times = {e: getattr(e, own) for e in recorded.key_averages() if e.key.startswith(OPERATORS) and getattr(e, own) > 0}
    if not times:
        return None
    table = Table("operator", "calls", "ms", "share", title=f"{which}, by operator", title_justify="left")
    for event in sorted(times, key=times.__getitem__, reverse=True)[:TOP_OPERATORS]:
        table.add_row(event.key, f"{event.count:,}", f"{times[event] / 1000:,.1f}", f"{times[event] / sum(times.values()):.1%}")
    return table
