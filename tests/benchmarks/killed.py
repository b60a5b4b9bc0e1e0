"""A reproduction that is killed again and again ends with the same files.

    python tests/benchmarks/killed.py [DIR] [--kills N] [--seed N] [-- OPTIONS of memtool reproduce]

Runs `memtool reproduce` once without a break, then once more in another folder, where SIGKILL ends
it N times after random times: in turn the whole group of its processes, and the first of them
alone. At last it is left to end. All files but those that say when, where and how long are compared
byte by byte.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SMALL = "digits --ratios 50% --epochs 3 --layers block1,fc --cuts block2 -j 2".split()
APART = {"steps.csv", "report.html", "reproduction.json"}


def start(folder: Path, options: list[str]) -> "subprocess.Popen[bytes]":
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "memtool", "reproduce", *options, "-o", "out", "-q"]
    return subprocess.Popen(command, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL)


def contents(folder: Path) -> dict[str, bytes]:
    """All files by their relative paths, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in APART
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=None)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("options", nargs="*", default=SMALL)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="memtool-"))
    began = time.monotonic()
    if start(folder / "whole", arguments.options).wait():
        sys.exit("the reproduction failed")
    seconds = time.monotonic() - began
    print(f"{seconds:.0f} s without a break", flush=True)
    drawn = random.Random(arguments.seed)
    for kill in range(arguments.kills):
        process = start(folder / "killed", arguments.options)
        time.sleep(drawn.uniform(0.05, 0.6) * seconds)
        if kill % 2:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        print(f"killed {kill + 1}: {len(contents(folder / 'killed'))} files", flush=True)
    if start(folder / "killed", arguments.options).wait():
        sys.exit("the reproduction that was killed did not go on")
    whole, killed = (contents(folder / name / "out") for name in ("whole", "killed"))
    differ = [name for name in whole.keys() | killed.keys() if whole.get(name) != killed.get(name)]
    if differ:
        sys.exit(f"differ: {sorted(differ)}")
    print(f"{len(whole)} equal files")


if __name__ == "__main__":
    main()
