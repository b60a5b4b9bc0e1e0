"""The paper as steps: run, skipped, printed as commands and as a Makefile; and what it finds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memtool import MemtoolError
from memtool import tables as table
from memtool.cli import main
from memtool.reproduction import findings
from memtool.reproduction import steps as reproduce
from memtool.reproduction.recipes import Study
from memtool.reproduction.steps import Recipe, Step

TINY = Recipe(
    data="digits",
    train="--model digits-cnn --epochs 2 --save-every 1",
    epochs=(1, 2),
    layers="block1,fc",
    cuts="block2",
)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """One noise ratio, two epochs, two layers, one cut."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(reproduce.RECIPES, Study.digits, TINY)
    monkeypatch.setattr(reproduce, "RATIOS", (0,))
    return reproduce.steps(Study.digits, Path("out"), seeds=1)


def step(output, inputs=(), *arguments):
    return Step(Path(output).name, ("make-noisy", "digits", *arguments), tuple(inputs), output)


def test_a_step_is_done_when_its_output_is_not_older_than_its_inputs(tmp_path):
    source, output = tmp_path / "source", tmp_path / "output"
    one = step(output, [source])
    source.touch()
    assert not one.is_done()
    output.touch()
    assert one.is_done()
    os.utime(output, ns=(0, source.stat().st_mtime_ns - 1))
    assert not one.is_done()
    source.unlink()
    assert not one.is_done()


def test_every_step_comes_after_those_it_needs():
    steps = reproduce.steps(Study.digits, Path("out"), seeds=2)
    made = set()
    for one in steps:
        assert made.issuperset(one.inputs)
        made.add(one.output)
    assert len(made) == len(steps)


def test_steps_run_once_and_again_only_when_an_input_is_newer(tiny):
    done = list(reproduce.run(tiny, jobs=2, command=main))
    assert [one.seconds for one in done].count(None) == 0
    assert sorted(path.name for path in Path("out").glob("*.*")) == sorted(
        f"{stem}.{suffix}"
        for stem in reproduce.FIGURES.values()
        for suffix in ("csv", "pdf", "png")
    )
    again = list(reproduce.run(tiny, jobs=2, command=main))
    assert {one.seconds for one in again} == {None}

    Path("out/tables/stitching-r0-s0.csv").touch()
    remade = [one.step.name for one in reproduce.run(tiny, 2, main) if one.seconds is not None]
    assert sorted(remade) == [f"figure2-stitching.{suffix}" for suffix in ("csv", "pdf", "png")]


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_the_makefile_gives_the_same_tables(tiny):
    tables = [one for one in tiny if one.output.suffix not in (".pdf", ".png")]
    list(reproduce.run(tables, jobs=2, command=main))
    ours = {path: path.read_bytes() for path in Path("out").rglob("*.csv")}
    assert len(ours) == 2 * len(reproduce.FIGURES)
    shutil.move("out", "ours")
    Path("Makefile").write_text(reproduce.makefile(tables, ["--version"]))
    make = ["make", "-j2", f"MEMTOOL={sys.executable} -m memtool"]
    environment = os.environ | {"PYTHONPATH": str(Path(reproduce.__file__).parent.parent)}
    subprocess.run(make, env=environment, check=True, capture_output=True)
    assert {path: path.read_bytes() for path in Path("out").rglob("*.csv")} == ours
    assert subprocess.run([*make, "-q", *map(str, ours)], env=environment).returncode == 0


def test_a_failed_step_is_told_with_its_command_and_the_others_end(tiny, tmp_path):
    broken = step(tmp_path / "x.safetensors", [], "-r", "5%")
    with pytest.raises(MemtoolError) as error:
        list(reproduce.run([broken, *tiny], jobs=2, command=main))
    assert "Missing option '-o'" in str(error.value)
    assert "memtool make-noisy digits -r 5%)" in str(error.value)


def warn(arguments):
    print("a note\nmemtool: warning: a layer is constant", file=sys.stderr)
    Path(arguments[-1]).touch()


def test_what_a_step_warns_of_is_passed_on(tmp_path):
    one = step(tmp_path / "x", [], "-o", str(tmp_path / "x"))
    (done,) = reproduce.run([one], jobs=1, command=warn)
    assert done.warnings == ("memtool: warning: a layer is constant",)


def test_make_cannot_take_every_path():
    with pytest.raises(MemtoolError, match="a b/labels"):
        reproduce.makefile(reproduce.steps(Study.digits, Path("a b"), seeds=1), [])


def test_dry_run_prints_the_commands_still_to_run(run, tmp_path):
    labels = tmp_path / "labels/r0-s0.safetensors"
    commands = run("reproduce", "digits", "-o", tmp_path, "--dry-run").stdout.splitlines()
    assert commands[0] == f"memtool make-noisy digits -r 0% --seed 0 -o {labels}"
    assert len(commands) == len(reproduce.steps(Study.digits, tmp_path, 1))
    labels.parent.mkdir()
    labels.touch()
    rest = run("reproduce", "digits", "-o", tmp_path, "--dry-run").stdout.splitlines()
    assert rest == commands[1:]


# ---------------------------------------------------------------- findings


def test_spearman_is_that_of_the_ranks():
    assert findings.spearman([1, 2, 3, 4], [10, 20, 25, 300]) == pytest.approx(1)
    # Without ties it is 1 - 6 sum(d^2) / (n (n^2 - 1)); the ranks differ by 1, 1, 0, 0 here.
    assert findings.spearman([1, 2, 3, 4], [2, 1, 3, 4]) == pytest.approx(1 - 6 * 2 / 60)


def test_a_mean_is_over_the_rows_that_meet_the_conditions():
    rows = [{"a": 1, "y": 2.0}, {"a": 1, "y": 4.0}, {"a": 1, "y": None}, {"a": 2, "y": 9.0}]
    assert findings.mean(rows, "y", a=1) == 3
    assert findings.mean(rows, "y", a=3) != findings.mean(rows, "y", a=3)  # NaN: there are none


@pytest.mark.slow
def test_the_digits_show_what_the_paper_says(tmp_path):
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": str(Path(reproduce.__file__).parent.parent)}

    def memtool(*arguments):
        words = [sys.executable, "-m", "memtool", "reproduce", "digits", "-o", str(out), *arguments]
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=True)

    first = memtool("-j", "2")
    (tmp_path / "findings.csv").write_text(first.stdout)
    rows = table.read(tmp_path / "findings.csv")
    assert len(rows) == 15
    assert [row for row in rows if not row["holds"]] == []
    trained = [line for line in first.stderr.splitlines() if line.startswith("train r")]
    assert len(trained) == len(reproduce.RATIOS)
    for stem in reproduce.FIGURES.values():
        assert (out / f"{stem}.pdf").read_bytes().startswith(b"%PDF")
        assert (out / f"{stem}.png").read_bytes().startswith(b"\x89PNG")

    second = memtool()
    assert second.stdout == first.stdout
    assert "train r0" not in second.stderr
    assert memtool("--dry-run").stdout == ""
