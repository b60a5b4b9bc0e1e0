"""Files that are none, folders that cannot be written, and folders that vanish."""

import errno
import os
import shutil
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

MAKE = ("make-noisy", "digits", "-r", "5%", "-o")


@contextmanager
def at_once():
    """Fail, instead of waiting for ever, if the block takes ten seconds."""

    def stop(number, frame):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "suffix, command",
    [
        (".safetensors", "info FILE"),
        (".safetensors.index.json", "info FILE"),
        (".safetensors", "cka FILE FILE"),
        (".safetensors", "stitch FILE FILE"),
        (".pth", "convert FILE --model digits-cnn -o OUT"),
        (".npz", "make-noisy FILE -r 5% -o OUT"),
        (".safetensors", "make-noisy FILE -r 5% -o OUT"),
        (".csv", "make-noisy digits --from FILE -o OUT"),
        (".csv", "make-noisy digits -r 5% --matrix FILE -o OUT"),
        (".json", "train --model FILE --data digits -o OUT"),
        (".py", "train --model FILE:make --data digits -o OUT"),
        (".safetensors", "train --model digits-cnn --labels FILE -o OUT"),
        (".csv", "plot FILE -o OUT.png"),
        (".mplstyle", "plot rows.csv --style FILE -o OUT.png"),
    ],
)
def test_a_pipe_or_a_device_in_place_of_a_file_is_refused_at_once(
    run, runs, tmp_path, monkeypatch, suffix, command
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(runs.noisy_table, "rows.csv")
    os.mkfifo(f"pipe{suffix}")
    Path(f"zero{suffix}").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        words = command.replace("FILE", f"{name}{suffix}").replace("OUT", "out.safetensors")
        with at_once():
            done = run(*words.split())
        assert done.code == (2 if "--style" in command else 1)
        assert f"{name}{suffix}: is a pipe or a device; " in done.stderr.splitlines()[-1]
        assert done.stderr.count("rror: ") == 1
    assert not [name for name in os.listdir() if name.startswith((".", "out"))]


def test_a_pipe_that_the_shell_has_opened_is_a_table(run, runs, tmp_path):
    ours, theirs = os.pipe()
    os.write(theirs, runs.noisy_table.read_bytes())  # less than a pipe holds
    os.close(theirs)
    with at_once():
        done = run("plot", f"/dev/fd/{ours}", "-o", tmp_path / "a.svg")
    os.close(ours)
    assert (done.code, done.stderr) == (0, "")


@pytest.mark.parametrize("name, command", [("x.csv", "info"), ("x.svg", "plot")])
def test_a_pipe_as_output_gets_what_a_file_would(run, runs, tmp_path, name, command):
    source = runs.clean if command == "info" else runs.noisy_table
    pipe, file, got = tmp_path / name, tmp_path / "file" / name, []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    with at_once():
        done = run(command, source, "-o", pipe)
        reader.join()
    assert (done.code, run(command, source, "-o", file).code) == (0, 0)
    assert got == [file.read_bytes()]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["file", name])


def test_safetensors_replace_no_pipe(run, tmp_path):
    """safetensors writes to another name and renames, which would put a file in its place."""
    pipe = tmp_path / "x.safetensors"
    os.mkfifo(pipe)
    with at_once():
        done = run(*MAKE, pipe)
    assert done.code == 1 and done.stderr.endswith("is a pipe or a device; name a file\n")
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def commands(runs, folder):
    return {
        "make-noisy": (*MAKE, folder / "x.safetensors"),
        "train": (
            *("train", "--model", "digits-cnn", "--data", "digits?samples_train=64"),
            *("--epochs", 1, "--table", folder / "x.csv", "-o", folder / "x.safetensors"),
        ),
        "cka": ("cka", runs.noisy, runs.clean, "--samples", 64, "-o", folder / "x.csv"),
        "plot": ("plot", runs.noisy_table, "-o", folder / "x.svg"),
        "info": ("info", runs.clean, "-o", folder / "x.csv"),
        "stitch": (
            *("stitch", runs.noisy, runs.clean, "--at", "block1", "--epochs", 0),
            *("--save", folder / "stitched", "-o", folder / "x.csv"),
        ),
        "convert": (
            *("convert", runs.clean, "--model", "digits-cnn", "--data", "digits"),
            *("-o", folder / "x.safetensors"),
        ),
    }


NAMES = ["make-noisy", "train", "cka", "plot", "info", "stitch", "convert"]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_cannot_be_written_is_told_before_any_work(
    run, runs, tmp_path, monkeypatch, name
):
    folder = tmp_path / "out"
    folder.mkdir(mode=0o500)
    mkdir = os.mkdir

    def refusing(path, *rest, **more):  # as for users who, unlike root, are refused
        if folder in Path(path).parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return mkdir(path, *rest, **more)

    monkeypatch.setattr(os, "mkdir", refusing)
    done = run(*commands(runs, folder)[name])
    assert done.code == 1 and done.stdout == ""
    assert "cannot be written (Permission denied)" in done.stderr
    assert done.stderr.count("memtool: error: ") == done.stderr.count("\n") == 1
    assert not list(folder.iterdir())


@pytest.mark.parametrize("moment", ["touch", "chmod"])
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_vanishes_ends_the_command_in_one_line(
    run, runs, tmp_path, monkeypatch, name, moment
):
    """Before the file is written, and before it is renamed."""
    folder = tmp_path / "out"
    original = getattr(Path, moment)

    def vanishing(path, *rest, **more):
        original(path, *rest, **more)
        if path.name == str(os.getpid()):
            shutil.rmtree(folder)

    monkeypatch.setattr(Path, moment, vanishing)
    done = run(*commands(runs, folder)[name])
    assert done.code == 1
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    assert len(errors) == 1 and "cannot be written (No such file or directory" in errors[0]
    assert not folder.exists() or not list(folder.iterdir())
