"""Man pages and completions: generated, current, well-formed, and working in the shells."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import is_typeddict

import pytest
import typer.main

from memtool import manual, tables
from memtool.cli import app
from memtool.data import NoiseKind
from memtool.device import Precision
from memtool.metadata import HEADER, KINDS, places
from memtool.models import Connector
from memtool.similarity.settings import Estimator, Kernel
from memtool.stitching import Init
from memtool.tables import rows
from memtool.training.settings import Augment, Optimizer, Schedule

GROUP = typer.main.get_command(app)
PAGES = {path.name: text for path, text in manual.pages().items() if path.parent.name == "man"}


def needs(program):
    return pytest.mark.skipif(not shutil.which(program), reason=f"{program} is not installed")


def test_pages_and_completions_are_current():
    difference = manual.stale()
    assert not difference, f"run: python -m memtool.manual\n{difference}"


def test_a_stale_page_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(manual, "ROOT", tmp_path)
    manual.write()
    assert manual.stale() == ""
    page = tmp_path / "man/memtool-cka.1"
    page.write_text(page.read_text().replace("CKA", "KCA"))
    (tmp_path / "man/memtool-gone.1").write_text("old\n")
    assert "+++ man/memtool-cka.1 (expected)" in manual.stale()
    assert "-old" in manual.stale()
    manual.write()
    assert manual.stale() == ""


def test_every_command_has_a_page_with_all_its_options_and_examples():
    for name, command in GROUP.commands.items():
        page = PAGES[f"memtool-{name}.1"].replace("\\-", "-")
        options = [option for param in command.params for option in param.opts if "-" in option]
        assert [option for option in options if option not in page] == []
        assert len(re.findall(rf"^ *memtool {name}|\| memtool {name}", page, re.MULTILINE)) >= 2
        assert f"memtool-{name}" in PAGES["memtool.1"].replace("\\-", "-")


CHOICES = (NoiseKind, Optimizer, Schedule, Augment, Precision, Estimator, Kernel, Connector, Init)
UNLISTED = {Estimator.auto, Estimator.biased}  # which no table has


def texts():
    """What options, columns and fields mean, by their places."""
    for name, command in GROUP.commands.items():
        yield from ((f"{name} {param.opts[-1]}", param.help or "") for param in command.params)
    for table in filter(is_typeddict, vars(rows).values()):
        for name, column in tables.columns(table).items():
            yield f"{table.__name__}.{name}", column.meaning
    for kind in KINDS.values():
        yield from ((place, field.meaning) for place, field in places(kind.fields, []))


def incomplete(choices):
    """The places of the texts that list some of the choices, two or more, and not all."""
    choices = {str(one) for one in choices} - UNLISTED
    for place, text in texts():
        told = choices & set(re.findall(r"[\w-]+", text))
        if 1 < len(told) < len(choices):
            yield place


@pytest.mark.parametrize("choices", CHOICES)
def test_texts_that_list_choices_list_them_all(choices):
    assert list(incomplete(choices)) == []
    assert list(incomplete([*choices, "another"])) != []


def columns_told(page):
    """The tags of each part of the section COLUMNS, by the part's heading."""
    section = page.partition(".SH COLUMNS\n")[2].partition("\n.SH ")[0].replace("\\-", "-")
    parts = re.split(r"^\.SS (.*)\n", f".SS \n{section}", flags=re.MULTILINE)[1:]
    tags = [re.findall(r"^\.TP\n\.B (.*)\n(.+)$", text, re.MULTILINE) for text in parts[1::2]]
    return {head: found for head, found in zip(parts[::2], tags, strict=True) if found}


@pytest.mark.parametrize(
    ("command", "printed"),
    {
        "train": {"": tables.TrainingRow},
        "cka": {"": tables.CkaRow},
        "stitch": {"": tables.StitchingRow},
        "info": {"memtool info": tables.FileRow, "memtool info --layers": tables.LayerRow},
        "reproduce": {
            "memtool reproduce": tables.FindingRow,
            "memtool reproduce (steps.csv)": tables.StepRow,
        },
        "plot": {"": tables.PointRow},
        "convert": {},
    }.items(),
)
def test_every_column_is_explained_in_the_page_of_the_command_that_prints_it(command, printed):
    told = columns_told(PAGES[f"memtool-{command}.1"])
    assert list(told) == list(printed)
    for heading, row_type in printed.items():
        tags = [f"{name} ({tables.type_of(row_type, name)})" for name in tables.columns(row_type)]
        assert [tag for tag, _ in told[heading]] == tags


def test_no_table_is_left_out_of_the_pages():
    declared = {kind for kind in vars(rows).values() if is_typeddict(kind)}
    assert set(manual.ROWS.values()) == declared


def test_every_declared_field_is_explained_in_the_page_of_formats():
    page = PAGES["memtool-formats.5"].replace("\\-", "-")
    told = []
    declared = {name.upper(): kind.fields for name, kind in KINDS.items()}
    for heading, fields in {"EVERY FILE": HEADER, **declared}.items():
        section = page.partition(f".SH {heading}\n")[2].partition("\n.SH ")[0]
        tags = re.findall(r"^\.TP\n\.B (\S+) \((.+)\)\n.+$", section, re.MULTILINE)
        assert tags == [
            (place, field.type.words + ", required" * field.required)
            for place, field in places(fields, told)
        ]


def test_every_environment_variable_and_exit_code_is_told():
    page = PAGES["memtool.1"]
    variables = {p.envvar for c in GROUP.commands.values() for p in c.params if p.envvar}
    assert variables and [name for name in variables if name not in page] == []
    section = page.partition(".SH EXIT STATUS")[2].partition(".SH")[0]
    codes = ["0", "1", "2", "129", "130", "143"]
    assert re.findall(r"^\.B (\d+)$", section, re.MULTILINE) == codes
    readme = (manual.ROOT / "README.md").read_text()
    told = readme.partition("**Exit codes**:")[2].partition(".")[0]
    assert re.findall(r"\d+", told) == codes


@needs("mandoc")
@pytest.mark.parametrize("name", PAGES)
def test_pages_are_well_formed(name):
    result = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning"], input=PAGES[name], capture_output=True, text=True
    )
    complaints = [line for line in result.stdout.splitlines() if "missing date" not in line]
    assert complaints == []


@pytest.fixture
def shell(tmp_path):
    """Run a script in a shell that finds this memtool on its PATH."""
    command = tmp_path / "memtool"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m memtool "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(manual.ROOT),
        "COMPLETIONS": str(manual.ROOT / "completions"),
        "HOME": str(tmp_path),
    }

    def run(*words: str) -> str:
        result = subprocess.run(
            words, capture_output=True, text=True, env=environment, timeout=60, check=True
        )
        return result.stdout

    return run


def test_bash_completes_a_command(shell):
    script = (
        'source "$COMPLETIONS/memtool"; COMP_WORDS=(memtool c); COMP_CWORD=1; '
        '_memtool_completion memtool; echo "${COMPREPLY[@]}"'
    )
    assert "cka" in shell("bash", "-c", script).split()


@needs("fish")
def test_fish_completes_a_command(shell):
    script = 'source "$COMPLETIONS/memtool.fish"; complete -C "memtool c"'
    assert shell("fish", "-c", script).startswith("cka")


@needs("zsh")
def test_zsh_completes_a_command_at_the_first_tab(shell, tmp_path):
    """Typed into a real interactive zsh, which autoloads the file from fpath."""
    typing = Path(tmp_path, "type.zsh")
    typing.write_text(
        "zmodload zsh/zpty\n"
        "zpty z zsh -f -i\n"
        "zpty -w z 'PS1=; fpath=($COMPLETIONS $fpath); autoload -Uz compinit; compinit -u -D'\n"
        "zpty -w z $'memtool cka --pai\\t; exit'\n"
        "while zpty -r z line; do print -r -- $line; done\n"
    )
    assert "memtool cka --pairs" in shell("zsh", "-f", str(typing))
