"""Many trainings at once: runs in, their folders filled by `selfdistill train` in processes of their own, and why some failed out."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from selfdistill import checkpoint
from selfdistill.api import members
from selfdistill.config import INCIDENTAL, Settings, read_settings, save_settings

RUN_BYTES = 2 << 30
"""What a run of the testbed holds at its peak (1.8 GiB), rounded up; bigger models on a CPU need a lower number of jobs."""
POLL_S = 0.1
GRACE_S = 20.0
"""A run that is asked to stop is killed after this long."""
SINGLE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run and where it goes; its recipe and its log lie beside its folder."""

    folder: Path
    settings: Settings

    @property
    def recipe(self) -> Path:
        return self.folder.with_name(self.folder.name + ".json")

    @property
    def log(self) -> Path:
        return self.folder.with_name(self.folder.name + ".log")

    @property
    def finished(self) -> bool:
        return (self.folder / "summary.json").exists()

    def check(self) -> None:
        """Raises ValueError where the folder holds another run."""
        if not (own := self.folder / "settings.json").exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise ValueError(f"{self.folder} holds files that are no run's; choose another --output, or remove it")
            return
        there, wanted = (s.model_dump(exclude={**dict.fromkeys(INCIDENTAL, True), "eval": {"cache"}}) for s in (read_settings(own), self.settings))
        if changed := [key for key in wanted if there[key] != wanted[key]]:
            raise ValueError(f"{self.folder} holds a run with other settings ({', '.join(changed)}); choose another --output, or remove it")

    def start(self, environment: Mapping[str, str]) -> subprocess.Popen[str]:
        """The process that trains it, from its last checkpoint where it has one."""
        resume = bool(checkpoint.shared(*(Path(own.output_dir) for own in members(self.settings))))
        if not resume:
            # what a run leaves before its first checkpoint cannot be continued
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        save_settings(self.settings, self.recipe)
        command = [sys.executable, "-m", "selfdistill", "train", str(self.recipe), *(["--resume"] if resume else [])]
        with self.log.open("a") as log:
            # a session of its own: Ctrl-C reaches it through `_stop` alone
            return subprocess.Popen(command, stdout=log, stderr=log, text=True, env={**os.environ, **environment}, start_new_session=True)

    def reason(self, code: int) -> str:
        """Why it ended with this code, in the words of its log."""
        lines = [line.strip() for line in self.log.read_text().splitlines() if line.strip()]
        said = next((line.removeprefix("selfdistill: ") for line in reversed(lines) if line.startswith("selfdistill: ")), lines[-1] if lines else "")
        return f"killed by signal {-code}; see {self.log}" if code < 0 else said or f"exit code {code}; see {self.log}"


def launch(jobs: Sequence[Job], *, at_once: int | None, say: Callable[[str], None]) -> dict[Path, str]:
    """Trains what is not finished, so many at once as there are places for; a run that fails does not stop the others. Returns why, by folder.

    Raises ValueError where a folder holds another run. After Ctrl-C or SIGTERM all processes are ended first.
    """
    for job in jobs:
        job.check()
    waiting = [job for job in jobs if not job.finished]
    if len(waiting) < len(jobs):
        say(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are finished already")
    free, running, failed = places(waiting, at_once), dict[subprocess.Popen[str], tuple[Job, Mapping[str, str], float]](), dict[Path, str]()
    if waiting:
        say(f"{len(waiting)} runs to train, {min(len(free), len(waiting))} at once")
    with _term_as_interrupt():
        try:
            while waiting or running:
                while waiting and free:
                    job, place = waiting.pop(0), free.pop()
                    running[job.start(place)] = (job, place, time.perf_counter())
                for process in [p for p in running if p.poll() is not None]:
                    job, place, start = running.pop(process)
                    free.append(place)
                    if process.returncode or not job.finished:
                        failed[job.folder] = job.reason(process.returncode)
                    left = f"{len(waiting) + len(running)} left"
                    say(f"{job.folder} {'failed: ' + failed[job.folder] if job.folder in failed else 'done'}, {time.perf_counter() - start:.0f} s, {left}")
                time.sleep(POLL_S)
        finally:
            _stop(list(running))
    return failed


def places(jobs: Sequence[Job], at_once: int | None) -> list[Mapping[str, str]]:
    """One environment for each run at a time: accelerators in turns where there are some, else one thread on one core."""
    if not jobs:
        return []
    if jobs[0].settings.model.device.startswith(("auto", "cuda")) and (devices := _accelerators()):
        return [{"CUDA_VISIBLE_DEVICES": devices[i % len(devices)]} for i in range(at_once or len(devices))]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [SINGLE] * (at_once or max(min(cores, _free_bytes() // RUN_BYTES), 1))


def _accelerators() -> list[str]:
    """Those this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]) if torch.cuda.is_available() else []


def _free_bytes() -> int:
    """Memory that can be had without swapping; half of all of it where the system does not say."""
    info = Path("/proc/meminfo")
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines()) if info.exists() else {}
    if "MemAvailable" in lines:
        return int(lines["MemAvailable"].split()[0]) << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _stop(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Interrupts what still runs, as Ctrl-C would, and kills what does not end in time."""
    for process in processes:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + GRACE_S
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def _term_as_interrupt() -> Iterator[None]:
    """SIGTERM ends this process the way Ctrl-C does, so that it leaves no run behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
