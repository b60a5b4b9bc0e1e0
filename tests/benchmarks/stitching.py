"""What stitching costs, as a ratio to the bare forward passes that a naive loop needs.

    python tests/benchmarks/stitching.py [--device cuda] [--threads 2] [--rounds 5]

ResNet-18 (torchvision, 10 classes, images of 32x32), 1,024 training and 256 test images, batches of
256, a least-squares start and 3 epochs of the connector at layer2.1, or at all eight blocks. The
yardstick is what a naive loop runs in each epoch for each training batch, before it computes any
gradient: the whole front and the whole back, without autograd. `halves` is the stricter one: the
front up to the cut and the back from it on.

Timed is `Sweep.rows`, which the command runs: reading the checkpoints, checking the cuts, the
activations of both networks, the start, training, and the test of the stitched model and of both
networks. Yardstick and sweep take turns; the ratio is that of their medians.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from memtool import models
from memtool.checkpoints import Checkpoint
from memtool.data import Dataset, Split
from memtool.layers import Back, run_to, trace
from memtool.stitching import Direction, StitchSettings, Sweep
from memtool.stitching.activations import Examples
from memtool.stitching.cuts import Cut
from memtool.tensors import save_tensors
from memtool.training import Optimizer, Schedule, TrainConfig

TRAIN, TEST, BATCH, EPOCHS = 1024, 256, 256, 3
CUT = "layer2.1"
IMAGE = torch.zeros(2, 3, 32, 32)
BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
SETTINGS = StitchSettings(
    directions=(Direction.forward,),
    config=TrainConfig(
        epochs=EPOCHS,
        batch_size=BATCH,
        optimizer=Optimizer.adam,
        learning_rate=2e-3,
        weight_decay=0.0,
        schedule=Schedule.constant,
        warmup=0.0,
    ),
)


def dataset() -> Dataset:
    generator = np.random.default_rng(0)

    def split(count: int) -> Split:
        images = generator.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        return Split(images, generator.integers(0, 10, count))

    return Dataset("noise", tuple("0123456789"), split(TRAIN), split(TEST))


def checkpoint(path: Path, data: Dataset, seed: int) -> Checkpoint:
    torch.manual_seed(seed)
    spec = models.parse("torchvision:resnet18?num_classes=10")
    metadata = {"model": spec.json(), "data": data.metadata(), "training": {"noise_ratio": 0.0}}
    save_tensors(path, "checkpoint", models.build(spec).state_dict(), metadata)
    return Checkpoint.open(path)


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds."""
    begin = clock(device)
    work()
    return clock(device) - begin


@torch.no_grad()
def naive(front: nn.Module, back: nn.Module, images: Tensor) -> None:
    """The forward passes of all epochs of a naive loop, whose back takes what its images give."""
    for _ in range(EPOCHS):
        for batch in images.split(BATCH):
            front(batch)
            back(batch)


@torch.no_grad()
def halves(front: nn.Module, back: nn.Module, images: Tensor, cut: str) -> None:
    """The same, but for what a stitched model does not need."""
    rest = Back(back, cut)
    for _ in range(EPOCHS):
        for batch in images.split(BATCH):
            activation = run_to(front, [cut], batch)[cut]
            rest(activation, batch)


def measure(device: torch.device, rounds: int) -> None:
    data = dataset()
    with tempfile.TemporaryDirectory() as folder:
        front, back = (
            checkpoint(Path(folder) / f"{name}.safetensors", data, seed)
            for seed, name in enumerate(("front", "back"))
        )
        layers = {layer.name: layer for layer in trace(models.build(front.spec), IMAGE)}
        examples = Examples.of(data, device)
        networks = front.network(device), back.network(device)
        images = networks[0].normalized(examples.images[:TRAIN])
        nets = networks[0].model, networks[1].model

        def stitched(names: list[str]) -> None:
            cuts: list[Cut] = [(layers[name], layers[name]) for name in names]
            sweep = Sweep([front], back, {front.path: cuts}, SETTINGS)
            assert len(list(sweep.rows(data, device))) == len(names)

        works = {
            "naive": lambda: naive(*nets, images),
            "halves": lambda: halves(*nets, images, CUT),
            CUT: lambda: stitched([CUT]),
            "all eight": lambda: stitched(BLOCKS),
        }
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for work in works.values():
            work()  # warm up
        for _ in range(rounds):
            for name, work in works.items():
                seconds[name].append(timed(work, device))
    report({name: median(values) for name, values in seconds.items()}, device)


def report(seconds: dict[str, float], device: torch.device) -> None:
    where = torch.cuda.get_device_name() if device.type == "cuda" else torch.get_num_threads()
    print(f"{device}, {where}, torch {torch.__version__}, Python {sys.version.split()[0]}")
    print(f"{'':12}{'seconds':>9}{'x naive':>9}{'x halves':>9}{'target':>9}")
    targets = {CUT: "<= 1.6", "all eight": "<= 5"}
    for name, value in seconds.items():
        ratios = f"{value / seconds['naive']:9.2f}{value / seconds['halves']:9.2f}"
        print(f"{name:12}{value:9.2f}{ratios}{targets.get(name, ''):>9}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measure(torch.device(arguments.device), arguments.rounds)


if __name__ == "__main__":
    main()
