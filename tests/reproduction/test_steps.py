"""Steps: what they need, when they are done, and how they look as commands and as a Makefile."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import memtool
from memtool import MemtoolError
from memtool.cli import main
from memtool.reproduction import (
    FIGURES,
    RECIPES,
    Step,
    Study,
    run_steps,
    steps_for,
    to_makefile,
)

DIGITS = RECIPES[Study.digits]


def test_a_step_is_done_when_its_output_is_not_older_than_its_inputs(tmp_path):
    source, output = tmp_path / "source", tmp_path / "output"
    one = Step("labels", ("make-noisy", "digits"), (source,), output)
    source.touch()
    assert not one.is_done()
    output.touch()
    assert one.is_done()
    os.utime(output, ns=(0, source.stat().st_mtime_ns - 1))
    assert not one.is_done()
    source.unlink()
    assert not one.is_done()


def test_every_step_comes_after_those_it_needs():
    steps = steps_for(DIGITS, Path("out"), seeds=2)
    made = set()
    for one in steps:
        assert made.issuperset(one.inputs)
        made.add(one.output)
    assert len(made) == len(steps)


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_the_makefile_gives_the_same_tables(tiny):
    """Labels, a training, CKA, stitching, and a figure of each of the last two as a table: every
    command once or twice, since make starts a process for each step."""
    left_out = ("divergence", FIGURES["divergence"], FIGURES["training"])
    tables = [
        one
        for one in tiny
        if not one.name.startswith(left_out) and one.output.suffix not in (".pdf", ".png")
    ]
    list(run_steps(tables, jobs=2, command=main))
    ours = {path: path.read_bytes() for path in Path("out").rglob("*.csv")}
    assert len(ours) == 5
    shutil.move("out", "ours")
    Path("Makefile").write_text(to_makefile(tables, ["--version"]))
    make = ["make", "-j2", f"MEMTOOL={sys.executable} -m memtool"]
    environment = os.environ | {"PYTHONPATH": str(Path(memtool.__file__).parents[1])}
    subprocess.run(make, env=environment, check=True, capture_output=True)
    assert {path: path.read_bytes() for path in Path("out").rglob("*.csv")} == ours
    assert subprocess.run([*make, "-q", *map(str, ours)], env=environment).returncode == 0


def test_make_cannot_take_every_path():
    with pytest.raises(MemtoolError, match="a b/labels"):
        to_makefile(steps_for(DIGITS, Path("a b"), seeds=1), [])
