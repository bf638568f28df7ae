"""Calls that hang, crash or fill the memory end, and the calls around them get their results."""

import importlib
import json
import math
import operator
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfdistill.tasks.isolation import Outcome, run_isolated


def test_results_come_back_in_order() -> None:
    outcomes = run_isolated(operator.add, [(i, 10 * i) for i in range(50)], workers=2)
    assert [outcome.value for outcome in outcomes] == [11 * i for i in range(50)]


def test_a_call_that_hangs_in_c_code_is_killed_and_the_others_are_not() -> None:
    start = time.monotonic()
    outcomes = run_isolated(pow, [(2, 10), (9, 9**9), (3, 3)], timeout_s=1.0, workers=1)
    assert outcomes == [Outcome(value=1024), Outcome(late=True), Outcome(value=27)]
    assert time.monotonic() - start < 30


def test_a_call_that_ends_its_process_is_late_and_the_next_one_runs() -> None:
    assert run_isolated(os._exit, [(3,)], workers=1) == [Outcome(late=True)]
    assert run_isolated(math.sqrt, [(9.0,)], workers=1) == [Outcome(value=3.0)]


def test_what_a_call_raises_comes_back_as_text() -> None:
    (outcome,) = run_isolated(json.loads, [("{",)], workers=1)
    assert outcome.error.startswith("JSONDecodeError: Expecting property name") and not outcome.late


def test_a_call_that_wants_all_memory_fails_alone() -> None:
    outcomes = run_isolated(bytearray, [(64 << 30,), (3,)], workers=1)
    assert outcomes[0].error.startswith("MemoryError")
    assert outcomes[1].value == bytearray(3)


def test_what_a_call_started_is_killed_with_it(tmp_path: Path) -> None:
    witness = tmp_path / "still_alive"
    (outcome,) = run_isolated(os.system, [(f"sleep 2; touch {witness}",)], timeout_s=0.5, workers=1)
    time.sleep(2.5)
    assert outcome.late and not witness.exists()


def test_a_function_no_other_process_can_import_is_refused() -> None:
    with pytest.raises(ValueError, match="define it at the top of a module"):
        run_isolated(lambda x: x, [(1,)])


def test_a_script_without_a_main_guard_works_and_leaves_no_process_behind(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from selfdistill.tasks.isolation import run_isolated\n"
        "print(run_isolated(os.getpid, [()], workers=1)[0].value, flush=True)\n"
        "def mine(x):\n    return x\n"
        "try:\n    run_isolated(mine, [(1,)], workers=1)\n"
        "except ValueError as error:\n    print(error, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    lines = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment).stdout.splitlines()
    assert "define it in a module, not in a script" in lines[1]
    deadline = time.monotonic() + 15
    while Path(f"/proc/{lines[0]}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{lines[0]}").exists()


def test_what_a_module_imports_late_is_not_the_first_calls_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_to_load.py").write_text(
        "import time\ndone = []\ndef warm():\n    time.sleep(2)\n    done.append(1)\ndef ready():\n    return len(done)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    function = importlib.import_module("slow_to_load").ready
    assert run_isolated(function, [()], timeout_s=1.0, workers=1) == [Outcome(value=1)]
