"""Every command twice, in other surroundings: equal bytes."""

import locale
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
OTHER = {"PYTHONHASHSEED": "2", "TZ": "Asia/Kathmandu", "COLUMNS": "40", "NO_COLOR": "1"}
LOCALES = ("C.UTF-8", "tr_TR.UTF-8", "de_DE.UTF-8")
# The first line makes matplotlib set the locale of the whole process.
SETTINGS = "axes.formatter.use_locale: True\ntext.usetex: True\nsavefig.bbox: tight\n"


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


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return made(tmp_path_factory.mktemp("plain") / "one", "022", PLAIN)


def has_locale(name):
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, name)
    except locale.Error:
        return False
    finally:
        locale.setlocale(locale.LC_ALL, before)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("name", LOCALES)
def test_nothing_around_a_command_changes_what_it_makes(tmp_path, one, name):
    if not has_locale(name):
        pytest.skip(f"the system has no locale {name}")
    (tmp_path / "matplotlibrc").write_text(SETTINGS)
    around = {**OTHER, "LC_ALL": name, "MPLCONFIGDIR": str(tmp_path)}
    other = made(tmp_path / "an" / "other place", "077", around)
    assert sorted(one) == sorted(other)
    assert [name for name in one if one[name] != other[name]] == []
    suffixes = {name.rpartition(".")[2] for name in one}
    assert suffixes == {"safetensors", "csv", "svg", "pdf", "png", "html"}
