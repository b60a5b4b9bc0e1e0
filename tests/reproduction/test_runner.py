"""Running steps: order, jobs, what is skipped, what is told, and what is left when it stops."""

import importlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import memtool
from memtool import MemtoolError, tables
from memtool.cli import main
from memtool.files import replacing
from memtool.reproduction import (
    FIGURES,
    Record,
    Step,
    pending,
    run_steps,
    runner,
    steps_for,
    workers,
)


def step(output, inputs=(), *arguments):
    """A step that makes `output`; all paths are below its folder."""
    path = Path(output)
    inputs = tuple(Path(one.name) for one in inputs)
    return Step(
        path.name, (*arguments, "-o", Path(path.name)), inputs, (Path(path.name),), path.parent
    )


# Commands that steps run in place of memtool's; the last argument is the output.


def warn(arguments):
    print("a note\nmemtool: warning: a layer is constant", file=sys.stderr)
    Path(arguments[-1]).touch()


def die(arguments):
    print("a note", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGKILL)


def clock(arguments):
    """Write when the step ran, in seconds of the clock that all processes share."""
    start = time.monotonic()
    time.sleep(0.05)
    Path(arguments[-1]).write_text(f"{start} {time.monotonic()}")


def meet(arguments):
    """As `clock`, but wait until steps have started as often as `jobs` says."""
    start = time.monotonic()
    output = Path(arguments[-1])
    output.with_suffix(".started").touch()
    jobs = int(output.with_name("jobs").read_text())
    for _ in range(600):
        if len(list(output.parent.glob("*.started"))) >= jobs:
            break
        time.sleep(0.1)
    output.write_text(f"{start} {time.monotonic()}")


def hold(arguments):
    """Make `quick` at once, and fail at `bad` once there is `go` and `slow` is under way, which
    never ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    output = Path(arguments[-1])
    with replacing(output) as temporary:
        temporary.write_text("half")
        if output.name == "slow":
            output.with_name("pid").write_text(str(os.getpid()))
            time.sleep(600)
    if output.name == "bad":
        wait_for(output.with_name("go"))
        wait_for(output.with_name("pid"))
        sys.exit("memtool: error: a bad step")


def wait_for(path):
    for _ in range(600):
        if path.exists() and path.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} did not appear in a minute")


def test_steps_run_once_and_again_only_when_an_input_is_newer(tiny, record, tiny_recipe):
    """Or when they are to be done otherwise."""
    done = list(run_steps(tiny, 2, main, record))
    assert [one.seconds for one in done].count(None) == 0
    assert {path.name for path in Path("out").glob("*.*")} == {
        f"{rule.kind}{suffix}" for rule in FIGURES for suffix in (".csv", ".pdf", ".png")
    }
    again = list(run_steps(tiny, 2, main, record))
    assert {one.seconds for one in again} == {None}

    def remade(steps, record):
        return [one.step.name for one in run_steps(steps, 2, main, record) if one.seconds]

    Path("out/tables/stitching-r0-s0.csv").touch()
    expected = ["figure2-stitching", "supplement", "supplement r0-s0"]
    assert sorted(one.name for one in pending(tiny, record.commands)) == expected
    assert sorted(remade(tiny, Record(record.path))) == expected

    other = steps_for(tiny_recipe.but(layers="block1"), Path("out"))
    of_layers = ["cka ceiling-s0", "cka r0-s0", "divergence-final", "figure1-convergence"]
    of_layers += ["figure3-divergence", "supplement", "supplement r0-s0"]
    assert sorted(one.name for one in pending(other, record.commands)) == of_layers
    assert sorted(remade(other, record)) == of_layers
    assert not list(pending(other, record.commands)) and not remade(other, record)

    rows = {row["step"]: row for row in tables.read(record.path)}
    assert rows.keys() == {one.name for one in tiny}
    for row in rows.values():
        assert row["seconds"] > 0 and row["memory"] > 10**7
    assert rows["cka r0-s0"]["command"].endswith("48MiB -q -o tables/cka-r0-s0.csv")


def test_a_stopped_step_starts_anew_if_it_is_to_be_done_otherwise(tmp_path, record):
    """What it left would belong to other settings."""
    left = [
        tmp_path / name for name in ("x.state.safetensors", "x/epoch-0001.safetensors", "x.csv")
    ]
    others = [tmp_path / name for name in ("y.csv", "x/mine.safetensors")]
    (tmp_path / "x").mkdir()
    for path in left + others:
        path.touch()
    globs = (Path("x.state.safetensors"), Path("x/epoch-*.safetensors"))
    before, now = (
        replace(step(tmp_path / "x.csv", (), option), leaves=globs) for option in ("--a", "--b")
    )
    record.keep(before)
    runner._prepare(before, record)
    assert all(path.exists() for path in left)
    runner._prepare(now, record)
    assert not any(path.exists() for path in left) and all(path.exists() for path in others)
    assert record.commands == {"x.csv": "memtool --b -o x.csv"} == Record(record.path).commands


def test_what_a_stopped_training_or_sweep_leaves_is_known(tiny_recipe):
    leaves = {
        one.name: [str(glob) for glob in one.leaves] for one in steps_for(tiny_recipe, Path("out"))
    }
    assert leaves["train r0-s0"] == [
        "runs/r0-s0.state.safetensors",
        "runs/r0-s0/epoch-*.safetensors",
    ]
    assert leaves["train ceiling-s0"][1] == "runs/ceiling-s0/epoch-*.safetensors"
    assert leaves["stitching r0-s0"] == [
        "tables/stitching-r0-s0.csv.partial",
        "stitched/r0-s0/*.safetensors",
    ]


@pytest.mark.parametrize("line", ["step,command\na,b", "output,command\nx.csv,"])
def test_a_record_that_names_no_step_is_refused(tmp_path, line):
    (tmp_path / "steps.csv").write_text(line)
    with pytest.raises(MemtoolError, match="names no command, or no output, for a step"):
        Record(tmp_path / "steps.csv")


def test_a_step_waits_for_those_that_make_its_inputs_and_earlier_ones_go_first(tmp_path, record):
    a, b, c, d = (tmp_path / name for name in "abcd")
    steps = [step(d, [c, b]), step(b), step(c, [a]), step(a)]
    names = [one.step.name for one in run_steps(steps, 1, clock, record)]
    assert names == ["b", "a", "c", "d"]


def test_no_more_steps_than_jobs_run_at_once(tmp_path, record):
    (tmp_path / "jobs").write_text("3")
    outputs = [tmp_path / str(number) for number in range(8)]
    assert len(list(run_steps(list(map(step, outputs)), 3, meet, record))) == 8
    spans = [tuple(map(float, output.read_text().split())) for output in outputs]
    at_once = [sum(start <= moment < end for start, end in spans) for moment, _ in spans]
    assert max(at_once) == 3


def test_a_failed_step_is_told_with_its_command_and_the_others_end(tiny, tmp_path, record):
    arguments = ("make-noisy", "digits", "-r", "5%")
    broken = Step("x.safetensors", arguments, (), (Path("x.safetensors"),), tmp_path)
    with pytest.raises(MemtoolError) as error:
        list(run_steps([broken, *tiny], 2, main, record))
    assert "Missing option '-o'" in str(error.value)
    assert "memtool make-noisy digits -r 5%)" in str(error.value)


def test_a_step_that_the_system_killed_is_told_as_that(tmp_path, record):
    with pytest.raises(MemtoolError, match="out: ended by SIGKILL, as a system .* out of memory"):
        list(run_steps([step(tmp_path / "out")], 1, die, record))


def test_a_step_that_does_not_make_its_output_has_failed(tmp_path, record):
    idle = Step("idle", ("-o", Path("other")), (), (Path("output"),), tmp_path)
    with pytest.raises(MemtoolError, match=r"idle: did not make .*output"):
        list(run_steps([idle], 1, warn, record))


@pytest.mark.parametrize("end", ["failure", "closed", "Ctrl-C"])
def test_however_it_ends_no_process_and_no_partial_file_is_left(tmp_path, record, end):
    quick, slow, bad = tmp_path / "quick", tmp_path / "slow", tmp_path / "bad"
    steps = [step(quick), step(slow), *([step(bad)] if end == "failure" else [])]
    outcomes = run_steps(steps, 3, hold, record)
    assert next(outcomes).step.name == "quick"
    if end == "failure":
        (tmp_path / "go").write_text("go")
        with pytest.raises(MemtoolError, match=r"^bad: a bad step \(the step alone: "):
            list(outcomes)
        (tmp_path / "go").unlink()
    else:
        wait_for(tmp_path / "pid")
        if end == "closed":
            outcomes.close()
        else:
            with pytest.raises(KeyboardInterrupt):
                outcomes.throw(KeyboardInterrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"quick", "pid", "steps.csv", *(["bad"] if end == "failure" else [])}


PARENT = """
import multiprocessing, os, sys, threading, time
from memtool.reproduction.runner import end_with_parent

def child(path):
    threading.Thread(target=end_with_parent, daemon=True).start()
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)

multiprocessing.get_context("fork").Process(target=child, args=(sys.argv[1],)).start()
time.sleep(600)
"""
PARENT_OF_WORKERS = """
import sys
from memtool.reproduction import workers

WORK = "import os, time; open({!r}, 'w').write(str(os.getpid())); time.sleep(600)"
with workers(1) as pool:
    list(pool.map(exec, [WORK.format(sys.argv[1])]))
"""


@pytest.mark.parametrize("code", [PARENT, PARENT_OF_WORKERS])
def test_a_process_ends_when_the_one_that_has_started_it_is_killed(tmp_path, code):
    arguments = [sys.executable, "-c", code, str(tmp_path / "pid")]
    environment = os.environ | {"PYTHONPATH": str(Path(memtool.__file__).parents[1])}
    parent = subprocess.Popen(arguments, env=environment)
    wait_for(tmp_path / "pid")
    parent.kill()
    parent.wait()
    child = int((tmp_path / "pid").read_text())
    for _ in range(600):
        if not is_running(child):
            break
        time.sleep(0.1)
    assert not is_running(child)


LINGERING = """
import os, signal, sys, time
from pathlib import Path
from memtool.reproduction import Record, Step, run_steps

def command(arguments):
    stop()
    output = Path(arguments[-1])
    try:
        output.with_name("pid").write_text(str(os.getpid()))
        time.sleep(600)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1)
        output.with_name("tidied").touch()

def stop():
    signal.signal(signal.SIGTERM, end)

def end(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may come twice: to all, and to each
    sys.exit(143)

if __name__ == "__main__":
    import lingering
    stop()
    here = Path.cwd()
    step = Step("x", ("-o", Path("x")), (), (Path("x"),), here)
    list(run_steps([step], 1, lingering.command, Record(here / "steps.csv")))
"""


def test_steps_can_tidy_up_when_a_signal_ends_all_processes_at_once(tmp_path):
    """As timeout, a batch system or a closed terminal ends them: also the one that forks them."""
    (tmp_path / "lingering.py").write_text(LINGERING)
    package = str(Path(memtool.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": package}
    parent = subprocess.Popen(
        [sys.executable, "lingering.py"], env=environment, cwd=tmp_path, start_new_session=True
    )
    wait_for(tmp_path / "pid")
    os.killpg(parent.pid, signal.SIGTERM)
    assert parent.wait() == 143
    assert (tmp_path / "tidied").exists()


SLOW_TO_IMPORT = """
import os, signal, sys, time
from pathlib import Path
from memtool.reproduction import Record, Step, run_steps

def command(arguments):
    pass

if __name__ == "__main__":
    import slow
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored, as by nohup
    here = Path.cwd()
    step = Step("x", ("-o", Path("x")), (), (Path("x"),), here)
    try:
        list(run_steps([step], 1, slow.command, Record(here / "steps.csv")))
    except KeyboardInterrupt:
        sys.exit(130)
elif (parent := Path("parent")).exists():  # in the process that forks the steps
    Path("importing").write_text("now")
    time.sleep(2)
else:
    parent.touch()
"""


def test_ctrl_c_while_modules_are_imported_beforehand_is_told_by_nobody(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_TO_IMPORT)
    environment = os.environ | {"PYTHONPATH": str(Path(memtool.__file__).parents[1])}
    parent = subprocess.Popen(
        [sys.executable, "slow.py"],
        env=environment,
        cwd=tmp_path,
        start_new_session=True,
        stderr=subprocess.PIPE,
    )
    wait_for(tmp_path / "importing")
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.communicate()[1] == b"" and parent.returncode == 130


QUICK = """
from pathlib import Path
from memtool.reproduction import Record, Step, run_steps

def command(arguments):
    Path(arguments[-1]).touch()

if __name__ == "__main__":
    import quick
    here = Path.cwd()
    step = Step("x", ("-o", Path("x")), (), (Path("x"),), here)
    list(run_steps([step], 1, quick.command, Record(here / "steps.csv")))
"""


def test_a_long_name_of_the_directory_for_temporary_files_does_no_harm(tmp_path):
    (tmp_path / "quick.py").write_text(QUICK)
    (long := tmp_path / ("x" * 100)).mkdir()
    package = str(Path(memtool.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": package, "TMPDIR": str(long)}
    subprocess.run([sys.executable, "quick.py"], env=environment, cwd=tmp_path, check=True)
    assert (tmp_path / "x").exists() and not list(long.iterdir())


def is_running(pid):
    """Whether a process runs; one that has ended may be a zombie of nobody's."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_worker_that_is_killed_is_told():
    with pytest.raises(MemtoolError, match="a process of this command was ended from outside"):
        with workers(1) as pool:
            list(pool.map(die, [[]]))


def test_what_a_step_warns_of_is_passed_on(tmp_path, record):
    (done,) = run_steps([step(tmp_path / "x")], 1, warn, record)
    assert done.warnings == ("a layer is constant",)
    assert tables.read(record.path)[0]["warnings"] == "a layer is constant"


@pytest.mark.parametrize("module", runner.PRELOAD)
def test_what_is_imported_beforehand_exists(module):
    assert importlib.import_module(module)


def test_what_make_has_made_is_on_record_afterwards(tmp_path, record):
    made = step(tmp_path / "a")
    (tmp_path / "a").touch()
    assert [one.seconds for one in run_steps([made], 1, clock, record)] == [None]
    known = Record(record.path).commands
    assert made.is_done(known)
    assert not replace(made, words=("--epochs", "5", *made.words)).is_done(known)


def test_a_record_without_digests_is_taken_as_it_is(tmp_path, record):
    made = step(tmp_path / "x")
    (tmp_path / "x").touch()
    record.keep(made, seconds=1.0)
    digest = str(record.rows["x"]["digest"])
    text = record.path.read_text()
    assert digest in text
    record.path.write_text(text.replace(digest, ""))
    assert Record(record.path).commands == record.commands


def test_what_took_the_place_of_a_file_on_record_is_made_again(tmp_path, record):
    """By whatever options make made it."""
    a, b = steps = [step(tmp_path / "a"), step(tmp_path / "b")]
    assert all(one.seconds for one in run_steps(steps, 1, clock, record))
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("steps.csv", "b", "a"):
        (copy / name).write_bytes((tmp_path / name).read_bytes())
    known = Record(copy / "steps.csv").commands
    assert all(replace(one, root=copy).is_done(known) for one in steps)

    (tmp_path / "a").write_text("made by other options")
    later = Record(record.path)
    assert list(pending(steps, later.commands)) == [a] and a.is_stale(later.commands)
    assert [one.step for one in run_steps(steps, 1, clock, later) if one.seconds] == [a]
    assert "options" not in (tmp_path / "a").read_text()
    assert not list(pending(steps, Record(record.path).commands))


def test_a_stopped_step_goes_on_though_its_former_output_is_there(tmp_path, record):
    made = replace(step(tmp_path / "x"), leaves=(Path("x.partial"),))
    assert list(run_steps([made], 1, clock, record))
    (tmp_path / "x.partial").touch()
    runner._prepare(made, record)  # an input is newer, say
    runner._prepare(made, Record(record.path))
    assert (tmp_path / "x.partial").exists()


def test_what_is_gone_is_told_with_what_makes_it_anew(tmp_path, record):
    made = Path("made.csv")
    (tmp_path / made).touch()
    needing = Step("x", ("info", Path("gone.safetensors")), (made,), (Path("x"),), tmp_path)
    with pytest.raises(
        MemtoolError, match="gone.safetensors: no such file; it was made together w"
    ):
        list(run_steps([needing], 1, main, record))
