"""memtool reproduce: choices, the Makefile, dry runs, what is told and kept."""

import json
import shlex
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from memtool import MemtoolError
from memtool.cli import main
from memtool.files import claimed
from memtool.reproduction import (
    RECIPES,
    Recipe,
    Record,
    Step,
    StepResult,
    Study,
    chosen_recipe,
    steps_for,
    to_makefile,
)

DIGITS = RECIPES[Study.digits]


def test_makefile_prints_the_steps(run):
    printed = run("reproduce", "digits", "-o", "out", "--seeds", 2, "--makefile").stdout
    assert printed == to_makefile(DIGITS.but(seeds=2), Path("out"), Study.digits)


def test_dry_run_prints_the_commands_still_to_run(run, tmp_path):
    labels = tmp_path / "labels/r0-s0.safetensors"
    commands = run("reproduce", "digits", "-o", tmp_path, "--dry-run").stdout.splitlines()
    assert commands[0] == f"memtool make-noisy digits -r 0% --seed 0 -q -o {labels}"
    assert len(commands) == len(steps_for(DIGITS, tmp_path))
    labels.parent.mkdir()
    labels.touch()
    rest = run("reproduce", "digits", "-o", tmp_path, "--dry-run").stdout.splitlines()
    assert rest == commands[1:]


@pytest.mark.parametrize("option", ["--dry-run", "--makefile"])
def test_no_command_with_control_characters_is_printed(option, capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["reproduce", "digits", "-o", "a\x1b[2J", option])
    out, err = capsys.readouterr()
    assert not out and "a\\x1b[2J" in err and "\x1b[2J" not in err


CHOICES = {
    ("cifar10", "--small", "--data", "folder:c"): chosen_recipe(
        Study.cifar10, "folder:c", None, True, None, None
    ),
    ("--data", "x.npz", "--model", "cnn", "--samples-train", "90", "--samples", "80"): Recipe.of(
        "x.npz?samples_train=90", "cnn"
    ).but(samples=80),
    ("svhn", "--ratios", "50%,0.25", "--epochs", "8", "--save-every", "3"): RECIPES[Study.svhn].but(
        ratios=(25, 50), epochs=8, saved=(3, 6)
    ),
    ("svhn", "--save-at", "1,2,4", "--layers", "fc", "--cuts", "block1"): RECIPES[Study.svhn].but(
        saved=(1, 2, 4), layers="fc", cuts="block1"
    ),
    ("digits", "--train", "--batch-size 8", "--cka", "", "--stitch", "--epochs 1"): DIGITS.but(
        train="--batch-size 8", cka="", stitch="--epochs 1"
    ),
}


@pytest.mark.parametrize("name", ["./-x", "a{ratio}b"])
def test_a_folder_that_steps_would_misread_is_refused(run, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    result = run("reproduce", "digits", "-o", name)
    assert result.code == 2 and "choose another name" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("typed", CHOICES, ids=" ".join)
def test_choices(run, typed):
    result = run("reproduce", *typed, "-o", "out", "--dry-run")
    assert result.code == 0, result.stderr
    assert [shlex.split(line) for line in result.stdout.splitlines()] == [
        ["memtool", *one.arguments] for one in steps_for(CHOICES[typed], Path("out"))
    ]


def test_without_a_study_or_with_an_epoch_too_late_there_is_a_way_out(run, tmp_path):
    result = run("reproduce", "--data", "x.npz", "-o", tmp_path)
    assert "error: name a study (digits, cifar10, svhn), or --data and --model" in result.stderr
    result = run("reproduce", "digits", "--save-at", "30", "-o", tmp_path)
    assert "--save-at 30: the runs have 20 epochs" in result.stderr
    assert run("reproduce", "imagenet", "-o", tmp_path).code == 2


@contextmanager
def in_this_process(jobs):
    """In place of `workers`."""
    yield SimpleNamespace(map=map, submit=lambda f, *x: SimpleNamespace(result=lambda: f(*x)))


@pytest.fixture
def one_step(tmp_path, monkeypatch):
    """One step that seems to have run; nothing is found in its tables."""
    step = Step("x", (), (), (Path("x"),), tmp_path)
    result = StepResult(step, 1.5, None, ("a layer is constant",))
    monkeypatch.setattr("memtool.reproduction.run_steps", lambda *_: iter([result]))
    found = SimpleNamespace(folder=tmp_path, findings=[])
    monkeypatch.setattr("memtool.reproduction.read_results", lambda _: found)
    monkeypatch.setattr("memtool.reproduction.open_server", lambda _: None)
    monkeypatch.setattr("memtool.reproduction.workers", in_this_process)
    monkeypatch.setattr("memtool.reproduction.write_report", lambda *_: tmp_path / "report.html")


def test_reproduce_tells_how_long_steps_took_and_what_they_warned_of(run, tmp_path, one_step):
    command = ("reproduce", "digits", "-o", tmp_path)
    note, warning = "x: 1.5 s\n", "memtool: warning: x: a layer is constant\n"
    assert run(*command).stderr == f"{note}{warning}{tmp_path}/report.html\n"
    assert run(*command, "-q").stderr == warning


@pytest.mark.parametrize(
    ("device", "typed", "jobs"),
    [
        ("cpu", (), 6),
        ("cuda", (), 1),
        ("mps", (), 1),
        ("cuda", ("-j", 3), 3),
        ("cpu", ("-j", 9), 9),
    ],
)
def test_steps_do_not_share_a_gpu_unless_told(
    run, tmp_path, one_step, monkeypatch, device, typed, jobs
):
    at_once = []
    monkeypatch.delenv("MEMTOOL_DEVICE", raising=False)
    monkeypatch.setattr("memtool.device.choose", lambda name: torch.device(device))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)), raising=False)
    monkeypatch.setattr(
        "memtool.reproduction.run_steps", lambda steps, jobs, *_: iter(at_once.append(jobs) or ())
    )
    assert run("reproduce", "digits", "-o", tmp_path, *typed).code == 0
    assert at_once == [jobs]


@pytest.mark.parametrize(
    ("variable", "typed", "jobs"),
    [
        ("cpu", (), 6),
        ("", (), 1),
        ("cuda:7", (), 6),  # not there, as the step is to tell
        ("", ("--train", "--device cpu"), 1),
        ("", [w for o in ("--train", "--cka", "--stitch") for w in (o, "--device=cpu")], 6),
        ("cpu", ("--stitch", "--device cpu --device mps"), 1),
    ],
)
def test_steps_are_on_the_device_that_is_chosen_for_them(
    run, tmp_path, one_step, monkeypatch, variable, typed, jobs
):
    def choose(name):
        if name == "cuda:7":
            raise MemtoolError(f"device {name!r} is not available")
        return torch.device({"auto": "cuda"}.get(name, name))

    at_once = []
    monkeypatch.setenv("MEMTOOL_DEVICE", variable)
    monkeypatch.setattr("memtool.device.choose", choose)
    monkeypatch.setattr("memtool.reproduction.rehearse", lambda *_: None)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)), raising=False)
    monkeypatch.setattr(
        "memtool.reproduction.run_steps", lambda steps, jobs, *_: iter(at_once.append(jobs) or ())
    )
    assert run("reproduce", "digits", "-o", tmp_path, *typed).code == 0
    assert at_once == [jobs]


def test_all_choices_are_kept(run, tmp_path, one_step):
    run("reproduce", "digits", "-o", tmp_path, "--seeds", 3, "--ratios", "37.5%")
    kept = json.loads((tmp_path / "reproduction.json").read_text())
    recipe = DIGITS.but(seeds=3, ratios=(0, 37.5))
    assert {**recipe.json(), "study": "digits"}.items() <= kept.items()
    assert kept["ratios"] == [0, 37.5] and kept["environment"] == {"OMP_NUM_THREADS": "1"}
    assert {"python", "torch", "memtool"} <= kept["versions"].keys()


def test_a_folder_is_reproduced_by_one_process_at_a_time(run, tmp_path, one_step, monkeypatch):
    monkeypatch.setattr("memtool.files._claims", set())  # as in another process
    with claimed(tmp_path / "steps.csv"):
        monkeypatch.setattr("memtool.files._claims", set())
        result = run("reproduce", "digits", "-o", tmp_path)
    assert result.code == 1
    assert "steps.csv" in result.stderr and "process" in result.stderr


def test_options_are_tried_before_anything_in_a_finished_folder_is_removed(run, tmp_path):
    record = Record(tmp_path / "steps.csv")
    steps = steps_for(DIGITS.but(ratios=(0,), epochs=1), tmp_path)
    made = [tmp_path / path for step in steps for path in step.outputs]
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for step in steps:
        record.keep(step, seconds=1.0)
    few = ("--ratios", "0", "--epochs", 1)
    result = run("reproduce", "digits", "-o", tmp_path, *few, "--layers", "nosuch", "-q")
    assert result.code == 1 and "no layer matches 'nosuch'" in result.stderr
    assert all(path.exists() for path in made)
