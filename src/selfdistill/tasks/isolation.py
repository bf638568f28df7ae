"""Calls on text a model wrote, which may hang, crash or eat memory: functions and arguments in, one Outcome a call out.

Each call runs in a process of its own that is kept for the next one, and killed with all it started when it is late.
"""

import contextlib
import multiprocessing
import os
import pickle
import queue
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

START_S = 120.0
"""A process imports the package, and torch with it, before its first call."""
GRACE_S = 5.0
"""A process whose parent is gone ends itself this long after its call was due."""
MEMORY_BYTES = 8 << 30
"""A call that allocates more fails, instead of taking the machine down."""
WORKERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a call: its value, or what it raised, or neither in time."""

    value: Any = None
    error: str = ""
    """The exception it raised, as text."""
    late: bool = False
    """It was not done in time, or took its process with it."""


def run_isolated(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], *, timeout_s: float = 10.0, workers: int = WORKERS) -> list[Outcome]:
    """The outcome of function(*arguments) for each of the calls, in their order.

    Raises ValueError where the function is not one that another process can import.
    """
    try:
        # with the folders it is imported from, which may be new since a process started
        payload = pickle.dumps((sys.path, pickle.dumps(function)))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"{_name(function)} cannot run in a process of its own ({error}); define it at the top of a module") from error
    threads = ThreadPoolExecutor(workers)
    try:
        outcomes = list(threads.map(lambda arguments: _ask(payload, arguments, timeout_s=timeout_s), calls))
    finally:
        threads.shutdown(cancel_futures=True)
    for outcome in outcomes:
        if isinstance(outcome.value, _NotLoaded):
            raise ValueError(f"{_name(function)} cannot run in a process of its own ({outcome.error}); define it in a module, not in a script")
    return outcomes


@dataclass(frozen=True)
class _NotLoaded:
    """In place of a value: the process could not import the function."""


_idle: "queue.SimpleQueue[_Worker]" = queue.SimpleQueue()


def _ask(payload: bytes, arguments: tuple[Any, ...], *, timeout_s: float) -> Outcome:
    try:
        worker = _idle.get_nowait()
    except queue.Empty:
        worker = _Worker()
    try:
        return worker.ask(payload, arguments, timeout_s=timeout_s)
    finally:
        _idle.put(worker)


class _Worker:
    """One process; started at its first call, and again at the first one after it was killed or died."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.loaded = b""

    def ask(self, payload: bytes, arguments: tuple[Any, ...], *, timeout_s: float) -> Outcome:
        if self.process is not None and self.process.poll() is not None:
            self._stop()
        if self.process is None:
            self._start()
        if self.loaded != payload:
            # importing a user's module is not the call's time
            refused = self._exchange(payload, timeout_s=START_S)
            if refused.late or refused.error:
                return Outcome(value=_NotLoaded(), error=refused.error or "importing it does not end")
            self.loaded = payload
        return self._exchange((arguments, timeout_s), timeout_s=timeout_s)

    def _exchange(self, message: Any, *, timeout_s: float) -> Outcome:
        with contextlib.suppress(EOFError, OSError):
            self.connection.send(message)
            if self.connection.poll(timeout_s):
                return self.connection.recv()
        self._stop()
        return Outcome(late=True)

    def _start(self) -> None:
        # a fresh interpreter: a fork would inherit torch's threads, and multiprocessing's spawn would run the user's script again
        self.connection, theirs = multiprocessing.Pipe()
        program = f"from {__name__} import serve; serve({theirs.fileno()})"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        theirs.close()
        started = False
        with contextlib.suppress(EOFError, OSError):
            started = self.connection.poll(START_S) and self.connection.recv()
        if not started:
            self._stop()
            raise RuntimeError(f"a grading process did not start within {START_S:g} s; its own words are above")

    def _stop(self) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()
        self.process, self.loaded = None, b""


def serve(file_descriptor: int) -> None:
    """The other end: answers until the parent is gone. What verifiers print is nobody's to read."""
    connection = Connection(file_descriptor)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    connection.send(True)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    function: Callable[..., Any] | None = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            message = connection.recv()
            if isinstance(message, bytes):
                function, outcome = _load(message)
            else:
                outcome = _call(function, *message)
            connection.send(outcome)


def _load(payload: bytes) -> tuple[Callable[..., Any] | None, Outcome]:
    sys.path[:], function = pickle.loads(payload)
    try:
        loaded = pickle.loads(function)
        # what the function's module imports late is not its first call's time either
        getattr(sys.modules.get(getattr(loaded, "__module__", "")), "warm", lambda: None)()
        return loaded, Outcome()
    except Exception as error:  # importing a user's module may raise anything
        return None, Outcome(error=f"{type(error).__name__}: {error}")


def _call(function: Callable[..., Any] | None, arguments: tuple[Any, ...], timeout_s: float) -> Outcome:
    assert function is not None
    signal.setitimer(signal.ITIMER_REAL, timeout_s + GRACE_S)
    try:
        return Outcome(value=function(*arguments))
    except Exception as error:  # a verifier on a model's text may raise anything; the parent decides what that means
        return Outcome(error=f"{type(error).__name__}: {error}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"
