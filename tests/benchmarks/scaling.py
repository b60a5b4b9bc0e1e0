"""Processor time and memory of the commands against the size of the work, with fitted exponents.

    python tests/benchmarks/scaling.py [--only images|layers|checkpoints|cuts|...] [--limits]

Each command runs in a process of its own, forked from one that has imported everything: seconds of
one processor and peak resident memory are those of the command, and both have the same floor. An
exponent is the slope of a line through the larger half of the sizes, in logarithms: 1 is linear.
--limits asks for the largest work instead, once each: 1,000 checkpoints, 10,000 layers, a million
images, checkpoints of 2 GB, an image of 20,000 x 20,000 and 10,000 classes, and says how it ends;
--only names one of either.
"""

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

MODULES = (
    *("memtool.cli", "torch.fx.experimental.symbolic_shapes", "memtool.training.run"),
    *("memtool.similarity.comparison", "memtool.stitching.sweep"),
    *("memtool.models", "memtool.data.cache"),
)
CHAIN = """
import torch

def chain(layers=10, width=8, inputs=64, num_classes=4):
    def block(size):
        return torch.nn.Sequential(torch.nn.Linear(size, width), torch.nn.LayerNorm(width))

    blocks = [block(width if number else inputs) for number in range(layers)]
    return torch.nn.Sequential(torch.nn.Flatten(), *blocks, torch.nn.Linear(width, num_classes))
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code, processor seconds, peak bytes, last line on stderr."""

    code: int
    seconds: float
    memory: int
    told: str


def measured(command: str) -> Outcome:
    """Run `memtool COMMAND` in a forked process."""
    log = Path("log")
    if not (process := os.fork()):
        _child(command, log)
    _, status, usage = os.wait4(process, 0)
    lines = log.read_text(errors="replace").strip().splitlines()
    seconds, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
    return Outcome(os.waitstatus_to_exitcode(status), seconds, memory, lines[-1] if lines else "")


def _child(command: str, log: Path) -> None:
    from memtool.cli import main

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    code = 70
    try:
        main(command.split())
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(bool(done.code))
    finally:
        os._exit(code)


def make_data(name: str, images: int, classes: int = 4, side: int = 8) -> str:
    """A file of random images for training (`classes` of them at least 32) and testing."""
    generator = torch.Generator().manual_seed(0)
    count = max(32, classes)
    arrays = {
        "train_images": torch.randint(0, 256, (count, 1, side, side), generator=generator),
        "test_images": torch.randint(0, 256, (images, 1, side, side), generator=generator),
        "train_labels": torch.arange(count) % classes,
        "test_labels": torch.arange(images) % classes,
    }
    types = {"images": torch.uint8, "labels": torch.int64}
    path = f"{name}.safetensors"
    save_file({key: part.to(types[key[-6:]]) for key, part in arrays.items()}, path)
    return path


def training(name: str, data: str, layers: int = 10, **options: int) -> str:
    """The training of a chain for one epoch, with checkpoints before and after it."""
    spec = "&".join(f"{key}={value}" for key, value in {"layers": layers, **options}.items())
    chosen = f"--model chain.py:chain?{spec} --data {data} --epochs 1 --save-at 0"
    return f"train {chosen} -o {name}.safetensors -q"


def make_checkpoint(name: str, data: str, layers: int = 10, **options: int) -> str:
    """A chain that was trained for one epoch."""
    path = f"{name}.safetensors"
    if not Path(path).exists():
        outcome = measured(training(name, data, layers, **options))
        assert outcome.code == 0, outcome
    return path


def copies(path: str, count: int) -> str:
    """The names of so many checkpoints, which are one."""
    Path("many").mkdir(exist_ok=True)
    for number in range(count):
        link = Path("many") / f"{number:05d}.safetensors"
        if not link.exists():
            os.link(path, link)
    return " ".join(f"many/{number:05d}.safetensors" for number in range(count))


CKA = "cka {} -o rows.csv --trust -q"


def images(size: int) -> str:
    network = make_checkpoint("ten", make_data("small", 64))
    data = make_data(f"images-{size}", size)
    return CKA.format(f"{network} {network} --data {data} --estimator minibatch")


def exact_images(size: int) -> str:
    return images(size).replace("minibatch", "exact")


def layers(size: int) -> str:
    network = make_checkpoint(f"layers-{size}", make_data("small", 64), layers=size)
    return CKA.format(f"{network} {network}")


def pairs(size: int) -> str:
    return f"{layers(size)} --pairs all"


def checkpoints(size: int) -> str:
    network = make_checkpoint("ten", make_data("small", 64))
    return CKA.format(f"{copies(network, size)} {network}")


def cuts(size: int) -> str:
    network = make_checkpoint(f"layers-{size}", make_data("small", 64), layers=size)
    return f"stitch {network} {network} --at all --epochs 0 -o rows.csv --trust -q"


Maker = Callable[[int], str]
SCALES: dict[str, tuple[Maker, Sequence[int]]] = {
    "images": (images, (4_000, 16_000, 64_000, 256_000)),
    "images, exact": (exact_images, (1_000, 2_000, 4_000, 8_000)),
    "layers": (layers, (50, 100, 200, 400)),
    "layers, all pairs": (pairs, (50, 100, 200, 400)),
    "checkpoints": (checkpoints, (10, 30, 100, 300)),
    "cuts": (cuts, (5, 10, 20, 40)),
}


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent e of the power law size ** e through the larger half of the sizes."""
    half = slice(len(sizes) // 2 - 1, None)
    x, y = np.log(np.asarray(sizes[half], float)), np.log(np.asarray(values[half], float))
    return float(np.polyfit(x, y, 1)[0])


def scale(name: str) -> None:
    """Print a line for each size, and the exponents."""
    command, sizes = SCALES[name]
    outcomes = []
    for size in sizes:
        outcomes.append(measured(command(size)))
        one = outcomes[-1]
        assert one.code == 0, one
        print(
            f"{name:20} {size:>8,} {one.seconds:8.2f} s {one.memory / 2**20:8.0f} MiB", flush=True
        )
    floor = measured("--version")
    seconds = slope(sizes, [max(one.seconds - floor.seconds, 1e-3) for one in outcomes])
    memory = slope(sizes, [max(one.memory - floor.memory, 2**20) for one in outcomes])
    print(f"{name:20} exponents: time {seconds:.2f}, memory {memory:.2f}, above the floor\n")


def million_images() -> str:
    return images(1_000_000)


LARGE = {"layers": 120, "width": 2048}  # 2 GB


def large_training() -> str:
    return training("large", make_data("small", 64), **LARGE)


def large(command: str) -> str:
    """A command that is given two large checkpoints, before and after training."""
    network = make_checkpoint("large", make_data("small", 64), **LARGE)
    return command.format(f"large/epoch-0000.safetensors {network}")


def large_image() -> str:
    from PIL import Image

    for part in ("train", "test"):
        for label in "ab":
            path = Path("huge") / part / label / "x.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (20_000, 20_000)).save(path)
    return "make-noisy folder:huge -r 50% -o labels.safetensors"


def many_classes() -> str:
    return training("classes-run", make_data("classes", 64, classes=10_000))


LIMITS: dict[str, Callable[[], str]] = {
    "1,000 checkpoints": lambda: checkpoints(1000),
    "10,000 layers": lambda: layers(10_000),
    "1,000,000 images": million_images,
    "2 GB, train": large_training,
    "2 GB, info": lambda: large("info {}"),
    "2 GB, cka": lambda: large(CKA),
    "2 GB, cka in 1 GiB": lambda: large(f"{CKA} --memory 1GiB"),
    "2 GB, stitch": lambda: large("stitch {} --at 60 --epochs 1 -o rows.csv --trust -q"),
    "images of 20,000 x 20,000": large_image,
    "10,000 classes": many_classes,
}


def limit(name: str) -> None:
    """Print how the largest work ends."""
    one = measured(LIMITS[name]())
    end = "done" if one.code == 0 else one.told
    print(f"{name:26} {one.seconds:8.1f} s {one.memory / 2**20:8.0f} MiB  {end}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[*SCALES, *LIMITS])
    parser.add_argument("--limits", action="store_true")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    for module in MODULES:
        importlib.import_module(module)
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="memtool-scaling-") as folder:
        os.chdir(folder)
        try:
            Path("chain.py").write_text(CHAIN)
            names = LIMITS if given.limits else SCALES
            for name in [given.only] if given.only else names:
                (limit if name in LIMITS else scale)(name)
        finally:
            os.chdir(before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
