"""What a path means, and what stands at it."""

import os
from pathlib import Path

import pytest

from memtool import MemtoolError
from memtool.paths import as_path, descriptor, expanded, is_special


def test_a_tilde_is_a_home_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/a") == tmp_path / "a" and expanded(Path("~")) == tmp_path
    for name in ("~nobody-of-that-name/a", "a/~", "./~/a"):
        assert expanded(name) == Path(name)


def test_a_path_in_python_is_expanded_too_or_told_to_be_none(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/a") == as_path(tmp_path / "a") == tmp_path / "a"
    for given in (None, 3, b"a", ["a"]):
        with pytest.raises(MemtoolError, match="a path is a str or a Path"):
            as_path(given)


def test_pipes_and_devices_are_special_but_no_file_folder_or_impossible_name(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link", "/dev/null"):
        assert is_special(tmp_path / name)
    for name in ("file", "", "nothing", "a" * 1000):
        assert not is_special(tmp_path / name)


def test_a_descriptor_is_told_by_any_of_its_names(tmp_path):
    (tmp_path / "log").symlink_to("/dev/stdout")
    numbers = {"/dev/stdout": 1, "/dev/fd/1": 1, "/proc/self/fd/2": 2, "/dev/stderr": 2}
    for name, number in {**numbers, tmp_path / "log": 1}.items():
        assert descriptor(Path(name)) == number
    for name in ("1", "/dev/null", "/dev/fd", "table.csv", "", tmp_path / "2"):
        assert descriptor(Path(name)) is None
