"""Rows to text, and back."""

import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memtool import MemtoolError, tables
from memtool.tables import Format, reading

COLUMNS = ("checkpoint", "layer, or so", "epoch", "cka", "cut")
EMPTY = dict.fromkeys(COLUMNS)
DELIMITED = [Format.csv, Format.tsv]
STREAMED = [*DELIMITED, Format.jsonl]


def is_text(cell: str) -> bool:
    """Text that CSV can tell from a number, a bool and a missing value; Python's csv leaves a
    carriage return unquoted where lines end in a newline alone."""
    return isinstance(reading._value(cell), str) and "\r" not in cell


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
tricky = st.sampled_from(
    ['a,b"c"', "two\nlines", "tab\there", " padded ", "'", "ü→π",
     "1_000", "007", "١", "1e", "0x10", "- 1", "#1", "line\u2028separator", "\x85", "\x1d", "True"]
)  # fmt: skip
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.none() | st.booleans() | numbers | tricky | text.filter(is_text)
names = tricky | text.filter(is_text).filter(lambda name: name.strip(" \t"))  # never numbers
a_row = st.fixed_dictionaries(dict.fromkeys(COLUMNS, values) | {"checkpoint": names})
some_rows = st.lists(a_row, min_size=1, max_size=4)


def written(path: Path, rows, columns=COLUMNS, chosen=None) -> Path:
    with tables.writer(columns, path, chosen) as write:
        for row in rows:
            write(row)
    return path


@pytest.mark.parametrize("format", STREAMED)
@given(rows=some_rows)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_come_back_as_they_were(tmp_path, format, rows):
    path = written(tmp_path / f"rows.{format}", rows)
    read = tables.read(path)
    assert read == rows
    for row, same in zip(rows, read, strict=True):
        assert [type(row[column]) for column in COLUMNS] == [type(same[c]) for c in COLUMNS]


@given(rows=st.lists(st.fixed_dictionaries({"text": st.text()}), min_size=1))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_json_lines_keep_any_text_whatever_it_looks_like(tmp_path, rows):
    rows = [{"text": row["text"].encode("utf-8", "replace").decode()} for row in rows]
    assert tables.read(written(tmp_path / "rows.jsonl", rows, ["text"])) == rows


@pytest.mark.parametrize("format", DELIMITED)
def test_an_empty_text_is_a_missing_value_in_csv(tmp_path, format):
    path = written(tmp_path / f"rows.{format}", [{"a": "", "b": None, "c": 1}], ["a", "b", "c"])
    assert tables.read(path) == [{"a": None, "b": None, "c": 1}]


def test_a_row_without_any_value_does_not_come_back(tmp_path):
    path = written(tmp_path / "rows.csv", [{"a": None}, {"a": 1}], ["a"])
    assert tables.read(path) == [{"a": 1}]


def test_lines_end_in_a_newline_alone(tmp_path):
    path = written(tmp_path / "rows.csv", [{**EMPTY, "epoch": 1, "cka": 0.1 + 0.2}])
    assert path.read_bytes() == (
        b'checkpoint,"layer, or so",epoch,cka,cut\n,,1,0.30000000000000004,\n'
    )


def test_json_lines_have_every_column(tmp_path):
    path = written(tmp_path / "rows.jsonl", [{**EMPTY, "epoch": 1}])
    assert list(json.loads(path.read_text()).items()) == [
        *(("checkpoint", None), ("layer, or so", None), ("epoch", 1), ("cka", None), ("cut", None)),
    ]


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize(
    "row", [{"epoch": 1}, {"epoch": 1, "cka": 2, "else": 3}, {"epoch": 1, "kca": 2}]
)
def test_a_row_that_lacks_a_column_or_has_another_is_a_bug(format, row):
    with pytest.raises(ValueError, match="a row lacks"):
        with tables.writer(["epoch", "cka"], None, format) as write:
            write(row)


def test_a_table_of_no_rows_still_has_its_header(tmp_path):
    assert written(tmp_path / "rows.csv", []).read_text() == 'checkpoint,"layer, or so",epoch,cka,cut\n'  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("format", STREAMED)
def test_a_row_is_out_as_soon_as_it_is_written(monkeypatch, format):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with tables.writer(COLUMNS, None, format) as write:
        write({**EMPTY, "epoch": 7})
        assert "7" in stream.getvalue()


def test_an_error_leaves_no_table_in_a_file_but_the_rows_on_stdout(tmp_path, capsys):
    for path, format in ((tmp_path / "rows.csv", None), (None, Format.csv), (None, Format.table)):
        with pytest.raises(KeyboardInterrupt), tables.writer(("epoch",), path, format) as write:
            write({"epoch": 17})
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == "epoch\n17\nepoch  17\n"


# Which format.


@pytest.mark.parametrize(
    "name, chosen, format",
    [
        ("rows.csv", None, Format.csv),
        ("rows.tsv", None, Format.tsv),
        ("rows.jsonl", None, Format.jsonl),
        ("rows.JSONL", None, Format.jsonl),
        ("rows", None, Format.csv),
        ("rows.txt", None, Format.csv),
        ("rows.csv", Format.table, Format.table),
        ("rows.png", Format.jsonl, Format.jsonl),
        ("/dev/null", None, Format.csv),
    ],
)
def test_the_format_is_the_one_chosen_or_by_the_suffix(name, chosen, format):
    assert tables.format_of(Path(name), chosen) is format


@pytest.mark.parametrize("terminal, format", [(True, Format.table), (False, Format.csv)])
def test_a_terminal_gets_a_table_and_a_pipe_csv(monkeypatch, terminal, format):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    assert tables.format_of(None, None) is format


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize("rows", [1, 2])
def test_controls_in_names_do_not_act_on_a_terminal(monkeypatch, capsys, format, rows):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    name = "a\x1b[31m\x07\x9b\x7f\u202e\r\nü\xa0\U000f3a23"
    with tables.writer(("layer", "loss"), None, format) as write:
        for loss in range(rows):
            write({"layer": name, "loss": loss})
    told = capsys.readouterr().out
    if format is Format.table:
        told = told.replace("\x1b[1m", "").replace("\x1b[0m", "")  # bold titles
    assert all(char.isprintable() for char in told.replace("\n", "").replace("\t", "")), told
    if format is Format.jsonl:
        assert json.loads(told.splitlines()[-1])["layer"] == name
    else:
        assert "a\\x1b[31m\\x07\\x9b\\x7f\\u202e\\r\\nü\\xa0\\U000f3a23" in told


@pytest.mark.parametrize("format", STREAMED)
def test_names_are_exact_in_a_pipe(capsys, format):
    with tables.writer(("layer",), None, format) as write:
        write({"layer": "a\x1b[31m\x9b"})
    told = capsys.readouterr().out
    assert ("a\\u001b[31m\x9b" if format is Format.jsonl else "a\x1b[31m\x9b") in told


@pytest.mark.parametrize("name", ["rows.png", "rows.table", "rows.json"])
def test_a_suffix_of_no_table_is_an_error(name):
    with pytest.raises(MemtoolError, match=f"{name}: the suffix says no table format"):
        tables.format_of(Path(name), None)


def test_a_table_in_a_file_has_no_colors(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    path = written(tmp_path / "rows.txt", [{**EMPTY, "epoch": 1}], chosen=Format.table)
    assert "\x1b" not in path.read_text()
