"""What tests of data sets share: random pictures, folders and files of them, and `refused`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from memtool import MemtoolError, data


def _picture(height: int, width: int, seed: int = 0, channels: int = 3) -> Image.Image:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze())


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """`picture(height, width, seed=0, channels=3)`: a random image."""
    return _picture


@pytest.fixture(scope="session")
def write() -> Callable[..., None]:
    """`write(root, part, count, suffix="png")`: `count` images of 4x4 for each of two classes."""

    def write(root: Path, part: str, count: int, suffix: str = "png") -> None:
        for label, name in enumerate(("ant", "bee")):
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                seed = 100 * label + number
                _picture(4, 4, seed).save(root / part / name / f"{number}.{suffix}")

    return write


@pytest.fixture(scope="session")
def saved() -> Callable[..., Path]:
    """`saved(path, **arrays)`: `path`, as an .npz or .safetensors file of these arrays."""

    def saved(path: Path, **arrays: np.ndarray) -> Path:
        if path.suffix == ".npz":
            np.savez_compressed(path, **arrays)
        else:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
        return path

    return saved


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """`refused(spec, **options)`: the one line by which `load` refuses `spec`."""

    def refused(spec: object, **options: object) -> str:
        with pytest.raises(MemtoolError) as caught:
            data.load(str(spec), **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refused
