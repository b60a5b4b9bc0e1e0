"""Exact CKA of ten thousand images within a budget of memory: its time, its memory, its numbers.

    python tests/benchmarks/exact.py [--data folder:cifar10] [--n 10000] [--memory 4GiB]
        [--model resnet18] [--layers PATTERNS] [--check PATTERNS] [--threads 2]

Two networks of one kind with random weights; --model resnet18 is the one for 32x32, whose first
block has 65,536 features. Runs the command `memtool cka --estimator exact` on files; its time is
told as a ratio to the bare forward passes of both networks over the same images, and its peak
memory as what is above theirs, each in a process of its own. Then the values of the layers that
--check names are compared with biased HSIC of all images in float64, tr(K H L H) / (n - 1)^2.

With the defaults that takes half an hour on two cores, and 12 GB for the check. Without --data,
the images are smooth noise.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from memtool import data, layers
from memtool.checkpoints import Checkpoint, Network
from memtool.models.building import build
from memtool.models.sources import parse

BATCH = 250


def write_images(n: int, path: Path) -> str:
    """n smooth random images to test on, ten to train on; the data spec."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(n, 3, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=32, mode="bilinear")
    images = (smooth * 60 + 128).clamp(0, 255).byte()
    labels = torch.arange(n) % 10
    train = {"train_images": images[:10].clone(), "train_labels": labels[:10].clone()}
    save_file({"test_images": images, "test_labels": labels, **train}, path)
    return str(path)


def write_checkpoint(model: str, seed: int, path: Path) -> Path:
    torch.manual_seed(seed)
    save_file(build(parse(model)).state_dict(), path)
    return path


def networks(arguments: argparse.Namespace) -> tuple[list[Network], torch.Tensor]:
    dataset = data.load(arguments.data)
    opened = [
        Checkpoint.open(path, parse(arguments.model)).with_dataset(dataset)
        for path in arguments.paths
    ]
    images = torch.from_numpy(dataset.test.images)
    return [one.network(torch.device("cpu")) for one in opened], images


def bare(arguments: argparse.Namespace) -> None:
    """Run the bare forward passes, and print the seconds that they take."""
    both, images = networks(arguments)
    start = time.perf_counter()
    with torch.inference_mode():
        for batch in images.split(BATCH):
            for network in both:
                network(batch)
    print(time.perf_counter() - start)


def run(command: list[str]) -> tuple[str, float, float]:
    """The standard output of a command, its wall time in seconds and its peak memory in MB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed")
    return output, time.perf_counter() - start, usage.ru_maxrss / 1024


def centered_grams(network: Network, names: list[str], images: torch.Tensor) -> list[torch.Tensor]:
    """H K H of the float32 activations of each layer, in float64."""
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    with torch.inference_mode():
        keep = lambda name, tensor: kept[name].append(tensor.flatten(1).clone())  # noqa: E731
        with layers.observed(network.model, names, keep):
            for batch in images.split(BATCH):
                network(batch)
        grams = []
        for name in names:
            parts = kept.pop(name)
            k = torch.zeros(len(images), len(images), dtype=torch.float64)
            for start in range(0, parts[0].shape[1], 4096):
                x = torch.cat([part[:, start : start + 4096] for part in parts]).double()
                x -= x.mean(0)
                k.addmm_(x, x.T)
            grams.append(k)
    return grams


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data")
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--memory", default="4GiB")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--layers", default="layer?.?,fc")
    parser.add_argument("--check", default="layer?.1,fc")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--paths", nargs="*", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    if arguments.bare:
        return bare(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = arguments.data or write_images(arguments.n, folder / "images.safetensors")
        arguments.data = data.with_options(spec, samples=arguments.n)
        arguments.paths = [
            write_checkpoint(arguments.model, seed, folder / f"{seed}.safetensors")
            for seed in (0, 1)
        ]
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    paths = [str(path) for path in arguments.paths]
    options = ["--data", arguments.data, "--model", arguments.model]
    child = [sys.executable, __file__, "--bare", *options, "--threads", str(arguments.threads)]
    output, _, bare_peak = run([*child, "--paths", *paths])
    seconds = float(output)
    print(f"bare forward passes of both networks: {seconds:.0f} s, {bare_peak:.0f} MB", flush=True)
    command = [sys.executable, "-m", "memtool", "cka", *paths, *options, "--format", "csv"]
    command += ["--estimator", "exact", "--memory", arguments.memory, "--layers", arguments.layers]
    output, wall, peak = run(command)
    print(
        f"memtool cka: {wall:.0f} s, {wall / seconds:.2f} x bare; "
        f"{peak:.0f} MB, {peak - bare_peak:.0f} MB above bare",
        flush=True,
    )
    rows = {row["layer"]: row for row in csv.DictReader(output.splitlines())}
    both, images = networks(arguments)
    found = layers.trace(both[0].model, both[0].normalized(images[:2]))
    names = [layer.name for layer in layers.select(found, arguments.check.split(","), "--check")]
    x, y = (centered_grams(network, names, images) for network in both)
    for layer, k, l in zip(names, x, y, strict=True):  # noqa: E741
        expected = (k * l).sum() / (k.norm() * l.norm())
        error = float(rows[layer]["cka"]) - expected.item()
        print(f"{layer:<12} CKA {expected.item():.6f}, error {error:+.1e}", flush=True)


if __name__ == "__main__":
    main()
