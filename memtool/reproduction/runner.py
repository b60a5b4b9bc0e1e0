"""Running steps in processes, several at a time."""

import gc
import heapq
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from threading import Thread

from memtool import MemtoolError
from memtool.errors import ERROR, WARNING
from memtool.reproduction.recipes import ENVIRONMENT
from memtool.reproduction.record import Record
from memtool.reproduction.steps import Step
from memtool.tables import stdout

Command = Callable[[list[str]], None]

# What the steps would otherwise import each in its own process, besides the module of the command.
PRELOAD = [
    *("torch", "memtool.training.run", "memtool.similarity.comparison", "memtool.stitching.sweep"),
    *("memtool.layers.tracing", "memtool.models.nets", "safetensors.torch", "safetensors.numpy"),
    *("memtool.figures.drawing", "memtool.figures.saving", "memtool.tables.reading"),
    *("matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf", "fontTools.subset"),
    *("numpy.random", "typer._adapters"),  # which reads the arguments
]


@dataclass(frozen=True)
class StepResult:
    """A step that is done: the seconds it ran for, None if it was skipped, the most bytes that its
    process had in memory, and its warnings."""

    step: Step
    seconds: float | None = None
    memory: int | None = None
    warnings: tuple[str, ...] = ()


def run_steps(
    steps: Sequence[Step], jobs: int, command: Command, record: Record
) -> Iterator[StepResult]:
    """Run the steps that are not done yet, at most `jobs` at a time; yield each as it ends.

    A step runs once those that make its inputs are done; among the steps that can run, those that
    come first in `steps` go first. `command` runs memtool with the given arguments. `record` knows
    by which command a file was made; one that was made by another command, or took the place of
    the one on record, is removed first. One that it does not know, as after `make`, counts as made
    by the command that would make it now.

    Each step has a process of its own, forked from one that has already imported torch. Raises
    MemtoolError for a step that fails, with the last line that it wrote to stderr. However the
    iteration ends, it leaves no process and no partial file behind.
    """
    order = _order(steps)
    waiting: list[int] = []  # a heap of the steps that can run, by their places in `steps`
    running: dict[int, _Running] = {}
    with tempfile.TemporaryDirectory(prefix="memtool-") as logs, _stopping(running.values()):
        while order.is_active():
            while ready := order.get_ready():
                for place in ready:
                    if steps[place].is_done(record.commands):
                        if steps[place].key not in record.commands:  # make made it
                            record.keep(steps[place])
                        order.done(place)
                        yield StepResult(steps[place])
                    else:
                        heapq.heappush(waiting, place)
            while waiting and len(running) < jobs:
                place = heapq.heappop(waiting)
                _prepare(steps[place], record)
                with _uninterrupted():
                    running[place] = _start(steps[place], command, Path(logs))
            for place in _ended(running):
                result = running.pop(place).result()
                record.keep(result.step, result.seconds, result.memory, result.warnings)
                order.done(place)
                yield result


@contextmanager
def workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """At most so many processes for other work, forked from the one that those of steps are, which
    runs already, and as silent. Raises MemtoolError if one is ended from outside."""
    context = multiprocessing.get_context("forkserver")
    try:
        with ProcessPoolExecutor(jobs, context, _become_worker) as pool:
            yield pool
    except BrokenProcessPool as error:
        raise MemtoolError(
            "a process of this command was ended from outside; the same command goes on"
        ) from error


def _become_worker() -> None:
    Thread(target=end_with_parent, daemon=True).start()
    logging.disable()


def try_steps(steps: Sequence[Step], command: Command) -> None:
    """Run the steps one after the other, as `run_steps` runs them, whether they are done or not.

    Raises MemtoolError for the first that fails.
    """
    with tempfile.TemporaryDirectory(prefix="memtool-") as logs:
        for step in steps:
            running: list[_Running] = []
            with _stopping(running):
                with _uninterrupted():
                    running.append(_start(step, command, Path(logs)))
                running[0].result()


def _prepare(step: Step, record: Record) -> None:
    """Remove what another command made, whole or in part, and record that this one is to run."""
    if step.is_stale(record.commands):
        left = [path for glob in step.leaves for path in step.root.glob(str(glob))]
        for path in (*left, *(step.root / output for output in step.outputs)):
            path.unlink(missing_ok=True)
    record.keep(step)


def _order(steps: Sequence[Step]) -> TopologicalSorter[int]:
    """The steps by their places, each after those that make its inputs."""
    makers = {output: place for place, step in enumerate(steps) for output in step.outputs}
    order = TopologicalSorter(
        {
            place: [makers[path] for path in step.inputs if path in makers]
            for place, step in enumerate(steps)
        }
    )
    order.prepare()
    return order


@dataclass(frozen=True)
class _Running:
    """The process of a step, a pipe that ends with it, the time at which it started, and the file
    that gets its stderr; that of the same name with `.memory` gets the most bytes that it had in
    memory."""

    step: Step
    process: BaseProcess
    pipe: connection.Connection
    start: float
    log: Path

    def result(self) -> StepResult:
        """Wait for the process to end. Raises MemtoolError if the step failed."""
        self.process.join()
        said = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        _check(self.step, self.process.exitcode, [line for line in said if line.strip()])
        warnings = tuple(line.removeprefix(WARNING) for line in said if line.startswith(WARNING))
        memory = _memory_file(self.log)
        return StepResult(
            self.step,
            seconds=time.monotonic() - self.start,
            memory=int(memory.read_text()) if memory.exists() else None,
            warnings=warnings,
        )


def open_server(command: Command) -> None:
    """Start the process from which those of the steps are forked, unless it runs, without waiting
    for what it imports."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    forkserver.set_forkserver_preload([command.__module__, *PRELOAD])
    with _uninterrupted(), _short_names():
        forkserver.ensure_running()


def _start(step: Step, command: Command, logs: Path) -> _Running:
    open_server(command)
    context = multiprocessing.get_context("forkserver")
    log = logs / step.name
    pipe, end = context.Pipe(duplex=False)
    process = context.Process(target=_execute, args=(command, step.arguments, log, end))
    process.start()
    end.close()
    return _Running(step=step, process=process, pipe=pipe, start=time.monotonic(), log=log)


@contextmanager
def _short_names() -> Iterator[None]:
    """Within the block, temporary directories are made in /tmp if a socket in those of a cluster's
    job, say, would have a longer name than it may have: 103 bytes, of which it takes 32 itself."""
    directory = tempfile.gettempdir()
    tempfile.tempdir = directory if len(os.fsencode(directory)) <= 103 - 32 else "/tmp"
    try:
        yield
    finally:
        tempfile.tempdir = directory


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Within the block, Ctrl-C has to wait. Processes that start in there, and those that they
    start, never see it: it is this one that ends them then, in order."""
    resource_tracker.ensure_running()  # which starts with the first process, and ends the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ended(running: Mapping[int, _Running]) -> list[int]:
    """The steps that have ended, by their places; waits for the first one to end."""
    sentinels = [one.process.sentinel for one in running.values()]
    ended = connection.wait(sentinels) if sentinels else []
    return [place for place, one in running.items() if one.process.sentinel in ended]


@contextmanager
def _stopping(running: Collection[_Running]) -> Iterator[None]:
    """Stop the processes that are still running when the block ends."""
    try:
        yield
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.join()
            # That returns at once if a signal to all processes ended the one that forks them.
            connection.wait([one.pipe])


def _execute(command: Command, arguments: list[str], log: Path, end: connection.Connection) -> None:
    """Run a step in this process, with stdout going nowhere and stderr to `log`; `end`, of a pipe,
    is open meanwhile."""
    Thread(target=end_with_parent, daemon=True).start()
    gc.freeze()  # a collection would write to, and so copy, all memory shared with the parent
    for path, stream in ((Path(os.devnull), stdout()), (log, sys.stderr)):
        try:
            with open(path, "wb") as file:
                os.dup2(file.fileno(), stream.fileno())
        except FileNotFoundError:  # whoever wanted the step has been stopped meanwhile
            os._exit(1)
    try:
        command(arguments)
    finally:
        unit = 1 if sys.platform == "darwin" else 1024
        _memory_file(log).write_text(str(unit * getrusage(RUSAGE_SELF).ru_maxrss))


def end_with_parent() -> None:
    """Wait until the process that runs the steps is gone, however it ended, and end this one:
    nobody else would, and the next who runs the step would find it at work."""
    if parent := multiprocessing.parent_process():
        connection.wait([parent.sentinel])
        os._exit(1)


def _memory_file(log: Path) -> Path:
    return log.with_name(f"{log.name}.memory")


def _check(step: Step, code: int | None, said: Sequence[str]) -> None:
    """Raise MemtoolError if the step's process failed, or did not make its output."""
    if code:
        last = said[-1].removeprefix(ERROR) if said else f"exit code {code}"
        if code < 0:  # multiprocessing's way to say by what signal
            last = f"ended by {signal.Signals(-code).name}"
        if code == -getattr(signal, "SIGKILL", 0):
            last += ", as a system does that runs out of memory; fewer --jobs take less"
        if step.inputs and last.endswith(": no such file"):
            beside = step.root / step.inputs[0]
            last += f"; it was made together with {beside}: remove that, and both are made anew"
        alone = f" (the step alone: {step.command})" if step.outputs else ""
        raise MemtoolError(f"{step.name}: {last}{alone}")
    for path in step.outputs:
        if not (step.root / path).exists():
            raise MemtoolError(f"{step.name}: did not make {step.root / path}")
