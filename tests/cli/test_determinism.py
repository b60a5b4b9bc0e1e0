"""Every command twice, in other surroundings: equal bytes."""

import os
import subprocess
import sys

import pytest

# All commands in one process; paths are relative, for they are in the tables.
EVERY = """
import os, sys
os.umask(int(sys.argv[2], 8))
os.makedirs(sys.argv[1])
os.chdir(sys.argv[1])
from memtool.cli import app

TRAIN = "train --model digits-cnn --epochs 1 -o out/runs"
for command in (
    "make-noisy digits?samples_train=64 -r 50% -o out/labels.safetensors",
    TRAIN + "/training-r0-s0.safetensors --data digits?samples_train=64",
    TRAIN + "/r50.safetensors --labels out/labels.safetensors --save-at 0,1 "
    "--table out/tables/training-r50-s0.csv",
    "cka out/runs/r50.safetensors out/runs/training-r0-s0.safetensors --samples 64 --pairs all "
    "-o out/cka.csv",
    "stitch out/runs/r50.safetensors out/runs/training-r0-s0.safetensors --at block1 --epochs 1 "
    "--save out/stitched -o out/stitch.csv",
    "plot out/cka.csv -o out/a.csv -o out/a.svg -o out/a.pdf -o out/a.png",
    "info out/runs/r50.safetensors out/labels.safetensors -o out/info.csv",
    "convert out/runs/r50.safetensors -o out/converted.safetensors",
    "report out",
):
    try:
        app(command.split())
    except SystemExit as done:
        assert not done.code, command
"""
PLAIN = {"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "UTC"}
OTHER = {"PYTHONHASHSEED": "2", "LC_ALL": "tr_TR.UTF-8", "LANG": "de_DE.UTF-8"}
OTHER |= {"TZ": "Asia/Kathmandu", "COLUMNS": "40", "NO_COLOR": "1"}


def made(folder, umask, variables):
    """What all commands make in `folder`, by name."""
    subprocess.run(
        [sys.executable, "-c", EVERY, folder, umask],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd(), **variables},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.slow
def test_nothing_around_a_command_changes_what_it_makes(tmp_path):
    one = made(tmp_path / "one", "022", PLAIN)
    other = made(tmp_path / "an" / "other place", "077", OTHER)
    assert sorted(one) == sorted(other)
    assert [name for name in one if one[name] != other[name]] == []
    suffixes = {name.rpartition(".")[2] for name in one}
    assert suffixes == {"safetensors", "csv", "svg", "pdf", "png", "html"}
