"""The reproduction on the digits with three seeds: findings, expected numbers, time and memory.

    python tests/benchmarks/reproduce.py [DIR] [--seeds N] [--jobs N]

Runs `memtool reproduce digits` from the start and prints its table of findings, the numbers that
`digits.py` expects of it beside their bounds, the wall time of the whole command, and the peak
memory of all its processes together: their proportional set size, which counts a shared page once.
It is read from /proc, so this works on Linux only.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from digits import Expectation, expectations, tables_of_runs

from memtool import tables


def descendants(pid: int) -> list[int]:
    """The process `pid` and all processes below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [one for child in task.read_text().split() for one in descendants(int(child))]
    return found


def memory(pid: int) -> int:
    """The memory, in bytes, of the process `pid` and all processes below it."""
    total = 0
    try:
        for one in descendants(pid):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += 1024 * int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):  # a process ended in the meantime
        pass
    return total


def print_expectations(folder: Path) -> None:
    print()
    with tables.writer(Expectation, None, tables.Format.table) as write:
        for row in expectations(*tables_of_runs(folder)):
            write(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    folder = arguments.folder or tempfile.mkdtemp(prefix="memtool-")
    command = f"reproduce digits -o {folder} --seeds {arguments.seeds} -j {arguments.jobs}"
    command += " --format table"
    start, peak = time.monotonic(), 0
    process = subprocess.Popen([sys.executable, "-m", "memtool", *command.split()])
    while process.poll() is None:
        peak = max(peak, memory(process.pid))
        time.sleep(2)  # to look more often would take a tenth of a processor
    seconds = time.monotonic() - start
    print_expectations(Path(folder))
    print(f"\nmemtool {command}")
    print(f"{seconds:.0f} s, at most {peak / 1e6:.0f} MB, exit {process.returncode}")


if __name__ == "__main__":
    main()
