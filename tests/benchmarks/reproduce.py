"""The paper on the digits over three seeds: the findings, the time and the memory.

    python tests/benchmarks/reproduce.py [DIR] [--seeds N] [--jobs N]

Runs `memtool reproduce digits` from nothing and prints its table of findings, the wall time of the
whole command, and the most memory that its processes held at once (proportional set size, which
counts a shared page once; from /proc, so on Linux only).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def children(pid: int) -> list[int]:
    """`pid` and all processes below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [one for child in task.read_text().split() for one in children(int(child))]
    return found


def memory(pid: int) -> int:
    """Bytes that `pid` and all processes below it hold."""
    total = 0
    try:
        for one in children(pid):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += 1024 * int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):  # a process ended meanwhile
        pass
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    folder = arguments.folder or tempfile.mkdtemp(prefix="memtool-")
    command = f"reproduce digits -o {folder} --seeds {arguments.seeds} -j {arguments.jobs}"
    command += " --format table"
    start, most = time.monotonic(), 0
    process = subprocess.Popen([sys.executable, "-m", "memtool", *command.split()])
    while process.poll() is None:
        most = max(most, memory(process.pid))
        time.sleep(0.5)
    seconds = time.monotonic() - start
    print(f"\nmemtool {command}")
    print(f"{seconds:.0f} s, at most {most / 1e6:.0f} MB, exit {process.returncode}")


if __name__ == "__main__":
    main()
