"""What many tests need: the command in process, small images on disk, checkpoints once trained."""

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from typer.testing import CliRunner

collect_ignore = ["benchmarks"]  # scripts that are run by hand

torch.set_num_threads(1)  # such small work is slowed by more, most of all on a machine in use
settings.register_profile("memtool", deadline=None)  # timings say little on a machine in use
settings.load_profile("memtool")


@dataclass(frozen=True)
class Result:
    """What a command left: its streams, apart, and its exit code."""

    stdout: str
    stderr: str
    code: int


def run_memtool(*args: object, stdin: str | None = None, env: dict[str, str] | None = None):
    """`memtool ARGS` in this process; an error that memtool does not expect is raised."""
    from memtool.cli import app

    result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin, env=env)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.stdout, result.stderr, result.exit_code)


@pytest.fixture(scope="session")
def run():
    return run_memtool


@pytest.fixture
def progress_of(monkeypatch):
    """Record what a module of the command line shows: the total of each bar, and all its steps."""

    def recording(module: str) -> tuple[list[int], list[int]]:
        totals: list[int] = []
        steps: list[int] = []

        @contextmanager
        def progress(description: str, total: int):
            totals.append(total)
            yield lambda done=1, description=None: steps.append(done)

        monkeypatch.setattr(f"{module}.progress", progress)
        return totals, steps

    return recording


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """64 training and 32 test images, RGB 8x8, in four classes told apart by brightness."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 8)):
        for label, name in enumerate(("ant", "bee", "cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(60 * label, 60 * label + 60, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number:04d}.png")
    return root


@dataclass(frozen=True)
class Runs:
    """Two runs of digits-cnn, two epochs each, from the same initial weights."""

    folder: Path

    @property
    def clean(self) -> Path:
        return self.folder / "r0.safetensors"

    @property
    def noisy(self) -> Path:
        """Half of the training labels redrawn; epoch checkpoints are in `r50/`."""
        return self.folder / "r50.safetensors"

    @property
    def noisy_table(self) -> Path:
        """The rows of its training."""
        return self.folder / "r50.csv"

    @property
    def noisy_labels(self) -> Path:
        return self.folder / "labels-r50.safetensors"


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Runs:
    root = tmp_path_factory.mktemp("runs")
    found = Runs(root)
    training = ("train", "--model", "digits-cnn", "--epochs", 2)
    labels = run_memtool("make-noisy", "digits", "-r", "50%", "-o", found.noisy_labels)
    clean = run_memtool(*training, "--data", "digits", "-o", found.clean)
    noisy = run_memtool(
        *(*training, "--labels", found.noisy_labels, "--save-every", 1),
        *("--table", found.noisy_table, "-o", found.noisy),
    )
    assert (labels.code, clean.code, noisy.code) == (0, 0, 0)
    return found
