"""Commands killed at random moments, again and again: nothing torn, nothing lost, nothing left.

    python tests/kills.py [--kills 1000] [--seed 0] [--only COMMAND]

Each command runs once to its end; those are the right files. Then it is started and killed by
SIGKILL after a random part of that time, and started again, until one comes through. After every
kill, each file of the right names has to have the right bytes, whatever the command had done; in
the end there have to be these files and no others. Some commands keep a file to `--resume` from.
Processes are forked from one that has imported all there is, so that a thousand take minutes.
"""

import argparse
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

MODULES = [
    *("memtool.cli", "torch", "torch.fx.experimental.symbolic_shapes"),
    *("memtool.training", "memtool.training.run"),
    *("memtool.similarity.comparison", "memtool.stitching.sweep", "memtool.figures.drawing"),
    "memtool.figures.style",
]
TRAIN = "train --model digits-cnn --labels labels.safetensors"
STITCH = "stitch clean.safetensors clean.safetensors --at block1,block2,block3 --epochs 1"
# In each, OUT is a folder for what the command makes.
COMMANDS = {
    "make-noisy": "make-noisy digits -r 0,5%,50% -o OUT/r{ratio}.safetensors",
    "train": f"{TRAIN} --epochs 4 --save-every 1 --resume --table OUT/r.csv -o OUT/r.safetensors",
    "cka": "cka clean.safetensors clean.safetensors --pairs all -o OUT/cka.csv",
    "stitch": f"{STITCH} --control --resume --save OUT/stitched -o OUT/stitching.csv",
    "plot": "plot rows.csv -o OUT/a.png -o OUT/a.svg",
    "convert": "convert weights.pth --model digits-cnn -o OUT/weights.safetensors",
}
SETTING = (
    "make-noisy small.safetensors -r 50% -o labels.safetensors",
    "train --model digits-cnn --data small.safetensors --epochs 1 -o clean.safetensors",
    "cka clean.safetensors clean.safetensors -o rows.csv",
)


def prepare() -> None:
    """Make what the commands need in the working directory."""
    import numpy as np
    import torch
    from safetensors.torch import load_file, save_file

    images = np.random.default_rng(0).integers(0, 256, (256, 1, 8, 8), dtype=np.uint8)
    arrays = {"train_images": images, "train_labels": np.arange(256) % 10}
    arrays |= {"test_images": images[::2].copy(), "test_labels": np.arange(256)[::2] % 10}
    save_file({name: torch.from_numpy(part) for name, part in arrays.items()}, "small.safetensors")
    for command in SETTING:
        assert wait(start(command)) == 0, command
    torch.save(load_file("clean.safetensors"), "weights.pth")


def start(command: str) -> int:
    """The id of a process that runs `memtool COMMAND`, quietly."""
    sys.stdout.flush()
    if process := os.fork():
        return process
    from memtool.cli import main

    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    if "KILLS_DEBUG" not in os.environ:
        os.dup2(silence, 2)
    try:
        main(command.split())
    except SystemExit as done:
        os._exit(done.code if isinstance(done.code, int) else int(bool(done.code)))
    finally:
        os._exit(70)


def wait(process: int) -> int:
    """The exit code of a process; negative for the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def contents(folder: Path) -> dict[str, bytes]:
    """What is in the files below a folder, by their names."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def torn(folder: Path, right: dict[str, bytes]) -> list[str]:
    """The files that have a right name and other content."""
    found = contents(folder)
    return [name for name, content in right.items() if found.get(name, content) != content]


def killed(name: str, kills: int, generator: random.Random) -> list[str]:
    """What went wrong with a command that was killed so many times."""
    right_folder, folder = Path(f"{name}-right"), Path(name)
    begin = time.monotonic()
    assert wait(start(COMMANDS[name].replace("OUT", str(folder)))) == 0, name
    length = time.monotonic() - begin
    folder.rename(right_folder)
    right = contents(right_folder)
    wrong: list[str] = []
    done = 0
    while done < kills:
        process = start(COMMANDS[name].replace("OUT", str(folder)))
        time.sleep(generator.uniform(0, length))
        os.kill(process, signal.SIGKILL)
        code = wait(process)
        done += code == -signal.SIGKILL
        wrong += [f"{name}: {file} is torn" for file in torn(folder, right)]
        if code not in (0, -signal.SIGKILL):
            wrong.append(f"{name}: exit code {code} after a kill")
        if code != -signal.SIGKILL or generator.random() < 0.1:
            wrong += check_end(name, folder, right)
    return wrong


def check_end(name: str, folder: Path, right: dict[str, bytes]) -> list[str]:
    """Run a command to its end, and say which files are not right then; the folder is removed."""
    code = wait(start(COMMANDS[name].replace("OUT", str(folder))))
    found = contents(folder)
    folders = {str(path) for path in folder.rglob(".*")}
    shutil.rmtree(folder)
    if code or found != right or folders:
        names = sorted(set(found) ^ set(right)) + sorted(folders)
        return [f"{name}: exit code {code} at the end, other content, or {names}"]
    return []


def run(kills: int, seed: int, names: Sequence[str]) -> list[str]:
    """What went wrong with these commands."""
    for module in MODULES:
        importlib.import_module(module)
    generator = random.Random(seed)
    wrong: list[str] = []
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="memtool-kills-") as folder:
        os.chdir(folder)
        try:
            prepare()
            for name in names:
                found = killed(name, -(-kills // len(names)), generator)
                print(f"{name}: {-(-kills // len(names))} kills, {len(found)} failures", flush=True)
                wrong += found
        finally:
            os.chdir(before)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000, help="of all commands together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(COMMANDS))
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    names = [given.only] if given.only else list(COMMANDS)
    begin = time.monotonic()
    wrong = run(given.kills, given.seed, names)
    for line in wrong:
        print(line)
    print(f"seed {given.seed}: {len(wrong)} failures in {time.monotonic() - begin:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
