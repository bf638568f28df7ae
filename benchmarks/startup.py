"""What the commands that load no model take from the shell to their last line, beside an empty Python and `import torch`.

python benchmarks/startup.py [--repeats N]   prints the table and writes benchmarks/out/startup.json

Each repeat starts every command once, in turns; CPU seconds are user and system time of the process, which say more than the wall on a shared machine.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table
from workload import positive, write

CLI = ("-m", "selfdistill")
COMMANDS: dict[str, tuple[str, ...]] = {
    'python -c "pass"': ("-c", "pass"),
    'python -c "import torch"': ("-c", "import torch"),
    "selfdistill --help": (*CLI, "--help"),
    "selfdistill train --help": (*CLI, "train", "--help"),
    "selfdistill methods": (*CLI, "methods"),
    "selfdistill describe hsd": (*CLI, "describe", "hsd"),
    "selfdistill describe hsd --vs opsd": (*CLI, "describe", "hsd", "--vs", "opsd"),
}


def seconds(arguments: tuple[str, ...]) -> tuple[float, float]:
    """(wall, CPU) of one process from its start to its end."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=positive, default=9)
    repeats = parser.parse_args().repeats
    for arguments in COMMANDS.values():
        seconds(arguments)
    turns = [{name: seconds(arguments) for name, arguments in COMMANDS.items()} for _ in range(repeats)]
    found = {name: dict(zip(("wall", "cpu"), map(statistics.median, zip(*(turn[name] for turn in turns), strict=True)), strict=True)) for name in COMMANDS}
    table = Table(title=f"medians of {repeats} starts")
    for column in ("command", "wall, s", "CPU, s"):
        table.add_column(column, justify="left" if column == "command" else "right")
    for name, row in found.items():
        table.add_row(name, f"{row['wall']:.2f}", f"{row['cpu']:.2f}")
    Console().print(table)
    write("startup", {"repeats": repeats, "rows": found})


if __name__ == "__main__":
    main()
