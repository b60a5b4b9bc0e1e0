"""A disk that is full, at any write: one line, the old files, and nothing else."""

import resource
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file


@contextmanager
def room(size):
    """Within the block, no file can become larger than `size` bytes; as on a full disk, writing
    beyond is an error of the system, also for libraries that are no Python."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def commands(runs, tmp_path):
    """What writes files, by its name; outputs are in `out`."""
    out, weights = tmp_path / "out", tmp_path / "weights.pth"
    torch.save(load_file(runs.clean), weights)
    train = ("train", "--model", "digits-cnn", "--data", "digits?samples_train=64")
    sweep = ("stitch", runs.noisy, runs.clean, "--at", "block1,block2", "--epochs", 0)
    return {
        "make-noisy": ("make-noisy", "digits", "-r", "5%", "-o", out / "x.safetensors"),
        "train": (*train, "--epochs", 1, "--save-at", 0, "-o", out / "x.safetensors"),
        "table": (*train, "--epochs", 1, "--table", out / "x.csv", "-o", out / "y.safetensors"),
        "cka": ("cka", runs.noisy, runs.clean, "--samples", 64, "-o", out / "x.csv"),
        "stitch": (*sweep, "-o", out / "x.csv"),
        "save": (*sweep, "--save", out),
        "plot": ("plot", runs.noisy_table, "-o", out / "x.png", "-o", out / "x.svg"),
        "convert": ("convert", weights, "--model", "digits-cnn", "-o", out / "x.safetensors"),
    }


NAMES = ["make-noisy", "train", "table", "cka", "stitch", "save", "plot", "convert"]


@pytest.mark.parametrize("size", [0, 60, 5000])
@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_one_line_and_leaves_nothing(run, commands, tmp_path, name, size):
    command, out = commands[name], tmp_path / "out"
    with room(size):
        done = run(*command)
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    if done.code == 0:  # what it writes is smaller
        assert size == 5000 and not errors
        return
    assert done.code == 1 and len(errors) == 1
    assert "cannot be written" in errors[0] and "File too large" in errors[0]
    assert not out.exists() or not [path for path in names(out) if "state" not in path]


@pytest.mark.parametrize("name", NAMES)
def test_what_was_there_stays_when_the_disk_is_full(run, commands, tmp_path, name):
    command, out = commands[name], tmp_path / "out"
    out.mkdir()
    (out / "x.csv").write_text("old")
    with room(0):
        assert run(*command).code == 1
    assert names(out) == ["x.csv"] and (out / "x.csv").read_text() == "old"
