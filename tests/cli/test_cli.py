"""The command line, in process: help, exit codes, errors, streams."""

import errno
import os
import re
import resource

import numpy as np
import pytest
import torch
import typer

from memtool import __version__
from memtool.cli import app

GROUP = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)


def files(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


# Help.


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_two_examples_and_metavars(run, name):
    command = GROUP.commands[name]
    first = command.help.splitlines()[0]
    assert len(first) < 60 and not first.endswith(".") and first[0].isupper()
    examples = command.help.partition("Examples:")[2]
    assert len(re.findall(rf"^ *memtool {name} |\| memtool {name} ", examples, re.M)) >= 2
    for parameter in command.params:
        if parameter.name == "help":
            continue
        assert parameter.help
        if not getattr(parameter, "is_flag", False):
            assert parameter.metavar and parameter.metavar == parameter.metavar.upper()
    for flag in ("-h", "--help"):
        result = run(name, flag, env={"COLUMNS": "80"})
        assert (result.code, result.stderr) == (0, "")
        assert f"Usage: memtool {name} " in result.stdout and first in result.stdout
        assert max(map(len, result.stdout.splitlines())) <= 80


def test_the_examples_of_the_help_use_options_that_are_there():
    for name in COMMANDS:
        text = GROUP.commands[name].help.partition("Examples:")[2]
        for line in text.replace("\\\n", " ").splitlines():
            for call in re.findall(r"memtool ([\w-]+)([^|]*)", line):
                known = {flag for p in GROUP.commands[call[0]].params for flag in p.opts}
                assert set(re.findall(r"(?<= )--?[a-z][\w-]*", call[1])) <= known


def test_one_option_means_one_thing_everywhere():
    letters = {}
    for name in COMMANDS:
        for parameter in GROUP.commands[name].params:
            for short in (opt for opt in parameter.opts if re.fullmatch("-[a-zA-Z]", opt)):
                assert letters.setdefault(short, parameter.opts[-1]) == parameter.opts[-1]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_format_names_o_where_that_is_for_rows(run, name):
    told = " ".join(run(name, "--help").stdout.split())
    if "--format FORMAT" in told:
        assert ("by the suffix of -o" in told) == ("-o, --output FILE File for the rows" in told)


@pytest.mark.parametrize("name", sorted({*COMMANDS} - {"cka", "stitch"}))
def test_no_help_tells_of_checkpoints_where_none_are_named(run, name):
    assert "last checkpoint" not in " ".join(run(name, "--help").stdout.split())


def test_the_program_has_help_and_a_version(run):
    result = run("--help")
    assert result.code == 0
    assert all(f"\n  {name} " in result.stdout for name in COMMANDS)
    assert run("-h").stdout == result.stdout
    assert run("--version").stdout == f"memtool {__version__}\n"


def test_no_arguments_show_the_help(run):
    result = run()
    assert result.code == 2
    assert "Usage: memtool" in result.stdout + result.stderr


# Wrong usage: exit code 2, and nothing happens.


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["ck"], "No such command 'ck'. Did you mean 'cka'?"),
        (["train", "--moddel", "x"], "No such option: --moddel"),
        (["train"], "Missing option"),
        (["make-noisy", "digits", "-r", "1.5", "-o", "OUT"], "did you mean 1.5%?"),
        (
            ["make-noisy", "digits", "-r", "5", "-o", "OUT"],
            "-r: ratio 5 is outside [0, 1]; did you",
        ),
        (
            ["make-noisy", "digits", "-r", "0,05", "-o", "OUT"],
            "ratio 05 is outside [0, 1] (a comma separates ratios, decimals have a point)",
        ),
        (["train", *"--model digits-cnn --data digits -o OUT --save-at x".split()], "--save-at:"),
        (
            ["train", *"--model digits-cnn --data digits -o OUT --epochs 1 --save-at 2".split()],
            "the run has 1 epoch\n",
        ),
        (["cka", *"a.safetensors b.safetensors --pairs some".split()], "'--pairs': 'some' is not"),
        (["make-noisy", "digits", "-r", "150%", "-o", "OUT"], "ratio 150% is outside [0, 1]\n"),
        (["make-noisy", "digits", "-r", "-0.1", "-o", "OUT"], "outside [0, 1]"),
        (["make-noisy", "digits", "-r", "nan", "-o", "OUT"], "outside [0, 1]"),
        (["make-noisy", "digits", "-r", "half", "-o", "OUT"], "'half' is not a ratio"),
        (["make-noisy", "digits", "-r", ",", "-o", "OUT"], "no ratio given"),
        (["make-noisy", "digits", "-r", "5%,10%", "-o", "OUT"], "need {ratio} in the name"),
        (
            ["make-noisy", "digits", "--from", "a.npy", "-o", "{ratio}.safetensors"],
            "labels without a {ratio}",
        ),
        (["make-noisy", "digits", "-r", "5%", "--kind", "matrix", "-o", "OUT"], "--matrix FILE"),
        (["make-noisy", "digits", "-r", "5%", "--kind", "sym", "-o", "OUT"], "'sym' is not one of"),
        (["make-noisy", "digits", "-r", "5%", "-o", "-"], "ends in .safetensors"),
        (["make-noisy", "digits", "-r", "5%", "--seed", "-1", "-o", "OUT"], "--seed"),
        (["train", "--model", "digits-cnn", "-o", "OUT"], "pass --data"),
        (["train", "--model", "digits-cnn", "--data", "digits", "-o", "r"], ".safetensors"),
        (["train", "--model", "digits-cnn", "--data", "digits", "-o", "-"], ".safetensors"),
        (["train", *"--model digits-cnn --data digits --save-at x -o OUT".split()], "'x'"),
        (["train", *"--model digits-cnn --data digits --save-at 21 -o OUT".split()], "20 epochs"),
        (
            ["train", *"--model digits-cnn --data digits --batch-size 1 -o OUT".split()],
            "--batch-size",
        ),
        (["train", *"--model digits-cnn --data digits --format x -o OUT".split()], "'x'"),
        (["cka", "one.safetensors"], "a checkpoint and a reference"),
        (["stitch", "one.safetensors"], "a front and a back"),
        (["cka", *"a.safetensors b.safetensors --layers".split(), " , "], "' , ' names nothing"),
        (["cka", *"a.safetensors b.safetensors --layers-reference".split(), ""], "names nothing"),
        (["stitch", *"a.safetensors b.safetensors --at".split(), ""], "'' names nothing"),
        (["plot", "rows.csv", "-o", "f.png", "--layers", ""], "--layers: '' names nothing"),
        (["plot", "rows.csv", "-o", "f.png", "--ratios", ","], "--ratios: no ratio given"),
        (["plot", "rows.csv", "-o", "f.png", "--epochs", ""], "--epochs: '' names nothing"),
        (["plot", "rows.csv", "-o", "f.png", "--marks", ""], "--marks: '' names nothing"),
        (["cka", *"a.safetensors b.safetensors --bandwidth 3".split()], "goes with --kernel rbf"),
        (["info", *"a.safetensors --image-size 8".split()], "goes with --layers"),
        (["plot", "convergance", "rows.csv", "-o", "f.png"], "did you mean the kind convergence"),
        (["plot", "rows.csv", "heatmap", "-o", "f.png"], "did you mean the kind heatmap"),
        (["reproduce", "digits", "-o", "out", "--layers", ""], "--layers: '' names nothing"),
        (["reproduce", "digits", "-o", "out", "--cuts", ","], "--cuts: ',' names nothing"),
        (["reproduce", "digits", "-o", "out", "--ratios", ""], "--ratios: no ratio given"),
        (["reproduce", "digits", "-o", "out", "--supplement", ""], "--supplement: no ratio given"),
        (["reproduce", "mnist", "-o", "out"], "--data DATASET --model SPEC"),
        (["plot", "-o", "-"], "name a file"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_wrong_usage_is_exit_code_2(run, tmp_path, monkeypatch, arguments, problem):
    monkeypatch.chdir(tmp_path)
    result = run(*["out.safetensors" if part == "OUT" else part for part in arguments])
    assert result.code == 2
    assert result.stdout == ""
    assert problem in re.sub(r"\s*\n\s*(?=\w)", " ", result.stderr)
    assert files(tmp_path) == []


# What fails: one line on stderr, exit code 1, and no output.


@pytest.fixture
def broken(runs, folder, tmp_path):
    """Files that are not what they should be, by name, each in a folder of its own."""
    from safetensors.numpy import save_file

    directory = tmp_path / "in"
    (directory / "images" / "train" / "ant").mkdir(parents=True)
    (directory / "images" / "test" / "ant").mkdir(parents=True)
    (directory / "text.safetensors").write_text("not safetensors\n")
    (directory / "empty.safetensors").write_bytes(b"")
    whole = runs.clean.read_bytes()
    (directory / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    (directory / "shorter.safetensors").write_bytes(whole[:200])
    save_file({"weight": np.eye(2)}, directory / "plain.safetensors")
    return directory


TRAIN = ["train", "--model", "digits-cnn", "--data", "digits", "--epochs", "1", "-o", "OUT"]


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["make-noisy", "digit", "-r", "5%", "-o", "OUT"], "'digit'; did you mean 'digits'?"),
        (["make-noisy", "folder:IN/none", "-r", "5%", "-o", "OUT"], "IN/none: no such folder"),
        (["make-noisy", "folder:IN/images", "-r", "5%", "-o", "OUT"], "holds no images"),
        (["make-noisy", "folder:IN", "-r", "5%", "-o", "OUT"], "holds no images"),
        (["make-noisy", "digits", "-r", "5%", "-o", "IN/text.safetensors/l.safetensors"], "writt"),
        (["make-noisy", "digits", "-r", "5%", "--matrix", "IN/no", "-o", "OUT"], "IN/no: "),
        ([*TRAIN, "--model", "digit-cnn"], "unknown model 'digit-cnn'"),
        ([*TRAIN, "--model", "digits-cnn?width=3"], "'width'"),
        ([*TRAIN, "--data", "digit"], "unknown data set 'digit'"),
        ([*TRAIN, "--labels", "IN/none"], "IN/none: no such file"),
        ([*TRAIN, "--labels", "CLEAN"], "CLEAN: is a checkpoint file, not a labels file"),
        ([*TRAIN, "--labels", "LABELS", "--data", "folder:FOLDER"], "another data set"),
        ([*TRAIN, "-o", "/proc/r.safetensors"], "/proc/r.safetensors: cannot be written"),
        ([*TRAIN, "--table", "/proc/r.csv"], "/proc/r.csv: cannot be written"),
        ([*TRAIN, "--table", "IN/rows.png"], "IN/rows.png: the suffix says no table format"),
        ([*TRAIN, "--device", "gpu"], "device 'gpu' is not available"),
        ([*TRAIN, "--device", "cpu:x"], "device 'cpu:x' is not available"),
        (["cka", "CLEAN", "LABELS", "-o", "OUT.csv"], "LABELS: is a labels file"),
        (["cka", "CLEAN", "IN/none", "-o", "OUT.csv"], "IN/none: no such file"),
        (["cka", "CLEAN", "IN", "-o", "OUT.csv"], "IN: "),
        (["cka", "CLEAN", "IN/text.safetensors", "-o", "OUT.csv"], "IN/text.safetensors: "),
        (["cka", "CLEAN", "IN/empty.safetensors", "-o", "OUT.csv"], "IN/empty.safetensors: "),
        (["cka", "CLEAN", "IN/short.safetensors", "-o", "OUT.csv"], "IN/short.safetensors: "),
        (["cka", "CLEAN", "IN/shorter.safetensors", "-o", "OUT.csv"], "IN/shorter.safetensors: "),
        (["info", "--layers", "IN/plain.safetensors"], "IN/plain.safetensors: "),
        (["cka", "CLEAN", "CLEAN", "--layers", "blok1", "-o", "OUT.csv"], "block1"),
        (["cka", "CLEAN", "CLEAN", "-o", "/proc/x.csv"], "/proc/x.csv: cannot be written"),
        (["cka", "CLEAN", "CLEAN", "-o", "IN"], "IN: is a folder"),
        (["stitch", "CLEAN", "CLEAN", "--at", "blok1", "-o", "OUT.csv"], "block1"),
        (["stitch", "CLEAN", "IN/text.safetensors", "-o", "OUT.csv"], "IN/text.safetensors: "),
        (["stitch", "CLEAN", "CLEAN", "--save", "/proc/x", "-o", "OUT.csv"], "/proc/x"),
        (["info", "IN/none"], "IN/none: no such file"),
        (["report", "CLEAN"], "CLEAN: is a file; name the folder of a reproduction"),
        (["info", "IN/text.safetensors"], "IN/text.safetensors: "),
        (["info", "IN/short.safetensors"], "IN/short.safetensors: "),
        (["plot", "IN/none.csv", "-o", "OUT.png"], "IN/none.csv: no such file"),
        (["plot", "CLEAN", "-o", "OUT.png"], "CLEAN: cannot be read as text"),
        (["plot", "IN/text.safetensors", "-o", "OUT.gif"], "OUT.gif: "),
        (["plot", "IN/text.safetensors", "-o", "OUT.png"], "IN/text.safetensors: holds no rows"),
        (["plot", "IN/text.safetensors", "-o", "/proc/f.png"], "/proc/f.png: cannot be written"),
    ],
    ids=lambda value: " ".join(value)[-45:] if isinstance(value, list) else "",
)
def test_what_fails_says_so_in_one_line_and_leaves_no_output(
    run, runs, folder, broken, tmp_path, arguments, problem
):
    places = {
        "OUT.": f"{tmp_path}/out.",
        "OUT": tmp_path / "out.safetensors",
        "IN": broken,
        "CLEAN": runs.clean,
        "LABELS": runs.noisy_labels,
        "FOLDER": folder,
    }

    def placed(text):
        pattern = r"\bOUT\.|\b(?:OUT|IN|CLEAN|LABELS|FOLDER)\b"
        return re.sub(pattern, lambda found: str(places[found[0]]), text)

    before = files(tmp_path)
    result = run(*map(placed, arguments))
    assert result.code == 1, result
    assert result.stderr.startswith("memtool: error: ")
    assert placed(problem) in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert files(tmp_path) == before


def test_an_error_of_several_lines_is_told_in_one(run, monkeypatch):
    from memtool import MemtoolError, checkpoints

    def fail(*_):
        raise MemtoolError("first\nsecond")

    monkeypatch.setattr(checkpoints, "file_rows", fail)
    result = run("info", "any.safetensors")
    assert (result.code, result.stderr) == (1, "memtool: error: first second\n")


@pytest.fixture
def small_files():
    """No file may grow beyond 20 KiB, as if the disk were full; Python ignores the signal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("arguments", [TRAIN, ["make-noisy", "digits", "-r", "5%", "-o", "OUT"]])
def test_a_full_disk_is_an_error_that_leaves_nothing(run, tmp_path, small_files, arguments):
    result = run(*[tmp_path / "out.safetensors" if part == "OUT" else part for part in arguments])
    assert result.code == 1
    assert result.stderr.startswith(f"memtool: error: {tmp_path}/out.")
    assert "File too large" in result.stderr and result.stderr.count("\n") == 1
    assert files(tmp_path) == []


# Streams.


def test_rows_go_to_stdout_by_default_and_by_a_dash(run, runs):
    rows = run("info", runs.clean)
    assert rows.stderr == "" and rows.stdout.startswith("file,")
    assert run("info", runs.clean, "-o", "-") == rows


def test_rows_go_to_a_file_and_then_nowhere_else(run, runs, tmp_path):
    path = tmp_path / "rows.csv"
    result = run("info", runs.clean, "-o", path)
    assert (result.code, result.stdout, result.stderr) == (0, "", "")
    assert path.read_text() == run("info", runs.clean).stdout


@pytest.mark.parametrize("format, start", [("csv", "file,"), ("tsv", "file\t"), ("jsonl", "{")])
def test_the_format_of_the_rows(run, runs, format, start):
    assert run("info", runs.clean, "--format", format).stdout.startswith(start)


def test_a_tilde_behind_an_equals_sign_is_the_home(run, runs, tmp_path, monkeypatch):
    """No shell makes it that."""
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("info", runs.clean, "--output=~/a/rows.csv").code == 0
    plotted = run("plot", runs.noisy_table, "--output=~/f.csv", "--output=~/g.csv")
    assert plotted.code == 0, plotted.stderr
    assert {"a/rows.csv", "f.csv", "g.csv"} <= set(files(tmp_path))
    (tmp_path / "t.csv").write_bytes(runs.noisy_table.read_bytes())
    plotted = run("plot", "training", "~/t.csv", "-o", tmp_path / "h.csv")
    assert plotted.code == 0, plotted.stderr
    assert (tmp_path / "h.csv").read_text() == (tmp_path / "f.csv").read_text()
    clash = run("plot", "~/t.csv", "-o", "~/t.csv")
    assert clash.code == 2 and f"{tmp_path}/t.csv: is a table that is drawn" in clash.stderr
    unknown = run("make-noisy", "~/there", "-r", "50%", "-o", tmp_path / "l.safetensors")
    assert "did you mean 'folder:~/there'?" in unknown.stderr
    (tmp_path / "net.json").write_text('{"name": "digits-cnn", "options": {}}')
    trained = ("train", "--model=~/net.json", "--data", "digits", "--output=~/r.safetensors")
    assert f"{tmp_path}/r.safetensors" in run(*trained, "--dry-run").stdout
    assert files(tmp_path / "there") == []


def test_quiet_means_no_notes(run, tmp_path):
    arguments = ("make-noisy", "digits", "-r", "50%", "-o", tmp_path / "l.safetensors")
    loud, quiet = run(*arguments), run(*arguments, "-q")
    assert re.fullmatch(r"\S+: 648 redrawn, \d+ of 1297 mislabelled\n", loud.stderr)
    assert (loud.stdout, quiet.stdout, quiet.stderr) == ("", "", "")


def test_an_error_of_the_system_is_told_in_a_line(run, monkeypatch, tmp_path):
    def read(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "a.csv")

    monkeypatch.setattr("memtool.tables.read", read)
    done = run("plot", "a.csv", "-o", tmp_path / "a.svg")
    assert (done.code, done.stderr) == (1, "memtool: error: a.csv: Input/output error\n")


@pytest.mark.parametrize("words", [("info", "--form\x1b" + "x" * 5000), ("\x1b" + "x" * 5000,)])
def test_a_usage_error_is_short_and_paints_nothing(run, words):
    done = run(*words)
    assert done.code == 2 and len(done.stderr) < 1200 and "\x1b" not in done.stderr
    done = run("--\x1b" + "x" * 5000)
    assert done.code == 2 and len(done.stderr) < 1200 and "\x1b" not in done.stderr


def _lacking(error):
    def read(*_):
        if error:
            raise error
        torch.empty(2**60)  # PyTorch's own words on a CPU

    return read


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "2.00 GiB"),
        (MemoryError("Unable to allocate 7.28 TiB for an array"), "7.28 TiB"),
        (None, "DefaultCPUAllocator"),
    ],
)
def test_a_lack_of_memory_is_told_in_a_line_with_ways_out(run, monkeypatch, tmp_path, error, told):
    monkeypatch.setattr("memtool.tables.read", _lacking(error))
    done = run("plot", "a.csv", "-o", tmp_path / "a.svg")
    assert done.code == 1 and done.stderr.startswith("memtool: error: no memory is left; choose a")
    assert told in done.stderr and done.stderr.count("\n") == 1


def test_other_errors_remain_what_they_are(run, monkeypatch, tmp_path):
    monkeypatch.setattr("memtool.tables.read", _lacking(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        run("plot", "a.csv", "-o", tmp_path / "a.svg")
