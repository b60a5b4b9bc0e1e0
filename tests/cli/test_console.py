"""What goes to stderr: notes, warnings, progress in a log."""

import logging
import warnings

import pytest

from memtool.cli.console import be_quiet, logger, progress, telling


def test_a_warning_is_said_even_when_quiet(capsys):
    with telling():
        be_quiet(True)
        logger.warning("it is odd")
        logger.info("it is even")
    assert capsys.readouterr().err == "memtool: warning: it is odd\n"


@pytest.mark.filterwarnings("always")
def test_what_other_libraries_warn_of_is_told_once_and_without_controls(capsys):
    with telling():
        for _ in range(3):
            logging.getLogger("matplotlib.font_manager").warning("no font \x1b[31m")
            warnings.warn("no time \x1b[31m", RuntimeWarning, stacklevel=1)
    assert capsys.readouterr().err == (
        "memtool: warning: no font \\x1b[31m\nmemtool: warning: RuntimeWarning: no time \\x1b[31m\n"
    )


@pytest.mark.parametrize("quiet, said", [(False, "work: 2/3, more\nwork: 3/3, more\n"), (True, "")])
def test_a_log_is_told_now_and_then_how_far_long_work_has_got(capsys, monkeypatch, quiet, said):
    clock = iter([0, 10, 31, 31, 62, 62]).__next__
    monkeypatch.setattr("memtool.cli.console.clock", clock)
    with telling():
        be_quiet(quiet)
        with progress("work", 3) as advance:
            advance()
            advance(description="more")
            advance()
    assert capsys.readouterr().err == said


def test_a_log_has_no_bar_whatever_the_environment_says_of_colours(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with telling(), progress("work", 3) as advance:
        advance()
    assert capsys.readouterr().err == ""


def test_no_error_is_longer_than_some_hundred_characters_and_its_ends_are_kept(run):
    told = run("info", "x" * 2000 + ".safetensors").stderr
    assert len(told) < 900 and told.startswith("memtool: error: xxx")
    assert told.rstrip().endswith(")") or told.rstrip().endswith("no such file")
