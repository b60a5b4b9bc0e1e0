"""How fast folders of images are read: `python tests/benchmarks/folder.py [IMAGES]`.

Makes JPEG files of several sizes and reads them with a plain PIL loop in one thread and with
`data.load`, in turns; prints the median times of an image and the median of their ratios. Small
images should take about 1.0 of the loop's time, as PIL holds the interpreter for most of it; large
ones should come down to 1 / cores.
"""

import operator
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from memtool import data

TURNS = 5
SIDES = (32, 96, 224, 512)


def make(root: Path, side: int, count: int) -> None:
    """`count` smooth random images, in two classes."""
    generator = np.random.default_rng(0)
    for label in range(2):
        (root / str(label)).mkdir(parents=True)
    for number in range(count):
        coarse = generator.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        image.save(root / str(number % 2) / f"{number:05d}.jpg", quality=90)


def plain(root: Path) -> np.ndarray:
    images = []
    for path in sorted(root.glob("*/*.jpg")):
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB")))
    return np.stack(images).transpose(0, 3, 1, 2)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(count: int) -> None:
    for side in SIDES:
        with tempfile.TemporaryDirectory() as folder:
            root, images = Path(folder), max(64, count * 32 // side)
            make(root, side, images)
            assert (plain(root) == data.load(f"folder:{root}").test.images).all()
            ours, loop = [], []
            for _ in range(TURNS):
                loop.append(seconds(partial(plain, root)) / images)
                ours.append(seconds(partial(data.load, f"folder:{root}")) / images)
        ratio = statistics.median(map(operator.truediv, ours, loop))
        print(
            f"{side:4d} px  PIL loop {statistics.median(loop) * 1e6:6.0f} us  "
            f"memtool {statistics.median(ours) * 1e6:6.0f} us  ratio {ratio:.2f}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
