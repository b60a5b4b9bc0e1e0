"""A few kills of a training and of a sweep; `kills.py` does any number, of every command."""

import subprocess
import sys
from pathlib import Path

import pytest

from . import kills


@pytest.mark.slow
def test_killed_a_few_times_commands_tear_and_leave_nothing():
    # In a process of its own, which no test has used before it forks.
    script = Path(kills.__file__)
    command = [sys.executable, script, "--kills", "6", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("seed 1: 0 failures")


def test_a_torn_file_would_be_noticed(tmp_path):
    (tmp_path / "half").write_bytes(b"ha")
    (tmp_path / "more").write_bytes(b"made on the way")
    assert kills.torn(tmp_path, {"half": b"half", "whole": b"whole"}) == ["half"]
