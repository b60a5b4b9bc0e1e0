"""Folders that outgrow memory: `python tests/benchmarks/large_folder.py [--images N] [--beside]`.

Makes an ImageNet-like folder (JPEG files of 500x375 pixels, one in 26 of them for testing) and runs
make-noisy twice, train twice, cka and stitch on it at 224 px, with a --memory that the decoded
images exceed; prints, for each command, its time and the most anonymous memory that it has, which
leaves out the pages of a mapped file that the system may drop at any time. `--beside` runs train
with the images in memory, too. Then it lists and decodes `--listing` tiny images (links to a few),
to see what each image of a large folder takes when its pixels take next to nothing. Both are
extrapolated to the 1.3 million images of ImageNet.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

IMAGENET = 1_300_000
SIDE = 224
CLASSES = 10
DISTINCT = 200  # images; the other files are copies, since making them takes longer than reading


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds, and bytes of anonymous memory at its peak."""

    seconds: float
    anonymous: int


def make(root: Path, count: int, size: tuple[int, int], link: bool = False) -> None:
    """`count` JPEG files, of which one in 26 is a test image."""
    generator = np.random.default_rng(0)
    contents = []
    for number in range(min(count, DISTINCT)):
        coarse = generator.integers(0, 256, (size[1] // 5 + 1, size[0] // 5 + 1, 3), dtype=np.uint8)
        file = root / f"{number}.jpg"
        root.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, quality=90)
        contents.append(file)
    for number in range(count):
        part = "val" if number % 26 == 0 else "train"
        folder = root / part / f"n{number // 26 % CLASSES:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        source, target = contents[number % len(contents)], folder / f"{number:08d}.JPEG"
        os.link(source, target) if link else target.write_bytes(source.read_bytes())


def run(*args: object, cache: Path) -> Cost:
    """`memtool ARGS`, watched from outside."""
    start, peak = time.perf_counter(), 0
    command = [sys.executable, "-m", "memtool", *map(str, args), "-q"]
    environment = {**os.environ, "MEMTOOL_CACHE": str(cache)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return Cost(time.perf_counter() - start, peak)


def anonymous(pid: int) -> int:
    """The anonymous memory of a process now, in bytes."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has ended
        return 0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
    return 1024 * int(found[0]) if found else 0


def show(what: str, cost: Cost, images: int) -> None:
    print(
        f"{what:34s} {cost.seconds:8.1f} s {1e3 * cost.seconds / images:9.2f} ms an image "
        f"{cost.anonymous / 2**20:7.0f} MiB",
        flush=True,
    )


def commands(root: Path, options: argparse.Namespace) -> None:
    """Each command on a folder at 224 px."""
    images, memory, model = options.images, options.memory, options.model
    data, cache = f"folder:{root / 'photos'}?image_size={SIDE}", root / "cache"
    make(root / "photos", images, (500, 375))
    pixels = images * 3 * SIDE * SIDE
    print(f"{images:,} images of {SIDE} px: {pixels / 2**20:,.0f} MiB; --memory {memory}; {model}")
    labels, one, two = (root / f"{name}.safetensors" for name in ("labels", "one", "two"))
    noisy = ("make-noisy", data, "-r", 0, "-o", labels, "--memory", memory)
    cold, warm = run(*noisy, cache=cache), run(*noisy, cache=cache)
    show("make-noisy, which decodes", cold, images)
    show("make-noisy again", warm, images)
    train = ("train", "--model", model, "--data", data, "--epochs", 1, "--batch-size", 32)
    for seed, output in enumerate((one, two)):
        cost = run(*train, "--seed", seed, "-o", output, "--memory", memory, cache=cache)
        show(f"train, 1 epoch, seed {seed}", cost, images)
    if options.beside:
        output = root / "beside.safetensors"
        cost = run(*train, "-o", output, "--memory", "64GiB", cache=cache)
        show("train, images in memory", cost, images)
    cost = run("cka", two, one, "--layers", options.layers, "--memory", memory, cache=cache)
    show("cka, test images", cost, images // 26)
    stitch = ("stitch", two, one, "--at", options.cut, "--epochs", 1)
    show("stitch, 1 cut, 1 epoch", run(*stitch, "--memory", memory, cache=cache), images)
    decoding = (cold.seconds - warm.seconds) / images
    print(
        f"\n{IMAGENET:,} images: decoded once in {decoding * IMAGENET / 3600:.1f} h into a file of "
        f"{IMAGENET * 3 * SIDE * SIDE / 2**30:.0f} GiB ({1e3 * decoding:.2f} ms an image, "
        f"{os.cpu_count()} cores)"
    )


def listing(root: Path, images: int) -> None:
    """Reading a folder of many tiny images, decoded and warm."""
    sizes = (images // 10, images)
    costs = []
    for count in sizes:
        folder, cache = root / f"tiny{count}", root / f"cache{count}"
        make(folder, count, (8, 8), link=True)
        data = f"folder:{folder}?image_size=8"
        noisy = ("make-noisy", data, "-r", 0, "-o", root / "l.safetensors", "--memory", "1KiB")
        costs.append((run(*noisy, cache=cache), run(*noisy, cache=cache)))
        for what, cost in zip(("decoded", "warm"), costs[-1], strict=True):
            show(f"make-noisy, {count:,} of 8 px, {what}", cost, count)
    for what, (few, many) in zip(
        ("decoding", "a warm start"), zip(*costs, strict=True), strict=True
    ):
        scale = (IMAGENET - sizes[1]) / (sizes[1] - sizes[0])
        seconds = many.seconds + scale * (many.seconds - few.seconds)
        memory = many.anonymous + scale * (many.anonymous - few.anonymous)
        print(
            f"{IMAGENET:,} images, beside their pixels: {what} takes {seconds:.0f} s and "
            f"{memory / 2**20:,.0f} MiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=520)
    parser.add_argument("--listing", type=int, default=130_000)
    parser.add_argument("--memory", default="64MiB", help="less than the images take")
    parser.add_argument("--model", default="torchvision:shufflenet_v2_x0_5")
    parser.add_argument("--layers", default="stage?", help="that cka compares")
    parser.add_argument("--cut", default="stage3", help="where stitch cuts")
    parser.add_argument("--beside", action="store_true", help="train in memory, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        commands(root, options)
        listing(root, options.listing)


if __name__ == "__main__":
    main()
