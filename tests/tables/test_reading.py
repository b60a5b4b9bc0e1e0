"""Tables as other programs write them, and what is no table."""

import pytest

from memtool import MemtoolError, tables


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
    (row,) = tables.read(path)
    assert row["a"] == value and type(row["a"]) is type(value)


@pytest.mark.parametrize("text", ["a,b\r\n1,x\r\n", "\ufeffa,b\n1,x\n", "a,b\n1,x\n\n", "a,b\n1,x"])
def test_tables_of_other_programs(tmp_path, text):
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode())
    assert tables.read(path) == [{"a": 1, "b": "x"}]


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
        (b"sep=\n1\n1,2\n", "line 3 has 2 cells, the header 1"),
        (b"sep=\r\n1\r\n1,2\r\n", "line 3 has 2 cells, the header 1"),
    ],
)
def test_what_is_no_table_is_an_error_of_one_line(tmp_path, content, problem):
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(MemtoolError) as error:
        tables.read(path)
    assert str(error.value).startswith(f"{path}: ") and problem in str(error.value)
    assert "\n" not in str(error.value)


def test_no_such_table(tmp_path):
    with pytest.raises(MemtoolError, match="no such file"):
        tables.read(tmp_path / "rows.csv")
    with pytest.raises(MemtoolError, match="cannot be read"):
        tables.read(tmp_path)


def test_a_table_that_memtool_wrote_has_cells_as_it_writes_them(tmp_path):
    path = tmp_path / "steps.csv"
    path.write_text("step,seconds,mine\ntrain,4.5,x\ntrain,soon,x\n")
    with pytest.raises(MemtoolError, match="line 3, column seconds: 'soon' is no number"):
        tables.read(path, tables.StepRow)
    path.write_text("step,seconds,mine\n7,4,x\n")
    assert tables.read(path, tables.StepRow) == [{"step": "7", "seconds": 4, "mine": "x"}]
