"""How fast `memtool train` is, beside a plain PyTorch loop, in images per second.

    python tests/benchmarks/training.py [--cifar FOLDER] [--only NAME] [--device cuda] [--turns 3]

Both train the same network on the same images with the same optimizer, batch and augmentation, and
evaluate it on both splits after each epoch, in turns, each in a process. The plain loop is that of
tutorials: a DataLoader with as many workers as there are processors, torchvision's ImageFolder and
transforms, float32 (in which PyTorch lets convolutions on CUDA use TF32). memtool's side is
`Run.train`, which the command runs, with the precision that the command chooses. Told are the
medians of the epochs and that of the ratios of neighbors; memtool's reading of the images, once
per run, comes apart.

--cifar names CIFAR-10 as folders of classes, train/CLASS/*.jpg and test/CLASS/*.jpg; without it,
2,000 smooth random images of that size stand in. On CUDA come the share of the card's bf16 peak,
measured in the same process with products of 8,192 x 8,192, and the time that the paper's nine
networks take, 50 epochs each.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from torchvision.datasets import ImageFolder

from memtool import data, models
from memtool.data import Dataset, LabelFile
from memtool.device import Precision, choose
from memtool.training import Augment, Run, TrainConfig, make_optimizer
from memtool.training.defaults import config_for

NETWORKS = 9  # of the paper
EPOCHS = 50


@dataclass(frozen=True)
class Setting:
    """A network, and the data set on which it is trained."""

    name: str
    model: str
    data: str
    batch_size: int
    augment: Augment = Augment.none


def smooth_images(root: Path, side: int, train: int, test: int) -> Path:
    """Random JPEG files in ten classes, as folders."""
    generator = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for number in range(count):
            folder = root / part / str(number % 10)
            folder.mkdir(parents=True, exist_ok=True)
            coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
            image.save(folder / f"{number:05d}.jpg", quality=90)
    return root


def settings(cifar: Path, large: Path) -> list[Setting]:
    return [
        Setting("digits", "digits-cnn", "digits", 64),
        Setting("width 16", "resnet18?width=16", f"folder:{cifar}", 64),
        Setting(
            "width 16, augmented", "resnet18?width=16", f"folder:{cifar}", 64, Augment.crop_flip
        ),
        Setting("224 px", "torchvision:resnet18", f"folder:{large}", 16),
        Setting("resnet18", "resnet18", f"folder:{cifar}", 512),
        Setting("resnet18, augmented", "resnet18", f"folder:{cifar}", 512, Augment.crop_flip),
    ]


def run_of(setting: Setting, dataset: Dataset, config: TrainConfig, folder: Path) -> Run:
    spec = models.complete_for_dataset(
        models.parse(setting.model), dataset.image_shape, len(dataset.classes)
    )
    labels = LabelFile.true_labels(dataset)
    return Run(folder / "r.safetensors", spec, dataset, labels, config, [])


def memtool_epochs(run: Run, device: torch.device) -> Iterator[float]:
    """The seconds of each epoch of `memtool train`, with what it writes."""
    rows = run.train(device, resume=False)
    yield from timed(rows, device)


def timed(epochs: Iterator[object], device: torch.device) -> Iterator[float]:
    start = time.perf_counter()
    for _ in epochs:
        if device.type == "cuda":
            torch.cuda.synchronize()
        yield time.perf_counter() - start
        start = time.perf_counter()


def plain_epochs(setting: Setting, config: TrainConfig, device: torch.device) -> Iterator[float]:
    """The seconds of each epoch of a plain loop, in a process of its own, as a script has it: what
    memtool sets for its process is not for both."""
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=plain_process, args=(its, setting, config, device))
    process.start()
    its.close()
    try:
        for _ in range(config.epochs):
            ours.send(True)
            yield ours.recv()
    finally:
        ours.send(False)
        process.join()


def plain_process(
    asked: Connection, setting: Setting, config: TrainConfig, device: torch.device
) -> None:
    """Tell the seconds of an epoch whenever it is asked for, until it is not."""
    dataset = data.load(setting.data, training=True)
    epochs = timed(plain_loop(setting, dataset, config, device), device)
    while asked.recv():
        asked.send(next(epochs))


def plain_loop(
    setting: Setting, dataset: Dataset, config: TrainConfig, device: torch.device
) -> Iterator[None]:
    run = run_of(setting, dataset, config, Path())
    model = models.build(run.spec).to(device)
    optimizer = make_optimizer(model, config)
    loss_of = nn.CrossEntropyLoss()
    train, test = loaders(setting, dataset, config, device)
    steps = config.epochs * len(train)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: config.rate(step, steps))
    for _ in range(config.epochs):
        model.train()
        for images, labels in train:
            images = images.to(device, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
            optimizer.zero_grad()
            loss_of(model(images), labels).backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            for loader in (train, test):
                hits = 0
                for images, labels in loader:
                    logits = model(images.to(device, non_blocking=True))
                    hits += int((logits.argmax(1).cpu() == labels).sum())
        yield


def loaders(
    setting: Setting, dataset: Dataset, config: TrainConfig, device: torch.device
) -> list[DataLoader]:
    """Training and test images, as tutorials read them."""
    crop = [
        transforms.RandomCrop(dataset.image_shape[1:], padding=dataset.image_shape[1] // 8),
        transforms.RandomHorizontalFlip(),
    ]
    common = [transforms.ToTensor(), transforms.Normalize(dataset.mean, dataset.std)]
    sets: list[torch.utils.data.Dataset]
    if setting.data.startswith("folder:"):
        root = setting.data.removeprefix("folder:")
        first = crop if config.augment is Augment.crop_flip else []
        sets = [
            ImageFolder(f"{root}/train", transforms.Compose([*first, *common])),
            ImageFolder(f"{root}/test", transforms.Compose(common)),
        ]
    else:
        sets = [
            TensorDataset(
                data.normalize(torch.from_numpy(split.images), dataset.mean, dataset.std),
                torch.from_numpy(split.labels),
            )
            for split in (dataset.train, dataset.test)
        ]
    return [
        DataLoader(
            one,
            batch_size=config.batch_size,
            shuffle=shuffle,
            num_workers=os.cpu_count() or 1,
            pin_memory=device.type == "cuda",
            persistent_workers=True,
        )
        for one, shuffle in zip(sets, (True, False), strict=True)
    ]


def flop_per_image(run: Run) -> float:
    """Of a training step: multiplications and additions, forwards and backwards."""
    model = models.build(run.spec).to("meta")
    images = torch.zeros(2, *run.dataset.image_shape, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    return counter.get_total_flops() / 2


def peak(device: torch.device) -> float:
    """The most operations in bf16 per second that a product of matrices reaches."""
    matrix = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    for _ in range(3):
        matrix @ matrix
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        matrix @ matrix
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - start)


def measure(setting: Setting, device: torch.device, turns: int) -> None:
    start = time.perf_counter()
    dataset = data.load(setting.data, training=True)
    reading = time.perf_counter() - start
    chosen = {
        "epochs": turns + 1,
        "batch_size": setting.batch_size,
        "augment": setting.augment,
    }
    name = models.parse(setting.model).name
    precision = Precision.bf16 if device.type == "cuda" else Precision.float32
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(
            setting,
            dataset,
            config_for(name, len(dataset.train), precision=precision, **chosen),
            Path(folder),
        )
        ours = memtool_epochs(run, device)
        plain = plain_epochs(setting, config_for(name, len(dataset.train), **chosen), device)
        with closing(plain):
            next(ours), next(plain)  # kernels are chosen, workers started
            pairs = [(next(ours), next(plain)) for _ in range(turns)]
    images = len(dataset.train)
    ours_, plain_ = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(
        f"{setting.name:20} {images / ours_:9,.0f} images/s, plain loop {images / plain_:9,.0f}: "
        f"{ratio:.2f} x  (reading, once: {reading:.1f} s)",
        flush=True,
    )
    if device.type == "cuda":
        flop = flop_per_image(run) * images / ours_
        nine = NETWORKS * EPOCHS * ours_ / 60
        print(
            f"{'':20} {flop / 1e12:.0f} TFLOP/s, {flop / peak(device):.0%} of the bf16 peak; nine "
            f"networks of {EPOCHS} epochs: {nine:.1f} min",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--only")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    device = choose(arguments.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else torch.get_num_threads()
    print(
        f"PyTorch {torch.__version__}, {where} ({'card' if device.type == 'cuda' else 'threads'})"
    )
    with tempfile.TemporaryDirectory() as folder:
        cifar = arguments.cifar or smooth_images(Path(folder) / "small", 32, 2000, 400)
        large = smooth_images(Path(folder) / "large", 224, 128, 32)
        default = [s.name for s in settings(cifar, large)]
        if device.type == "cpu":  # where the whole resnet18 takes hours
            default = [name for name in default if not name.startswith("resnet18")]
        for setting in settings(cifar, large):
            if setting.name == arguments.only or not arguments.only and setting.name in default:
                measure(setting, device, arguments.turns)


if __name__ == "__main__":
    sys.exit(main())
