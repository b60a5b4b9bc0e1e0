"""Output files: whole or absent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from memtool import MemtoolError
from memtool.files import check_writable, replacing


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_made_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "rows.csv"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent and not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["rows.csv"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_keeps_the_old_file_and_leaves_nothing_else(tmp_path, error):
    path = tmp_path / "rows.csv"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half of it")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["rows.csv"]


def test_what_the_disk_says_is_told_in_one_line(tmp_path):
    path = tmp_path / "rows.csv"
    with pytest.raises(MemtoolError, match=r"rows.csv: cannot be written \(No space"):
        with replacing(path):
            raise OSError(28, "No space left on device")
    assert names(tmp_path) == []


def test_a_closed_pipe_meanwhile_is_not_this_files_fault(tmp_path):
    with pytest.raises(BrokenPipeError), replacing(tmp_path / "rows.csv"):
        raise BrokenPipeError


def test_a_symbolic_link_keeps_pointing_where_it_points(tmp_path):
    target, link = tmp_path / "deep" / "target.csv", tmp_path / "link.csv"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    with replacing(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink() and target.read_text() == "new"


@pytest.mark.parametrize("path", ["file/rows.csv", "file/more/rows.csv"])
def test_a_folder_that_cannot_be_is_an_error(tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MemtoolError, match="cannot be written"):
        with replacing(tmp_path / path) as temporary:
            temporary.write_text("new")
    with pytest.raises(MemtoolError, match="cannot be written"):
        check_writable(tmp_path / path)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("path", ["/proc/rows.csv", "/proc/rows/rows.csv", "x" * 300 + ".csv"])
def test_what_cannot_be_made_is_found_before_the_work(path):
    with pytest.raises(MemtoolError, match=r"^[^\n]*: cannot be written \([^\n]*\)$"):
        check_writable(Path(path))


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(MemtoolError, match="is a folder"):
        check_writable(tmp_path)


def test_checking_leaves_nothing_and_makes_no_folder(tmp_path):
    (tmp_path / "there.csv").write_text("old")
    for path in ("there.csv", "new.csv", "a/b/new.csv"):
        check_writable(tmp_path / path)
    assert names(tmp_path) == ["there.csv"]
    assert (tmp_path / "there.csv").read_text() == "old"


def test_a_device_is_written_in_place_and_stays_one():
    path = Path(os.devnull)
    check_writable(path)
    with replacing(path) as temporary:
        assert temporary == path
        temporary.write_text("gone")
    assert not path.is_file()


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_stdout_by_its_name_is_written_in_place(name):
    code = (
        "import pathlib, memtool.files as f\n"
        f"path = pathlib.Path({name!r})\n"
        "f.check_writable(path)\n"
        "with f.replacing(path) as place: place.write_text('rows')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("rows", "", 0)
