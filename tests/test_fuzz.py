"""A few damaged files of every kind, and those that once went wrong; `fuzz.py` runs any number."""

import lzma
import os
from pathlib import Path

import pytest

from . import fuzz

INPUTS = 4  # for each reader


@pytest.fixture(scope="module")
def place():
    fuzz.watch_programs()
    with fuzz.workplace() as folder:
        yield folder


def test_a_few_damaged_files_of_every_kind_end_in_one_line(place):
    wrong = {}
    for reader in fuzz.READERS:
        for number in range(INPUTS):
            content, command = fuzz.damaged(reader, 2026, number, place)
            if found := fuzz.failure(reader, content, command, place):
                wrong[reader.name, number] = found
    assert not wrong


def test_what_once_failed_does_not_any_more(place):
    wrong = {}
    kept = sorted((Path(__file__).parent / "corpus").glob("*/*.xz"))
    assert kept
    readers = {reader.name: reader for reader in fuzz.READERS}
    for path in kept:
        reader = readers[path.parent.name]
        for command in reader.commands:
            if found := fuzz.failure(reader, lzma.decompress(path.read_bytes()), command, place):
                wrong[path.name, command] = found
    assert not wrong


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("raise KeyError(1)", "KeyError"),
        ("import subprocess; subprocess.run(['true'])", "started subprocess.Popen"),
        ("while True: pass", "took more than 1 seconds"),
        ("import time; time.sleep(60)", "took more than 1 seconds"),
        ("x = b'x' * (3 << 29)", "took 1.5 GiB"),
        ("import pathlib; pathlib.Path('.x.tmp').touch(); raise SystemExit(1)", "left"),
        ("raise SystemExit(70)", "exit code 70"),
        ("raise SystemExit(1)", "told 0 errors"),
        ("pass", None),
    ],
)
def test_what_the_fuzzer_counts_as_failures_are_some(place, monkeypatch, what, told):
    def command(arguments):
        try:
            exec(what)
        except SystemExit as done:
            return done.code, ""
        return 0, ""

    monkeypatch.setattr(fuzz, "run_command", command)
    if "60" in what or "while" in what:
        monkeypatch.setattr(fuzz, "SECONDS", 1)
        monkeypatch.setattr(fuzz, "PATIENCE", 2)
    found = fuzz.failure(fuzz.READERS[0], b"", "info FILE", place)
    assert found is None if told is None else found.startswith(told)


@pytest.mark.parametrize(
    ("hours", "seeds", "code"), [(0, [7], 0), (1, [7, 8], 1), (1.1, [7, 8, 9], 1)]
)
def test_further_seeds_follow_until_the_hours_are_over(monkeypatch, hours, seeds, code):
    seen = []

    def run_seed(given, seed):
        seen.append(seed)
        return seed == 8  # failures

    monkeypatch.setattr(fuzz.time, "monotonic", lambda: 1800 * len(seen))  # half an hour each
    monkeypatch.setattr(fuzz, "run_seed", run_seed)
    assert fuzz.main(["--seed", "7", "--hours", str(hours)]) == code
    assert seen == seeds


@pytest.mark.slow
def test_inputs_may_be_chosen_by_the_lines_that_they_reach(tmp_path):
    pytest.importorskip("atheris", reason="atheris is not installed")
    assert fuzz.explored("lines", seed=0, inputs=20, keep=tmp_path) == []


def test_an_image_that_is_postscript_starts_no_program(run, tmp_path, monkeypatch):
    """Pillow hands EPS to Ghostscript, whatever the file is called."""
    programs, marker = tmp_path / "bin", tmp_path / "started"
    programs.mkdir()
    for name in ("gs", "gswin64c", "gswin32c"):
        (programs / name).write_text(f"#!/bin/sh\ntouch {marker}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    for part in ("train", "test"):
        for label in ("a", "b"):
            file = tmp_path / "photos" / part / label / "x.png"
            file.parent.mkdir(parents=True)
            file.write_bytes(
                b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
            )
    made = run(
        "make-noisy", f"folder:{tmp_path / 'photos'}", "-r", "0", "-o", tmp_path / "l.safetensors"
    )
    assert made.code == 1 and "cannot be read" in made.stderr
    assert not marker.exists()
