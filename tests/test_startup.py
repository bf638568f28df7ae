"""What the command line loads before it knows what it is to do, how it fits a terminal, and how it leaves when stopped that early."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import selfdistill
from selfdistill.cli.main import BY_NAME, main
from selfdistill.methods import METHODS, WRAPPERS

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(selfdistill.__file__).parents[1])}
INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"
STOPPED = """
import importlib.abc, os, signal, sys

class Stops(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {name!r}:
            {raised}

sys.meta_path.insert(0, Stops())
sys.argv[1:] = {arguments!r}
from selfdistill.__main__ import main
main()
"""


@pytest.fixture(autouse=True, scope="module")
def interrupts():
    """Heard by the processes started here: a test runner in the background ignores them, and so would they."""
    own = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, own)


def python(code, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT | options)


def loaded(*arguments):
    """The top packages that are imported when a command ends."""
    code = "import json, sys; from selfdistill.cli import main\ntry: main({})\nexcept SystemExit: pass\nprint(json.dumps(list(sys.modules)))"
    return {name.split(".")[0] for name in json.loads(python(code.format(list(arguments))).stdout.splitlines()[-1])}


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["methods"], ["eval", "--help"]], ids=" ".join)
def test_help_and_the_list_of_methods_come_without_torch(arguments):
    assert not loaded(*arguments) & {"torch", "numpy", "transformers", "peft", "datasets", "huggingface_hub", "matplotlib", "scipy"}


def test_describe_loads_torch_and_no_model_library():
    found = loaded("describe", "grpo_plus(hsd)", "--vs", "hsd")
    assert "torch" in found and not found & {"transformers", "peft", "datasets", "huggingface_hub", "tokenizers", "pydantic", "matplotlib", "scipy"}


@pytest.mark.parametrize("columns", ["80", "100", "300"])
def test_methods_fit_the_terminal_and_keep_their_order(columns):
    lines = python("from selfdistill.cli import main; main(['methods'])", COLUMNS=columns).stdout.splitlines()
    assert max(map(len, lines)) <= min(int(columns), 100)
    assert [line.split()[0].removesuffix("(X)") for line in lines if line[:1].strip()] == [f.__name__ for f in (*METHODS, *WRAPPERS)]
    assert any(line.startswith("hsd ") and "HSD (2606.15576): after the fact" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "raised", "arguments"),
    [
        ("selfdistill.cli", INTERRUPT, ["--help"]),
        ("selfdistill.errors", INTERRUPT, ["--help"]),
        ("tyro", f"{INTERRUPT}; raise ImportError('half a module')", ["--help"]),
        ("torch", "raise KeyboardInterrupt", ["describe", "hsd"]),
        ("selfdistill.runner", "raise ImportError('half a module') from KeyboardInterrupt()", ["train", "quickstart", "--output_dir", "/nowhere/run"]),
    ],
    ids=["first import", "own modules", "a library's", "torch", "training"],
)
def test_ctrl_c_while_libraries_load_is_quiet(name, raised, arguments):
    done = python(STOPPED.format(name=name, raised=raised, arguments=arguments))
    said = {"describe": "interrupted", "train": "interrupted; nothing was written yet"}.get(arguments[0], "")
    assert (done.returncode, done.stderr.strip()) == (130, said)


def test_ctrl_c_stays_ignored_where_a_shell_ignores_it():
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + STOPPED.format(name="tyro", raised=INTERRUPT, arguments=["recipes"])
    done = python(ignoring)
    assert done.returncode == 0 and "quickstart" in done.stdout, done.stderr


def test_a_reader_that_has_seen_enough_is_no_error():
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {sys.executable} -m selfdistill methods | true"], capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (141, "")


def test_without_a_command_the_commands_are_shown():
    assert "Start with: selfdistill train quickstart" in python("from selfdistill.cli import main; main([])").stdout


def test_the_version_is_told(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"selfdistill {selfdistill.__version__}\n"


@pytest.mark.parametrize("command", BY_NAME)
def test_every_argument_has_a_name_and_a_line_of_help(capsys, command):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    shown = capsys.readouterr().out.partition("\nsettings, as --key value")[0]
    assert left.value.code == 0 and shown.startswith(f"usage: selfdistill {command} [-h]")
    assert not re.search(r"│ \[*(STR|PATH|INT)\b", shown), "a positional argument is named by its type"
    assert "None}" not in shown, "an option that may be left out reads as if none were a value of it"
    assert not re.search(r"│ (-\S+ \S+)? *\((default|required)", shown), "an option says nothing but its default"
