"""The command in a real shell: pipes, signals, what is imported."""

import os
import re
import shlex
import signal
import subprocess
import sys

import pytest

MEMTOOL = f"{shlex.quote(sys.executable)} -m memtool"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


def shell(script, **variables):
    """Run `script` by bash, `memtool` being this one; fails if any part of a pipe fails."""
    script = f'set -o pipefail; memtool() {{ {MEMTOOL} "$@"; }}; {script}'
    return subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, **variables},
        timeout=120,
    )


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT
    )


def test_a_closed_pipe_ends_quietly(runs):
    # More rows than a pipe holds, so that the writer meets its end.
    done = shell(f"memtool info {' '.join([str(runs.clean)] * 600)} | head -1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("file,") and done.stdout.count("\n") == 1


@pytest.mark.parametrize("arguments", ["info {}", "--version"])
def test_a_full_disk_is_an_error_of_one_line(runs, arguments):
    done = shell(f"memtool {arguments.format(runs.clean)} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "memtool: error: No space left on device\n"


def test_without_stdout_or_stderr_a_command_does_its_work(runs, tmp_path):
    make = "memtool make-noisy digits -r 5% -o"
    done = shell(f"memtool info {runs.clean} >&- && {make} {tmp_path}/a.safetensors 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "a.safetensors").exists()


def test_with_all_streams_closed_a_command_makes_its_file_or_fails(runs, tmp_path):
    make = "memtool make-noisy digits -r 5% -o"
    done = shell(
        f"{make} {tmp_path}/a.safetensors <&- >&- 2>&- && {make} {tmp_path}/b.safetensors -q && "
        f"cmp {tmp_path}/a.safetensors {tmp_path}/b.safetensors"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = shell(f"memtool plot - -o {tmp_path}/x.svg <&-")
    assert (done.returncode, done.stderr) == (1, "memtool: error: stdin: holds no rows\n")
    assert shell(f"memtool plot - -o {tmp_path}/x.svg <&- >&- 2>&-").returncode == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_stdout_by_name_and_stdin_by_a_dash(runs, tmp_path):
    rows = f"memtool cka {runs.noisy} {runs.clean} --layers 'block?' -q -o /dev/stdout --pairs all"
    done = shell(f"{rows} | memtool plot - -o {tmp_path}/heatmap.png")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "heatmap.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("output", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_rows_are_appended_to_the_file_that_stdout_is(runs, tmp_path, output):
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    done = shell(f"memtool info {runs.clean} --format csv -o {output} >> {log}")
    assert (done.returncode, done.stderr) == (0, "")
    assert log.read_text().startswith("before\nfile,") and log.read_text().count("\n") == 3


def test_no_file_that_the_shell_has_open_is_replaced(runs, tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("before\n")
    done = shell(f"memtool info {runs.clean} -o /dev/fd/3 --format csv 3>> {log}")
    told = f"memtool: error: /dev/fd/3: is {log}, which is open; name the file itself\n"
    assert (done.returncode, done.stderr, log.read_text()) == (1, told, "before\n")


def test_help_and_completion_do_without_torch():
    done = python(
        "import sys, memtool.cli\n"
        "try: memtool.cli.app(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'torchvision', 'matplotlib', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_completion_completes_commands_and_options():
    code = "import sys; sys.argv = ['memtool']; from memtool.cli import app; app()"
    for words, number, found in (("memtool c", 1, "cka"), ("memtool train --res", 2, "--resume")):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", code],
            capture_output=True,
            text=True,
            env={
                **ENVIRONMENT,
                "_MEMTOOL_COMPLETE": "complete_bash",
                "COMP_WORDS": words,
                "COMP_CWORD": str(number),
            },
        )
        assert found in done.stdout.split()
        assert "| torch\n" not in done.stderr


def terminal(command, **variables):
    """What a command writes to a terminal of 80 columns."""
    import pty

    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, stdout=theirs, stderr=theirs, env={**ENVIRONMENT, "TERM": "xterm", **variables}
    ) as process:
        os.close(theirs)
        written = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # Linux: the other side is closed
                break
            if not part:
                break
            written += part
    os.close(ours)
    assert process.returncode == 0, written
    return written.decode()


BAR = """
from memtool.cli.console import be_quiet, progress, telling
with telling():
    be_quiet({quiet})
    with progress("comparing\\x1b[8m", 2) as advance:
        advance(description="layer\\x1b[9m")
"""


@pytest.mark.parametrize("variables, colored", [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_gets_a_bar_colored_unless_told_not_to(variables, colored):
    written = terminal([sys.executable, "-c", BAR.format(quiet=False)], **variables)
    assert "comparing" in written and "1/2" in written
    assert "comparing\\x1b[8m" in written and "\x1b[8m" not in written
    assert "layer\\x1b[9m" in written and "\x1b[9m" not in written
    assert ("\x1b[3" in written or "\x1b[38;" in written) == colored


LONG = """
from memtool.cli.console import progress, telling
with telling(), progress("training " + "a/long/name/" * 20, 4000) as advance:
    advance(1200)
"""


@pytest.mark.parametrize("columns", ["60", "80"])
def test_a_long_name_leaves_room_for_the_bar_and_its_numbers(columns):
    written = terminal([sys.executable, "-c", LONG], COLUMNS=columns, NO_COLOR="1")
    assert re.search(r"training \S+… ━+ +1200/4000 0:00:0\d left -:--:--", written)


def test_a_terminal_that_cannot_move_its_cursor_gets_no_bar():
    assert terminal([sys.executable, "-c", BAR.format(quiet=False)], TERM="dumb") == ""


def test_quiet_means_no_bar():
    assert terminal([sys.executable, "-c", BAR.format(quiet=True)]) == ""


def test_a_terminal_gets_a_table(runs):
    written = terminal([sys.executable, "-m", "memtool", "info", runs.clean])
    assert "file " in written and "file," not in written


@pytest.mark.parametrize(
    "stop, code",
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["Ctrl-C", "terminated", "hung up"],
)
def test_a_signal_in_the_middle_of_training_leaves_no_partial_file(tmp_path, stop, code):
    arguments = "train --model digits-cnn --data digits --epochs 500 -o r.safetensors --table r.csv"
    with subprocess.Popen(
        [sys.executable, "-m", "memtool", *arguments.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONPATH": os.getcwd()},
        preexec_fn=lambda: signal.signal(stop, signal.SIG_DFL),  # also where the tests ignore it
    ) as process:
        assert process.stdout.readline().startswith("checkpoint,")
        assert process.stdout.readline()
        process.send_signal(stop)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors and errors.count("\n") <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["r.state.safetensors"]


STOPPED = """
import os, signal, sys
from memtool import files
from memtool.cli import main

first, second = signal.{first}, signal.{second}
emptied, stopped = files._empty, []

def emptying(folder):  # while temporary files are removed, one more signal comes
    if stopped:
        os.kill(os.getpid(), second)
    emptied(folder)

def renaming(*_):  # the file is written, and not yet there
    stopped.append(True)
    os.kill(os.getpid(), first)

for number in (first, second):
    signal.signal(number, signal.default_int_handler if number == 2 else signal.SIG_DFL)
files._empty, files.os.replace = emptying, renaming
main(["make-noisy", "digits", "-r", "5%", "-o", "x.safetensors"])
"""


@pytest.mark.parametrize(
    "first, second, code",
    [
        ("SIGINT", "SIGINT", 130),
        ("SIGTERM", "SIGTERM", 143),
        ("SIGHUP", "SIGTERM", 129),
        ("SIGINT", "SIGTERM", 130),
    ],
)
def test_a_second_signal_does_not_disturb_the_end_of_the_first(tmp_path, first, second, code):
    done = subprocess.run(
        [sys.executable, "-c", STOPPED.format(first=first, second=second)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr and done.stderr.count("\n") <= 1
    assert list(tmp_path.iterdir()) == []


def test_what_nohup_ignores_is_ignored():
    done = python(
        "import os, signal\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from memtool.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: pass\n"
        "os.kill(os.getpid(), signal.SIGHUP)\n"
        "print('still there')"
    )
    assert done.stdout.endswith("still there\n")


TRAIN = "memtool train --model digits-cnn --data digits --epochs 3 -q"


@pytest.mark.parametrize(
    "reader",
    ["-o r.safetensors | head -1", "-o r.safetensors | true"]
    + ["--format table -o r.safetensors | true"]
    + ["--table /dev/stdout -o r.safetensors | head -1"],
)
def test_training_ends_with_its_checkpoint_though_nobody_reads_its_rows(tmp_path, reader):
    done = shell(f"cd {tmp_path} && {TRAIN} {reader}")
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["r.safetensors"]


def test_a_table_is_whole_though_nobody_reads_stdout(tmp_path):
    done = shell(f"cd {tmp_path} && {TRAIN} --table r.csv -o r.safetensors | head -1")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "r.csv").read_text().count("\n") == 1 + 3
    assert (tmp_path / "r.safetensors").exists()


def test_stitched_models_are_all_kept_though_nobody_reads_their_rows(runs, tmp_path):
    stitch = f"memtool stitch {runs.noisy} {runs.clean} --at 'block?' --epochs 0 -q"
    done = shell(f"{stitch} --save {tmp_path}/models | true")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list((tmp_path / "models").iterdir())) == 6


def test_work_goes_on_though_nobody_reads_its_notes(runs, tmp_path):
    script = f"{TRAIN.removesuffix(' -q')} --labels {runs.noisy_labels} -o {tmp_path}/r.safetensors"
    make = f"memtool make-noisy digits -r 5%,10% -o '{tmp_path}/{{ratio}}.safetensors'"
    done = shell(f"({script} && {make}) 2>&1 | true")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["10.safetensors", "5.safetensors", "r.safetensors"]


def test_an_error_that_nobody_reads_is_an_error_all_the_same(tmp_path):
    assert shell(f"memtool info {tmp_path}/none.safetensors 2>&1 | true").returncode == 1


@pytest.mark.parametrize(
    ("settings", "code", "told", "backend"),
    [
        (b"axes.titlesize: \xff\n", 1, "memtool: error: matplotlib cannot start", "agg"),
        (b"some\x1b[31mthing: 1\n", 0, "Bad key some\\x1b[31mthing in file matplotlibrc", "agg"),
        (b"", 1, "memtool: error: matplotlib cannot start", "nonsense"),
    ],
)
def test_settings_that_matplotlib_finds_in_the_folder_do_no_harm(
    tmp_path, settings, code, told, backend
):
    (tmp_path / "matplotlibrc").write_bytes(settings)
    (tmp_path / "rows.csv").write_text(
        "checkpoint,noise_ratio,epoch,loss,given_accuracy,true_accuracy,mislabelled_accuracy,"
        "test_accuracy\na,0,1,2,,,,.5\na,0,2,1,,,,.6\n"
    )
    around = {"PYTHONPATH": os.getcwd(), "MPLBACKEND": backend}
    done = shell(f"cd {tmp_path} && memtool plot rows.csv -o f.svg", **around)
    assert done.returncode == code and told in done.stderr
    assert "Traceback" not in done.stderr and "\x1b" not in done.stderr
    assert (tmp_path / "f.svg").exists() == (code == 0)


def test_a_fifo_with_the_name_of_matplotlibs_settings_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "matplotlibrc")
    (tmp_path / "rows.csv").write_text("layer,cka\na,1\n")
    for command in ("plot rows.csv -o f.svg", "reproduce digits -o out"):
        done = shell(f"cd {tmp_path} && memtool {command}", PYTHONPATH=os.getcwd())
        assert done.returncode == 1
        assert "memtool: error: matplotlibrc: a FIFO" in done.stderr
        assert not (tmp_path / "f.svg").exists()


EXITING = """
import atexit, signal, sys, time
from memtool.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored, as by nohup
atexit.register(lambda: (print("exiting", flush=True), time.sleep(60)))
main(["info", sys.argv[1]])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_python_is_taken_down_ends_it_at_once(runs, number):
    process = subprocess.Popen(
        [sys.executable, "-c", EXITING, runs.clean],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert any(line == "exiting\n" for line in process.stdout)
    process.send_signal(number)
    _, told = process.communicate(timeout=20)
    assert (process.returncode, told) == (128 + number, "")
