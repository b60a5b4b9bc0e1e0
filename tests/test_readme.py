"""The README: its Python page runs, its commands have the options that it types."""

import doctest
import re
import shlex
from pathlib import Path

import typer.main

from memtool.cli import app

README = Path(__file__).parents[1] / "README.md"


def commands() -> list[list[str]]:
    """The memtool commands in the README, as a shell splits them."""
    text = README.read_text().replace("\\\n", " ")
    lines = re.findall(r"^    (?:\$ )?(?:.*&& )?(memtool .*)$", text, flags=re.M)
    parts = [part for line in lines for part in re.split(r"\s\|\s*", line)]
    return [shlex.split(part) for part in parts]


def test_the_python_page_is_true(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/r50.safetensors").symlink_to(runs.noisy)
    (tmp_path / "runs/r50.csv").symlink_to(runs.noisy_table)
    result = doctest.testfile(str(README), module_relative=False)
    assert result.attempted > 15 and result.failed == 0
    assert (tmp_path / "training.png").stat().st_size > 10_000


def test_commands_have_the_options_that_are_typed():
    known = typer.main.get_command(app).commands
    found = [words for words in commands() if len(words) > 1]
    assert len(found) > 10
    for _, name, *arguments in found:
        options = {option for param in known[name].params for option in param.opts}
        for word in arguments:
            if re.match(r"--?[a-z]", word):
                assert word in options, (name, word)


def test_what_the_readme_links_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
