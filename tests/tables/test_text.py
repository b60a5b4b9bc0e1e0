"""Tables: rows to text and back."""

import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memtool import MemtoolError
from memtool.tables import text as table
from memtool.tables.text import Format

COLUMNS = ("checkpoint", "layer, or so", "epoch", "cka", "cut")
DELIMITED = [Format.csv, Format.tsv]
STREAMED = [*DELIMITED, Format.jsonl]


def is_text(cell: str) -> bool:
    """Text that CSV can tell from a number, a bool and a missing value; Python's csv leaves a
    carriage return unquoted where lines end in a newline alone."""
    return isinstance(table._value(cell), str) and "\r" not in cell


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
tricky = st.sampled_from(
    ['a,b"c"', "two\nlines", "tab\there", " padded ", "'", "ü→π",
     "1_000", "007", "١", "1e", "0x10", "- 1", "#1", "line\u2028separator", "\x85", "\x1d", "True"]
)  # fmt: skip
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.none() | st.booleans() | numbers | tricky | text.filter(is_text)
a_row = st.fixed_dictionaries(dict.fromkeys(COLUMNS, values))
some_rows = st.lists(a_row, min_size=1, max_size=4)


def written(path: Path, rows, columns=COLUMNS, chosen=None) -> Path:
    with table.writer(columns, path, chosen) as write:
        for row in rows:
            write(row)
    return path


@pytest.mark.parametrize("format", STREAMED)
@given(rows=some_rows)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_come_back_as_they_were(tmp_path, format, rows):
    path = written(tmp_path / f"rows.{format}", rows)
    read = table.read(path)
    assert read == rows
    for row, same in zip(rows, read, strict=True):
        assert [type(row[column]) for column in COLUMNS] == [type(same[c]) for c in COLUMNS]


@given(rows=st.lists(st.fixed_dictionaries({"text": st.text()}), min_size=1))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_json_lines_keep_any_text_whatever_it_looks_like(tmp_path, rows):
    rows = [{"text": row["text"].encode("utf-8", "replace").decode()} for row in rows]
    assert table.read(written(tmp_path / "rows.jsonl", rows, ["text"])) == rows


@pytest.mark.parametrize("format", DELIMITED)
def test_an_empty_text_is_a_missing_value_in_csv(tmp_path, format):
    path = written(tmp_path / f"rows.{format}", [{"a": "", "b": None}], ["a", "b"])
    assert table.read(path) == [{"a": None, "b": None}]


def test_one_empty_column_is_still_a_row(tmp_path):
    path = written(tmp_path / "rows.csv", [{"a": None}, {"a": 1}], ["a"])
    assert table.read(path) == [{"a": None}, {"a": 1}]


@pytest.mark.parametrize(
    "cell, value",
    [
        ("12", 12),
        ("-3", -3),
        ("0.5", 0.5),
        ("1e-05", 1e-05),
        ("1E+3", 1000.0),
        (".5", 0.5),
        ("true", True),
        ("false", False),
        ("", None),
        ("007", "007"),
        ("1_000", "1_000"),
        (" 1", " 1"),
        ("True", "True"),
        ("runs/r0.safetensors", "runs/r0.safetensors"),
    ],
)
def test_what_a_cell_means(tmp_path, cell, value):
    path = tmp_path / "rows.csv"
    path.write_text(f"a,b\n{cell},x\n")
    (row,) = table.read(path)
    assert row["a"] == value and type(row["a"]) is type(value)


def test_lines_end_in_a_newline_alone_and_only_conditions_are_columns(tmp_path):
    path = written(tmp_path / "rows.csv", [{"epoch": 1, "cka": 0.1 + 0.2, "else": 5}])
    assert path.read_bytes() == (
        b'checkpoint,"layer, or so",epoch,cka,cut\n,,1,0.30000000000000004,\n'
    )


def test_json_lines_have_every_column(tmp_path):
    path = written(tmp_path / "rows.jsonl", [{"epoch": 1}])
    assert json.loads(path.read_text()) == {**dict.fromkeys(COLUMNS), "epoch": 1}


def test_a_table_of_no_rows_still_has_its_header(tmp_path):
    assert written(tmp_path / "rows.csv", []).read_text() == 'checkpoint,"layer, or so",epoch,cka,cut\n'  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("text", ["a,b\r\n1,x\r\n", "\ufeffa,b\n1,x\n", "a,b\n1,x\n\n", "a,b\n1,x"])
def test_tables_of_other_programs(tmp_path, text):
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode())
    assert table.read(path) == [{"a": 1, "b": "x"}]


@pytest.mark.parametrize("format", STREAMED)
def test_a_row_is_out_as_soon_as_it_is_written(monkeypatch, format):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with table.writer(COLUMNS, None, format) as write:
        write({"epoch": 7})
        assert "7" in stream.getvalue()


def test_an_error_leaves_no_table_in_a_file_but_the_rows_on_stdout(tmp_path, capsys):
    for path, format in ((tmp_path / "rows.csv", None), (None, Format.csv), (None, Format.table)):
        with pytest.raises(KeyboardInterrupt), table.writer(("epoch",), path, format) as write:
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
    assert table.format_of(Path(name), chosen) is format


@pytest.mark.parametrize("terminal, format", [(True, Format.table), (False, Format.csv)])
def test_a_terminal_gets_a_table_and_a_pipe_csv(monkeypatch, terminal, format):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    assert table.format_of(None, None) is format


@pytest.mark.parametrize("name", ["rows.png", "rows.table", "rows.json"])
def test_a_suffix_of_no_table_is_an_error(name):
    with pytest.raises(MemtoolError, match=f"{name}: the suffix says no table format"):
        table.format_of(Path(name), None)


# What is no table.


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"", "holds no rows"),
        (b"a,b\n", "holds no rows"),
        (b"a,b\n1,2\n1,2,3\n", "line 3 has 3 cells, the header 2"),
        (b"a,b\n1\n", "line 2 has 1 cells, the header 2"),
        (b'{"a": 1}\n{"a": \n', "not a table"),
        (b'{"a": 1}\n[1]\n', "line 2 is no JSON object"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read as text"),
    ],
)
def test_what_is_no_table_is_an_error_of_one_line(tmp_path, content, problem):
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(MemtoolError) as error:
        table.read(path)
    assert str(error.value).startswith(f"{path}: ") and problem in str(error.value)
    assert "\n" not in str(error.value)


def test_no_such_table(tmp_path):
    with pytest.raises(MemtoolError, match="no such file"):
        table.read(tmp_path / "rows.csv")
    with pytest.raises(MemtoolError, match="cannot be read"):
        table.read(tmp_path)


# On a terminal.


def long_row(columns, number=0):
    """A row as long as they come, each value its own."""
    files = ("checkpoint", "reference", "front", "back", "file")
    layers = ("layer", "reference_layer", "front_layer", "back_layer", "same_as")
    values = {
        **dict.fromkeys(columns, 0.123456 + number),
        **dict.fromkeys(files, f"runs/r{number + 12.5}.safetensors"),
        **dict.fromkeys(layers, f"block{number}.conv"),
        "model": f"digits-cnn?channels=1&image_size=8&num_classes=1{number}",
        "data": f"digits{number}",
        "estimator": f"minibatch{number}",
    }
    return {column: values[column] for column in columns}


@pytest.mark.parametrize("name", ["TRAINING", "CKA", "STITCHING", "FILES", "LAYERS"])
@pytest.mark.parametrize("width", [80, 200])
def test_a_table_fits_its_terminal(name, width):
    columns = getattr(table, name)
    rows = [long_row(columns, number) for number in range(3)]
    lines = table.render(rows, columns, width).splitlines()
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)


def test_a_terminals_table_reads_well():
    rows = [
        {"checkpoint": "runs/r50.safetensors", "seed": 0, "epoch": epoch, "loss": loss, "cut": cut}
        for epoch, loss, cut in ((1, 2.0, True), (10, 0.0123456, False), (20, None, None))
    ]
    assert table.render(rows, ["checkpoint", "seed", "epoch", "loss", "cut"], 80) == (
        "checkpoint runs/r50, seed 0\n\n"
        + "epoch    loss  cut\n    1       2  yes\n   10  0.0123\n   20\n"
    )


def test_a_single_row_is_a_list_of_its_values():
    row = {"file": "runs/r50.safetensors", "noise_ratio": 0.5, "loss": None, "epoch": 20}
    assert table.render([row], ["file", "noise_ratio", "loss", "epoch"], 80) == (
        "file         runs/r50.safetensors\nnoise ratio  0.5000\nepoch        20\n"
    )


def test_what_there_is_no_room_for_is_told():
    rows = [long_row(table.TRAINING, number) for number in range(3)]
    shown = table.render(rows, table.TRAINING, 80)
    assert "\n\n(not shown for want of width: loss, true accuracy" in shown
    assert "mislabelled" in shown


@pytest.mark.parametrize("name", ["[bold]a[/bold]", ":smile:", "a[/]"])
def test_names_are_shown_as_they_are(name):
    assert name in table.render([{"layer": name}, {"layer": "b"}], ["layer"], 80)


def test_a_table_in_a_file_has_no_colors(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    path = written(tmp_path / "rows.txt", [{"epoch": 1}], chosen=Format.table)
    assert "\x1b" not in path.read_text()


# Column names are an interface: change them with a line in the CHANGELOG.


def test_the_columns_of_training():
    assert ",".join(table.TRAINING) == (
        "checkpoint,model,data,noise_ratio,noise_kind,seed,epoch,loss,given_accuracy,true_accuracy,"
        "mislabelled_accuracy,test_accuracy"
    )


@pytest.mark.parametrize(
    "name, first, last",
    [
        ("CKA", "checkpoint reference layer reference_layer epoch noise_ratio", "cka"),
        ("STITCHING", "front back direction front_layer back_layer", "test_accuracy"),
        ("FILES", "file kind model", "test_accuracy"),
        ("LAYERS", "checkpoint layer type shape cut", "same_as"),
    ],
)
def test_the_columns_of_the_others(name, first, last):
    columns = getattr(table, name)
    assert columns[: len(first.split())] == first.split()
    assert last in columns and len(set(columns)) == len(columns)
