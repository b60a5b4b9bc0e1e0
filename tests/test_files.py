"""Output files: whole or absent."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from memtool import MemtoolError
from memtool.files import check_writable, claimed, replacing
from memtool.tensors import save_tensors


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_made_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "rows.csv"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.is_relative_to(path.parent) and not path.exists()
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


def test_folders_that_were_made_for_a_file_that_never_was_are_gone(tmp_path):
    (tmp_path / "old").mkdir()
    for path in (tmp_path / "new" / "deep" / "rows.csv", tmp_path / "old" / "rows.csv"):
        with pytest.raises(KeyError), claimed(path), replacing(path):
            raise KeyError
    assert names(tmp_path) == ["old"] and names(tmp_path / "old") == []
    with pytest.raises(KeyError), claimed(tmp_path / "new" / "deep" / "rows.csv"):
        (tmp_path / "new" / "other.csv").touch()
        raise KeyError
    assert names(tmp_path / "new") == ["other.csv"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_the_umask_says_who_may_read_a_file_whatever_library_writes_it(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_tensors(tmp_path / "a.safetensors", "state", {"x": torch.zeros(1)}, {})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path):
    path = tmp_path / "rows.csv"
    code = (
        "import os, pathlib, signal, sys\n"
        "from memtool.files import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    temporary.with_name('.tmpOfALibrary').write_text('half')\n"
        "    (temporary.parent / 'folder' / 'deep').mkdir(parents=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, path])
    assert names(tmp_path) == [".rows.csv.tmp"]
    with replacing(path) as temporary:
        assert set(names(temporary.parent)) == {"holder", temporary.name}
        temporary.write_text("whole")
    assert names(tmp_path) == ["rows.csv"] and path.read_text() == "whole"


@pytest.fixture
def other(tmp_path):
    """Another process, which is writing `rows.csv` until its stdin ends."""
    code = (
        "import pathlib, sys\n"
        "from memtool.files import claimed\n"
        "with claimed(pathlib.Path(sys.argv[1])):\n"
        "    print(flush=True)\n"
        "    sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, tmp_path / "rows.csv"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process


def test_a_file_that_another_process_is_writing_is_refused_and_says_who_that_is(tmp_path, other):
    path = tmp_path / "rows.csv"
    for attempt in (check_writable, lambda path: replacing(path).__enter__()):
        with pytest.raises(MemtoolError, match=rf"rows.csv: process {other.pid} on .* is writing"):
            attempt(path)
    other.communicate()
    check_writable(path)
    assert names(tmp_path) == []


def test_a_file_of_the_same_name_in_a_folder_above_is_another_file(tmp_path, other):
    check_writable(tmp_path / "new" / "rows.csv")
    assert names(tmp_path) == [".rows.csv.tmp"]


def test_several_may_check_at_once_what_they_will_write_in_new_folders(tmp_path):
    code = (
        "import pathlib, sys\n"
        "from memtool.files import check_writable\n"
        "for number in range(2000):\n"
        "    check_writable(pathlib.Path(f'new{number % 3}', sys.argv[1], 'rows.csv'))"
    )
    commands = [[sys.executable, "-c", code, name] for name in ("a", "b", "c")]
    processes = [
        subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()})
        for command in commands
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert names(tmp_path) == []


def test_one_can_wait_for_the_other_process(tmp_path, other):
    with claimed(tmp_path / "rows.csv", waiting=other.stdin.close) as folder:
        assert other.wait() == 0 and names(folder) == ["holder"]
    assert names(tmp_path) == []


def test_claims_may_be_nested(tmp_path):
    path = tmp_path / "rows.csv"
    with claimed(path) as folder:
        with replacing(path) as temporary:
            temporary.write_text("new")
        assert folder.is_dir()
    assert names(tmp_path) == ["rows.csv"]


def test_without_locks_files_are_whole_all_the_same(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with replacing(tmp_path / "rows.csv") as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == ["rows.csv"]


def test_of_several_ranks_the_first_alone_checks_what_it_will_write(tmp_path, monkeypatch):
    with claimed(tmp_path / "rows.csv"):
        folder = tmp_path / ".rows.csv.tmp"
        monkeypatch.setattr("memtool.files._claims", set())  # as in another process
        with pytest.raises(MemtoolError, match="is writing it"):
            check_writable(tmp_path / "rows.csv")
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
        check_writable(tmp_path / "rows.csv")
        monkeypatch.undo()
    assert not folder.exists()


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / ".rows.csv.tmp").mkdir()
    (tmp_path / ".rows.csv.tmp" / "holder").symlink_to(tmp_path / "precious")
    (tmp_path / "precious").write_text("kept")
    with pytest.raises(MemtoolError, match="cannot be written"):
        check_writable(tmp_path / "rows.csv")
    assert (tmp_path / "precious").read_text() == "kept"


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
