"""The command line: one thin file per command, which parses, calls and writes.

Exit codes: 0 done; 1 the work failed; 2 wrong usage; 130 Ctrl-C; 129 hung up; 143 terminated. If a
pipe is closed, a command that makes nothing but rows ends quietly with 0, and one that makes files
finishes them first. Nothing here imports torch before a command runs.
"""

import errno
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from memtool import MemtoolError, __version__, compiler
from memtool.cli import startup
from memtool.cli.console import is_debugging, stderr, telling
from memtool.device import is_first, is_first_to_fail
from memtool.errors import ERROR, Stopped, is_lack_of_memory, one_line, printable
from memtool.paths import expanded
from memtool.tables import discard, prints_aside

Function = TypeVar("Function", bound=Callable[..., Any])


# Here, since the steps of `reproduce` start from where this was imported.
compiler.postpone()
startup.hasten()

MOST_TOLD = 800  # characters of an error


class Group(TyperGroup):
    """The one place where errors become messages and exit codes."""

    def invoke(self, ctx: Any) -> Any:
        with _system_errors():
            with telling():
                result = self._told(ctx)
            sys.stdout.flush()
            return result

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _system_errors(), _in_short():  # --help and --version are printed here
            return super().parse_args(ctx, args)

    def _told(self, ctx: Any) -> Any:
        try:
            with _in_short():
                return super().invoke(ctx)
        except MemtoolError as error:
            raise _failed(error, error) from error
        except (MemoryError, RuntimeError) as error:
            if not is_lack_of_memory(error):
                raise
            raise _failed(error, f"{NO_MEMORY} ({error})") from error
        except ImportError as error:
            if UNMAPPED not in str(error):
                raise
            raise _failed(error, f"{error}: memory is limited (ulimit -v)") from error
        except Stopped:
            raise
        except SystemExit as error:
            told = f"the code of a network ended the program: {one_line(error)}"
            raise _failed(error, told) from error
        except typer.BadParameter as error:
            if not is_first():  # all processes of a torchrun find the same
                raise typer.Exit(error.exit_code) from error
            raise


@contextmanager
def _system_errors() -> Iterator[None]:
    """Within the block, an error of the system becomes a message and an exit code; where stdout is
    a closed pipe, none: whoever read it has seen enough."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.ENOSPC):
            discard(sys.stdout)  # or Python would complain once more when it flushes it at exit
        if error.errno == errno.EPIPE:
            raise typer.Exit(0) from None
        place = "" if error.filename is None else f"{error.filename}: "
        raise _failed(error, f"{place}{error.strerror or error}") from error


UNMAPPED = "failed to map segment"  # of a shared library, as the system's loader says it
NO_MEMORY = "no memory is left; choose a smaller --memory or --batch-size, or stop what else runs"


def _failed(error: BaseException, told: object) -> typer.Exit:
    """The end of a command that has failed, which one process of a torchrun tells."""
    if is_debugging():
        traceback.print_exc()
    if is_first_to_fail(error):
        stderr.print(f"{ERROR}{_line(told)}")
    return typer.Exit(1)


def _line(error: object) -> str:
    """An error in one line of some hundred characters, whatever libraries and files put into it."""
    line = printable(" ".join(str(error).splitlines()))
    if len(line) > MOST_TOLD:  # the beginning names the file, the end the way out
        line = f"{line[: MOST_TOLD - 205]} ... {line[-200:]}"
    return line


UsageError: Any = typer.BadParameter.__base__


@contextmanager
def _in_short() -> Iterator[None]:
    """What is wrong with the command line, which typer prints, is told likewise in a line."""
    try:
        yield
    except UsageError as error:
        # As pydantic begins what typer's own checks of a value say.
        error.message = _line(error.message.removeprefix("Value error, "))
        raise


# Commands whose work the processes of a torchrun share.
SHARED = ("train", "cka", "stitch")


class Command(TyperCommand):
    """Arguments as their metavar says; typer adds braces and the Python type on its own."""

    def invoke(self, ctx: Any) -> Any:
        if self.name not in SHARED and os.environ.get("WORLD_SIZE", "1") != "1":
            raise MemtoolError(
                f"memtool {self.name} works in one process; run it without torchrun, which "
                f"{', '.join(SHARED[:-1])} and {SHARED[-1]} take"
            )
        ctx.params = {name: _expanded(value) for name, value in ctx.params.items()}
        with prints_aside():
            return super().invoke(ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [p for p in self.params if p.param_type_name == "argument"]
        return ["[OPTIONS]", *(argument.metavar or "" for argument in arguments)]

    def get_params(self, ctx: Any) -> Any:
        params: list[Any] = super().get_params(ctx)
        for param in params:
            if param.param_type_name == "argument":
                param.display_type_rich = lambda ctx: ""
        return params


def _expanded(value: Any) -> Any:
    """The value of an option, with ~ as the user's home where it is a path, or a list of them."""
    if isinstance(value, list):
        return [_expanded(one) for one in value]
    return expanded(value) if isinstance(value, Path) else value


class App(typer.Typer):
    def command(self, name: str | None = None, **options: Any) -> Callable[[Function], Function]:
        return super().command(name, **{"cls": Command, **options})


app = App(
    name="memtool",
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        print(f"memtool {__version__}")
        raise typer.Exit


@app.callback()
def _memtool(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version"),
    ] = False,
) -> None:
    """Show where in a neural network memorization lives

    Make noisy labels, train classifiers on them, compare checkpoints layer by layer with CKA,
    stitch the front of one network to the back of another, and draw the figures.

    \b
    Examples:
      memtool reproduce digits -o out
      memtool make-noisy digits -r 25% -o labels/r25.safetensors
      memtool train --model digits-cnn --data digits \\
          --labels labels/r25.safetensors -o runs/r25.safetensors
      memtool cka runs/r25.safetensors runs/r0.safetensors --layers all
    """


class _Stop:
    """Ends the command by an exception when a signal comes. Those that come within the next second,
    as from an impatient user or from a shell that stops a whole pipe, do not disturb the removal of
    temporary files."""

    def __init__(self) -> None:
        self.last = -math.inf

    def __call__(self, number: int, _: object) -> None:
        before, self.last = self.last, time.monotonic()
        if self.last - before < 1:
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Stopped(128 + number)


def main(arguments: list[str] | None = None) -> None:
    """The console script. SIGTERM and SIGHUP end it as Ctrl-C does: temporary files are removed."""
    stop = _Stop()
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    # Those that are ignored are meant to be, as nohup does it.
    numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    for number in numbers:
        signal.signal(number, stop)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed, as by >&-: files that are opened would take its place
            setattr(sys, name, open(os.devnull, mode))
        elif name != "stdin" and isinstance(
            stream, TextIOWrapper
        ):  # names in a script that its encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        command(arguments, prog_name="memtool")
    except SystemExit as done:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            # A thread that gloo leaves running can abort an interpreter which is taken down.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(done.code if isinstance(done.code, int) else bool(done.code))
        raise
    finally:  # while the interpreter is taken down, an exception would be told and not end it
        for number in numbers:
            signal.signal(number, lambda number, _: os._exit(128 + number))


from memtool.cli import (  # noqa: E402, F401 (each file adds its command to `app`)
    cka,
    convert,
    info,
    make_noisy,
    plot,
    report,
    reproduce,
    stitch,
    train,
)

command = typer.main.get_command(app)  # built here, once for all steps of `reproduce`
