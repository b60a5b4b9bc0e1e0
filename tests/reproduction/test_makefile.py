"""The Makefile: the same steps, short and to be changed."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import memtool
from memtool import MemtoolError
from memtool.cli import main
from memtool.reproduction import RECIPES, Recipe, Study, run_steps, steps_for, to_makefile

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


def printed(*arguments):
    """The commands that make would run here, as words."""
    done = subprocess.run(["make", "-n", *arguments], check=True, capture_output=True, text=True)
    lines = done.stdout.replace("\\\n", "").splitlines()
    return [shlex.split(line) for line in lines]


def steps(recipe):
    return sorted(["memtool", *one.arguments] for one in steps_for(recipe, Path("out")))


@pytest.mark.parametrize("study", Study)
def test_make_runs_the_steps(tmp_path, monkeypatch, study):
    monkeypatch.chdir(tmp_path)
    recipe = RECIPES[study].but(seeds=2, train="--augment crop-flip --clip-norm 1")
    Path("Makefile").write_text(to_makefile(recipe, Path("out"), study))
    *commands, last = printed()
    assert sorted(commands) == steps(recipe)
    assert last[:5] == ["memtool", "reproduce", study, "-o", "out"]


def test_what_is_changed_in_the_makefile_is_what_would_be_chosen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.of("folder:some photos?image_size=32", "timm:vit")
    Path("Makefile").write_text(to_makefile(recipe, Path("out"), None))
    changed = {
        "DATA": "x.npz",
        "MODEL": "cnn",
        "RATIOS": "0 12.5 50",
        "SUPPLEMENT": "50",
        "SEEDS": "3",
        "EPOCHS": "9",
        "SAVED": "0003",
        "LAYERS": "block?",
        "CUTS": "block1,block2",
        "TRAIN": "--batch-size 8",
        "CKA": "--estimator minibatch",
        "SAMPLES": "100",
        "STITCH": "--epochs 2",
    }
    other = Recipe(
        *("x.npz", "cnn", 9, (3,), "block?", "block1,block2", (0, 12.5, 50), 3),
        *("--batch-size 8", "--estimator minibatch", 100, "--epochs 2", (50,)),
    )
    *commands, last = printed(*(f"{name}={value}" for name, value in changed.items()))
    assert sorted(commands) == steps(other)
    # The last command is told the same choices.
    assert last[last.index("--ratios") + 1] == "0% 12.5% 50%"
    assert last[last.index("--supplement") + 1] == "50%"
    options = ("--data", "--model", "--seeds", "--epochs", "--layers", "--cuts", "--train")
    for option in (*options, "--samples"):
        name = option.removeprefix("--").upper()
        assert last[last.index(option) + 1] == changed[name]


def test_the_last_epoch_is_not_among_those_saved_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = RECIPES[Study.digits].but(ratios=(0, 50), epochs=4, saved=(1, 2))
    Path("Makefile").write_text(to_makefile(recipe, Path("out"), Study.digits))
    *commands, _ = printed("EPOCHS=2")
    assert sorted(commands) == steps(recipe.but(epochs=2, saved=(1, 2)))


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The Makefile of a recipe all of whose files are there."""
    monkeypatch.chdir(tmp_path)
    recipe = RECIPES[Study.digits].but(ratios=(0, 50), epochs=4, saved=(2,))
    Path("Makefile").write_text(to_makefile(recipe, Path("out"), Study.digits))
    for place, one in enumerate(steps_for(recipe, Path("out"))):
        for path in (one.root / output for output in one.outputs):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.utime(path, (place, place))
    return recipe


def test_make_makes_what_is_missing_and_what_comes_of_that(made):
    (last,) = printed()
    assert last[1] == "reproduce"
    *commands, _ = printed("RATIOS=0 25 50")
    assert {words[1] for words in commands if any("r25-s0" in word for word in words)} == {
        *("make-noisy", "train", "cka", "stitch", "plot"),
    }
    for path in Path("out/tables").glob("cka-*"):
        path.unlink()
    *commands, _ = printed("CKA=--estimator unbiased")
    assert {words[1] for words in commands} == {"cka", "plot"}
    shutil.rmtree("out/runs")
    *commands, _ = printed("EPOCHS=4")
    assert {words[1] for words in commands} == {"train", "cka", "stitch", "plot"}


def test_every_file_is_made_or_make_tells_how(made):
    for path in ("out/report.html", "out/findings.csv"):
        (last,) = printed(path)
        assert last[:5] == ["memtool", "reproduce", "digits", "-o", "out"]
    for network in ("out/runs/r50-s0", "out/runs/ceiling-s0"):
        checkpoint = f"{network}/epoch-0002.safetensors"
        done = subprocess.run(["make", checkpoint], capture_output=True, text=True)
        told = f"{checkpoint}: comes with {network}.safetensors; make that, once it is removed"
        assert done.returncode != 0 and told in done.stderr
    assert [words[1] for words in printed("SAVED=")] == ["reproduce"]  # without any checkpoint


def test_make_removes_no_network_when_it_is_stopped(tmp_path, monkeypatch):
    """The table that comes with it may not be there yet."""
    monkeypatch.chdir(tmp_path)
    recipe = RECIPES[Study.digits].but(ratios=(0,))
    Path("Makefile").write_text(to_makefile(recipe, Path("out"), Study.digits))
    goal, network = "out/tables/training-r0-s0.csv", Path("out/runs/r0-s0.safetensors")
    network.parent.mkdir(parents=True)
    for path in (Path("out/labels/r0-s0.safetensors"),):
        path.parent.mkdir(parents=True)
        path.touch()
    script = tmp_path / "memtool"
    script.write_text(f"#!/bin/sh\ntouch {network}\nexec sleep 600\n")
    script.chmod(0o755)
    command = ["make", goal, f"MEMTOOL={script}"]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        while not network.exists():
            time.sleep(0.05)
        os.killpg(
            process.pid, signal.SIGTERM
        )  # SIGINT may be ignored, as in a job of the background
        assert process.wait(60) != 0
    assert network.exists()


def test_the_folder_itself(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("Makefile").write_text(run("reproduce", "digits", "-o", ".", "--makefile").stdout)
    *commands, _ = printed()
    assert [words for words in commands if words[1] == "train"]


def test_data_elsewhere_are_found_there(run, monkeypatch):
    recipe = ("reproduce", "cifar10", "-o", "out", "--data-dir", "my data")
    monkeypatch.setenv("MEMTOOL_DATA", "other")
    makefile = run(*recipe, "--makefile")
    assert "\nexport MEMTOOL_DATA ?= my data\n" in makefile.stdout
    monkeypatch.setenv("MEMTOOL_DATA", "other")
    lines = run(*recipe, "--dry-run").stdout.splitlines()
    assert all(line.startswith("MEMTOOL_DATA='my data' memtool ") for line in lines)


def test_code_that_was_typed_is_trusted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = Recipe.of("digits", "net.py:make")
    Path("Makefile").write_text(to_makefile(code, Path("out"), None))
    *commands, _ = printed()
    assert sorted(commands) == steps(code)
    assert {words[1] for words in commands if "--trust" in words} == {"cka", "stitch"}
    *commands, _ = printed("MODEL=cnn")
    assert not any("--trust" in words for words in commands)


def test_options_are_the_same_words_to_make_and_its_shell(tmp_path, monkeypatch):
    """What the shell would obey among them, too."""
    monkeypatch.chdir(tmp_path)
    words = ["a&b", "a;touch b", "a|b", "(a)", "<a", "~", "*", "[a]?", "{a,b}", "!a", " a  ", ""]
    options = " ".join(f"'{word}'" for word in words)
    chosen = {"train": f"{options} --clip-norm 1", "cka": options, "stitch": f"--x={options}"}
    recipe = RECIPES[Study.digits].but(ratios=(0, 50), **chosen)
    Path("Makefile").write_text(to_makefile(recipe, Path("out"), Study.digits))
    Path("memtool").write_text('#!/bin/sh\nprintf "%s\\n" memtool "$@" -- >> words\n')
    Path("memtool").chmod(0o755)
    *commands, last = printed()
    assert sorted(commands) == steps(recipe)
    for option, typed in chosen.items():
        assert shlex.split(last[last.index(f"--{option}") + 1]) == shlex.split(typed)
    Path("out/labels").mkdir(parents=True)
    Path("out/labels/r0-s0.safetensors").touch()
    subprocess.run(["make", "out/runs/r0-s0.safetensors", "MEMTOOL=./memtool"], check=True)
    said = Path("words").read_text().split("\n")[:-2]
    assert said in steps(recipe) and {path.name for path in tmp_path.iterdir()} == {
        *("Makefile", "memtool", "out", "words"),
    }


def test_the_last_command_finds_that_all_is_done(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = RECIPES[Study.digits].but(ratios=(0, 37.5), epochs=9, saved=(3, 5), cuts="block2")
    Path("Makefile").write_text(to_makefile(recipe, Path("out"), Study.digits))
    *_, last = printed()
    dry = run(*last[1:-1], "--dry-run")
    assert [shlex.split(line) for line in dry.stdout.splitlines()] == [
        ["memtool", *one.arguments] for one in steps_for(recipe, Path("out"))
    ]


def test_make_gives_the_same_files(tiny, tiny_recipe, record):
    """The labels, a training, CKA and a figure as a table, since make starts a process for each."""
    goals = ["out/tables/cka-r0-s0.csv", "out/figure1-convergence.csv"]
    wanted = ("labels r0-s0", "train r0-s0", "cka r0-s0", "figure1-convergence")
    list(run_steps([one for one in tiny if one.name in wanted], 2, main, record))
    ours = {path: path.read_bytes() for path in sorted(Path("out").rglob("*.*"))}
    shutil.move("out", "ours")
    Path("Makefile").write_text(to_makefile(tiny_recipe, Path("out"), Study.digits))
    make = ["make", "-j2", f"MEMTOOL={sys.executable} -m memtool", *goals]
    environment = os.environ | {"PYTHONPATH": str(Path(memtool.__file__).parents[1])}
    subprocess.run(make, env=environment, check=True, capture_output=True)
    assert {path: path.read_bytes() for path in sorted(Path("out").rglob("*.*"))} == ours
    assert subprocess.run([*make, "-q"], env=environment).returncode == 0


@pytest.mark.parametrize(
    "root, data",
    [
        *((f"a{char}b", "x") for char in " \t\n\r\x1b;&|<>()[]{}*?~`\"'$#:=%\\\u202e\udcff"),
        *(("a", f"folder:b{char}s") for char in "'#$\\\n\r\x1b\u202e"),
    ],
)
def test_make_cannot_take_everything(root, data):
    with pytest.raises(MemtoolError, match="make cannot take"):
        to_makefile(Recipe.of(data, "cnn"), Path(root), None)


@pytest.mark.parametrize("word", ["a`b", "'a\"b'", "a$b", "'a#b'", "'a\\b'", '"\'"'])
def test_quotes_cannot_hold_everything(word):
    for name in ("train", "cka", "stitch"):
        with pytest.raises(MemtoolError, match="make cannot take"):
            to_makefile(RECIPES[Study.digits].but(**{name: f"--x {word}"}), Path("a"), Study.digits)


@pytest.mark.parametrize("data", ["folder:photos ", "folder:my photos  ", " x.npz"])
def test_blanks_at_an_end_are_not_lost(data):
    """To make, that would be another folder."""
    with pytest.raises(MemtoolError, match=f"^'{data}': make cannot take blanks at an end of DATA"):
        to_makefile(Recipe.of(data, "cnn"), Path("a"), None)
    with pytest.raises(MemtoolError, match="blanks at an end of MEMTOOL_DATA"):
        to_makefile(Recipe.of("digits", "cnn"), Path("a"), None, Path(data))
