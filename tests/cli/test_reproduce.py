"""memtool reproduce: the Makefile, dry runs, what is told."""

from pathlib import Path

from memtool.reproduction import RECIPES, Outcome, Step, Study, steps_for, to_makefile

DIGITS = RECIPES[Study.digits]


def test_makefile_prints_the_steps_and_the_command_that_tells_the_findings(run):
    arguments = ["reproduce", "digits", "-o", "out", "--seeds", "2", "-q"]
    expected = to_makefile(steps_for(DIGITS, Path("out"), 2), arguments)
    printed = run("reproduce", "digits", "-o", "out", "--seeds", 2, "--makefile").stdout
    assert printed == expected
    assert f"\t$(MEMTOOL) {' '.join(arguments)}\n" in printed


def test_dry_run_prints_the_commands_still_to_run(run, tmp_path):
    labels = tmp_path / "labels/r0-s0.safetensors"
    commands = run("reproduce", "digits", "-o", tmp_path, "--dry-run").stdout.splitlines()
    assert commands[0] == f"memtool make-noisy digits -r 0% --seed 0 -o {labels}"
    assert len(commands) == len(steps_for(DIGITS, tmp_path, 1))
    labels.parent.mkdir()
    labels.touch()
    rest = run("reproduce", "digits", "-o", tmp_path, "--dry-run").stdout.splitlines()
    assert rest == commands[1:]


def test_reproduce_tells_how_long_steps_took_and_what_they_warned_of(run, tmp_path, monkeypatch):
    outcome = Outcome(Step("x", (), (), tmp_path / "x"), 1.5, ("a layer is constant",))
    monkeypatch.setattr("memtool.reproduction.run_steps", lambda *_: iter([outcome]))
    command = ("reproduce", "digits", "-o", tmp_path)
    note, warning = "x: 1.5 s\n", "memtool: warning: x: a layer is constant\n"
    assert run(*command).stderr.startswith(note + warning)
    assert run(*command, "-q").stderr.startswith(warning)
