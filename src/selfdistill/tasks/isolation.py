"""Calls that may hang, in processes that can be killed: arguments in, results out, a late call scored by what its caller says."""

import logging
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

log = logging.getLogger(__name__)


class _Worker:
    """One process that answers call after call until it is late."""

    def __init__(self, function: Callable[..., Any]) -> None:
        # spawn, not fork: the parent has torch's threads, which do not survive a fork
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, arguments: tuple[Any, ...], *, timeout_s: float) -> tuple[bool, Any]:
        """(answered in time, result)."""
        self.connection.send(arguments)
        if not self.connection.poll(timeout_s):
            return False, None
        try:
            return True, self.connection.recv()
        except EOFError:
            return False, None

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, function: Callable[..., Any]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    connection.send(None)
    while True:
        try:
            connection.send(function(*connection.recv()))
        except (EOFError, KeyboardInterrupt):
            return


class Isolated:
    """A module's function behind a process that is kept between calls and replaced when it hangs or dies; `late` stands for such a call."""

    def __init__(self, function: Callable[..., Any], *, timeout_s: float, late: Any) -> None:
        self.function, self.timeout_s, self.late = function, timeout_s, late
        self.worker: _Worker | None = None

    def __call__(self, *arguments: Any) -> Any:
        if self.worker is None:
            self.worker = _Worker(self.function)
            # starting a process imports libraries; that time is not the call's
            if not self.worker.connection.poll(120):
                raise RuntimeError("a grading process did not start within 120 s")
            self.worker.connection.recv()
        in_time, result = self.worker.ask(arguments, timeout_s=self.timeout_s)
        if not in_time:
            log.warning("%s took longer than %g s or died on %.60r; the result is %s", self.function.__name__, self.timeout_s, arguments, self.late)
            self.close()
        return result if in_time else self.late

    def close(self) -> None:
        if self.worker is not None:
            self.worker.stop()
            self.worker = None
