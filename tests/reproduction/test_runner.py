"""Running steps: order, jobs, what is skipped, what is told, and what is left when it stops."""

import importlib
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from memtool import MemtoolError
from memtool.cli import main
from memtool.files import replacing
from memtool.reproduction import FIGURES, Step, run_steps, runner


def step(output, inputs=(), *arguments):
    return Step(Path(output).name, (*arguments, "-o", str(output)), tuple(inputs), output)


# Commands that steps run in place of memtool's; the last argument is the output.


def warn(arguments):
    print("a note\nmemtool: warning: a layer is constant", file=sys.stderr)
    Path(arguments[-1]).touch()


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
    """Make `quick` at once and fail at `bad` once `slow` is under way, which never ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    output = Path(arguments[-1])
    with replacing(output) as temporary:
        temporary.write_text("half")
        if output.name == "slow":
            output.with_name("pid").write_text(str(os.getpid()))
            time.sleep(600)
    if output.name == "bad":
        wait_for(output.with_name("pid"))
        sys.exit("memtool: error: a bad step")


def wait_for(path):
    for _ in range(600):
        if path.exists() and path.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} did not appear in a minute")


def test_steps_run_once_and_again_only_when_an_input_is_newer(tiny):
    done = list(run_steps(tiny, jobs=2, command=main))
    assert [one.seconds for one in done].count(None) == 0
    assert sorted(path.name for path in Path("out").glob("*.*")) == sorted(
        f"{stem}.{suffix}" for stem in FIGURES.values() for suffix in ("csv", "pdf", "png")
    )
    again = list(run_steps(tiny, jobs=2, command=main))
    assert {one.seconds for one in again} == {None}

    Path("out/tables/stitching-r0-s0.csv").touch()
    remade = [one.step.name for one in run_steps(tiny, 2, main) if one.seconds is not None]
    assert sorted(remade) == [f"figure2-stitching.{suffix}" for suffix in ("csv", "pdf", "png")]


def test_a_step_waits_for_those_that_make_its_inputs_and_earlier_ones_go_first(tmp_path):
    a, b, c, d = (tmp_path / name for name in "abcd")
    steps = [step(d, [c, b]), step(b), step(c, [a]), step(a)]
    names = [one.step.name for one in run_steps(steps, jobs=1, command=clock)]
    assert names == ["b", "a", "c", "d"]


def test_no_more_steps_than_jobs_run_at_once(tmp_path):
    (tmp_path / "jobs").write_text("3")
    outputs = [tmp_path / str(number) for number in range(8)]
    assert len(list(run_steps(list(map(step, outputs)), jobs=3, command=meet))) == 8
    spans = [tuple(map(float, output.read_text().split())) for output in outputs]
    at_once = [sum(start <= moment < end for start, end in spans) for moment, _ in spans]
    assert max(at_once) == 3


def test_a_failed_step_is_told_with_its_command_and_the_others_end(tiny, tmp_path):
    arguments = ("make-noisy", "digits", "-r", "5%")
    broken = Step("x.safetensors", arguments, (), tmp_path / "x.safetensors")
    with pytest.raises(MemtoolError) as error:
        list(run_steps([broken, *tiny], jobs=2, command=main))
    assert "Missing option '-o'" in str(error.value)
    assert "memtool make-noisy digits -r 5%)" in str(error.value)


def test_a_step_that_does_not_make_its_output_has_failed(tmp_path):
    idle = Step("idle", ("-o", str(tmp_path / "other")), (), tmp_path / "output")
    with pytest.raises(MemtoolError, match=r"idle: did not make .*output"):
        list(run_steps([idle], jobs=1, command=warn))


@pytest.mark.parametrize("end", ["failure", "closed", "Ctrl-C"])
def test_however_it_ends_no_process_and_no_partial_file_is_left(tmp_path, end):
    quick, slow, bad = tmp_path / "quick", tmp_path / "slow", tmp_path / "bad"
    steps = [step(quick), step(slow), *([step(bad)] if end == "failure" else [])]
    outcomes = run_steps(steps, jobs=3, command=hold)
    assert next(outcomes).step.name == "quick"
    if end == "failure":
        with pytest.raises(MemtoolError, match=r"^bad: a bad step \(the step alone: "):
            list(outcomes)
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
    assert left == {"quick", "pid", *(["bad"] if end == "failure" else [])}


def test_what_a_step_warns_of_is_passed_on(tmp_path):
    (done,) = run_steps([step(tmp_path / "x")], jobs=1, command=warn)
    assert done.warnings == ("a layer is constant",)


@pytest.mark.parametrize("module", runner.PRELOAD)
def test_what_is_imported_beforehand_exists(module):
    assert importlib.import_module(module)
