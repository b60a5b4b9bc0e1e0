"""Tables as people have them after spreadsheets, `cat` and other programs, and damaged ones."""

import csv
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memtool import MemtoolError, figures, tables
from memtool.figures.drawing import FIGURES
from memtool.tables import rows as declared
from memtool.tables import schema

from ..figures.examples import TABLES, each_kind, training_rows

ROWS = training_rows()
CELLS = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]


def text(delimiter=",", comma=False, end="\n", quoted=csv.QUOTE_MINIMAL, cells=CELLS):
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=end, quoting=quoted)
    for row in cells:
        shown = ["" if cell is None else str(cell) for cell in row]
        numeric = comma and row is not cells[0]
        writer.writerow(
            [
                name.replace(".", ",") if numeric and isinstance(cell, float) else name
                for cell, name in zip(row, shown, strict=True)
            ]
        )
    return stream.getvalue()


HEADER, *BODY = text().splitlines(keepends=True)
EMPTY = "," * (len(CELLS[0]) - 1) + "\n"
FOREIGN = {
    "two tables joined": text() + HEADER,
    "joined half-way": HEADER + "".join(BODY[:5]) + HEADER + "".join(BODY[5:]),
    "empty rows": EMPTY + HEADER + EMPTY + "".join(BODY) + EMPTY * 3 + "\n\n",
    "empty cells at the end": text(cells=[[*row, None, None] for row in CELLS]),
    "semicolons": text(";"),
    "semicolons, decimal commas": text(";", comma=True),
    "tabs, decimal commas": text("\t", comma=True),
    "quoted decimal commas": text(";", comma=True, quoted=csv.QUOTE_ALL),
    "sep, comma": "sep=,\r\n" + text(end="\r\n"),
    "sep, semicolon": "sep=;\r\n" + text(";", comma=True, end="\r\n"),
    "sep, quoted": '"sep=;"\n' + text(";"),
    "sep, tab": "sep=\t\n" + text("\t"),
    "sep, filled up": "sep=;" + ";" * 9 + "\n" + text(";"),
    "carriage returns": text(end="\r"),
    "CRLF": text(end="\r\n"),
    "quoted": text(quoted=csv.QUOTE_ALL),
    "a nameless index": text(cells=[[i or "", *row] for i, row in enumerate(CELLS)]),
    "padded": text().replace(",", " , "),
    "JSON lines": "".join(json.dumps(row) + "\n\n" for row in ROWS),
    "JSON, numbers as text": "".join(
        json.dumps({k: v if v is None else str(v) for k, v in row.items()}) + "\r\n" for row in ROWS
    ),
}


def drawn(rows):
    """What a figure shows: the points of all its lines."""
    figure = figures.draw(figures.recognize(rows), rows)
    return [line.get_xydata().tolist() for axes in figure.axes for line in axes.lines]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_tables_of_spreadsheets_and_other_programs_give_the_same_figure(
    tmp_path, content, encoding
):
    path = tmp_path / "rows.csv"
    path.write_bytes(content.encode(encoding))
    assert drawn(tables.read(path)) == drawn(ROWS)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16-le", "utf-16-be"])
def test_files_with_byte_order_marks_may_be_joined(tmp_path, encoding):
    path = tmp_path / "rows.csv"
    mark = "" if encoding == "utf-8-sig" else "\ufeff"
    path.write_bytes((mark + text()).encode(encoding) + (mark + HEADER + BODY[0]).encode(encoding))
    assert len(tables.read(path)) == len(ROWS) + 1


def test_joined_tables_may_have_other_columns(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("layer,cka\nfc,0.5\ncka,layer,epoch\n0.25,conv,1\n")
    assert tables.read(path) == [
        {"layer": "fc", "cka": 0.5},
        {"cka": 0.25, "layer": "conv", "epoch": 1},
    ]


@pytest.mark.parametrize("separator, value", [(",", "0,5"), (";", 0.5), ("\t", 0.5)])
def test_a_comma_is_decimal_only_where_it_separates_nothing(tmp_path, separator, value):
    path = tmp_path / "rows.csv"
    path.write_text(f'cka{separator}layer\n"0,5"{separator}"1,5"\n')
    assert tables.read(path) == [{"cka": value, "layer": "1,5"}]


def test_layers_and_checkpoints_that_look_like_numbers_are_names(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("layer,checkpoint,n\n0,007,12\n1.10,true,12\n")
    assert tables.read(path) == [
        {"layer": "0", "checkpoint": "007", "n": 12},
        {"layer": "1.10", "checkpoint": "true", "n": 12},
    ]


def test_a_column_has_one_type_in_all_tables():
    for table in declared.TABLES:
        for column in tables.columns(table):
            assert tables.type_of(table, column) == schema.WORDS[declared.CELL_TYPES[column]]


def with_cell(rows, column, cell):
    return [row | {column: cell} if i == 2 else row for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    "cell",
    ["n/a", "0,5", "1 000", "50 %", "inf", "-Infinity", "1e999", "9" * 400, "#DIV/0!", "x" * 900],
)
@each_kind
def test_a_number_that_is_none_is_told_with_file_line_column_and_value(tmp_path, kind, rows, cell):
    path = tmp_path / "rows.csv"
    needs = FIGURES[kind].needs
    for column in set(needs.columns) & rows[0].keys():
        if tables.type_of(needs.row_type, column) == "text":
            continue
        changed = with_cell(rows, column, cell)
        path.write_text(text(cells=[list(rows[0]), *(list(row.values()) for row in changed)]))
        with pytest.raises(MemtoolError) as error:
            figures.draw(kind, tables.read(path))
        said = str(error.value)
        assert said.startswith(f"{path}, line 4, column {column}: '{cell[:30]}")
        assert len(said) < 300 + len(str(path))


@pytest.mark.parametrize("cell", [[1], {"a": 1}, True, "NaN?", 10**400])
def test_values_of_other_types_in_json_are_refused(tmp_path, cell):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + "".join(json.dumps(r) + "\n" for r in with_cell(ROWS, "loss", cell)))
    with pytest.raises(MemtoolError, match=r"rows.jsonl, line 4, column loss: .* is no number"):
        drawn(tables.read(path))


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(MemtoolError, match=r"^row 3, column checkpoint: \['a'\] is no text"):
        drawn(with_cell(ROWS, "checkpoint", ["a"]))
    with pytest.raises(MemtoolError, match="column checkpoint: .* is no text of at most"):
        drawn(with_cell(ROWS, "checkpoint", "a" * 6000))


@pytest.mark.parametrize("nan", [float("nan"), "nan", "NaN", "NA", " "])
def test_not_a_number_is_an_empty_cell(nan):
    assert drawn(with_cell(ROWS, "loss", nan)) == drawn(with_cell(ROWS, "loss", None))


@pytest.mark.parametrize(
    "content, problem",
    [
        ("a,b,a\n1,2,3\n", "line 1: the column a occurs twice"),
        ('{"a": 1}\n{"a": 1, "a": 2}\n', "line 2: the column a occurs twice"),
        ('a,b\n1,2\n1,"2\n3,4\n', "line 3: unexpected end of data"),
        ("a,b\n" + "x" * 200_000 + ",1\n", "line 2: field larger than field limit"),
        ("a,b\n1,2,,\n1,2,,5\n", "line 3 has 4 cells, the header 2"),
        ('[{"a": 1}]', "line 1 is no JSON object"),
        ('{"a": ' + "[" * 100_000, "line 1: "),
        ('{"a": ' + "9" * 5000 + "}", "line 1: "),
    ],
)
def test_what_cannot_be_a_table_is_told_with_its_line(tmp_path, content, problem):
    path = tmp_path / "rows.csv"
    path.write_text(content)
    with pytest.raises(MemtoolError) as error:
        tables.read(path)
    assert problem in str(error.value) and len(str(error.value)) < 300 + len(str(path))


TRICKY = st.sampled_from(
    [*b',;"\t\n\r\\{}[]=\0', 0xFF, 0xFE, *b"0123456789-+.eEinfa"]
)  # fmt: skip


@st.composite
def damaged(draw):
    """A table of some kind with some bytes removed, changed, inserted or repeated."""
    rows = TABLES[draw(st.sampled_from(list(TABLES)))][:12]
    if draw(st.booleans()):
        content = text(
            draw(st.sampled_from(",;\t")), cells=[list(rows[0]), *(list(r.values()) for r in rows)]
        )
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows)
    data = bytearray(content.encode(draw(st.sampled_from(["utf-8", "utf-16"]))))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 20)))
        new = bytes(draw(st.lists(TRICKY, max_size=6)))
        data[start:end] = new + bytes(data[start:end]) * draw(st.integers(0, 2))
    return bytes(data)


@given(content=damaged())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_table_is_drawn_or_refused_in_a_short_line(run, tmp_path, content):
    path, target = tmp_path / "rows.csv", tmp_path / "figure.svg"
    path.write_bytes(content)
    result = run("plot", path, "-o", target, "-o", tmp_path / "rows.jsonl")
    assert result.code in (0, 1)
    assert "Traceback" not in result.stderr and len(result.stderr) < 600 + len(str(path))
