"""Tables on a terminal."""

import re

import pytest

from memtool import tables
from memtool.tables import (
    CkaRow,
    Column,
    FileRow,
    FindingRow,
    LayerRow,
    StitchingRow,
    TrainingRow,
)


def untold(*names):
    """Columns of which nothing is said."""
    return dict.fromkeys(names, Column(""))


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


@pytest.mark.parametrize(
    "table", [TrainingRow, CkaRow, StitchingRow, FileRow, LayerRow, FindingRow]
)
@pytest.mark.parametrize("width", [80, 200])
def test_a_table_fits_its_terminal(table, width):
    columns = tables.columns(table)
    rows = [long_row(columns, number) for number in range(3)]
    lines = tables.render(rows, columns, width).splitlines()
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)


def test_a_terminals_table_reads_well():
    rows = [
        {"checkpoint": "runs/r50.safetensors", "seed": 0, "epoch": epoch, "loss": loss, "cut": cut}
        for epoch, loss, cut in ((1, 2.0, True), (10, 0.0123456, False), (20, None, None))
    ]
    assert tables.render(rows, untold("checkpoint", "seed", "epoch", "loss", "cut"), 80) == (
        "checkpoint runs/r50, seed 0\n\n"
        + "epoch    loss  cut\n    1       2  yes\n   10  0.0123\n   20\n"
    )


def test_a_single_row_is_a_list_of_its_values():
    row = {"file": "runs/r50.safetensors", "noise_ratio": 0.5, "loss": None, "epoch": 20}
    assert tables.render([row], untold("file", "noise_ratio", "loss", "epoch"), 80) == (
        "file         runs/r50.safetensors\nnoise ratio  0.5000\nepoch        20\n"
    )


def test_what_there_is_no_room_for_is_told():
    columns = tables.columns(TrainingRow)
    rows = [long_row(columns, number) for number in range(3)]
    shown = tables.render(rows, columns, 80)
    told = " ".join(shown.partition("\n\n(not shown for want of width: ")[2].split())
    assert "loss, true accuracy" in told and "clean accuracy" in told
    assert "mislabelled" in shown


@pytest.mark.parametrize("name", ["[bold]a[/bold]", ":smile:", "a[/]"])
def test_names_are_shown_as_they_are(name):
    assert name in tables.render([{"layer": name}, {"layer": "b"}], untold("layer"), 80)


def shades(text):
    """The background of each cell that has one, by what the cell says."""
    found = re.findall(r"\x1b\[[\d;]*?48;2;(\d+);(\d+);(\d+)m([^\x1b]*)", text)
    return {cell: tuple(map(int, color)) for *color, cell in found}


@pytest.fixture
def colours(monkeypatch):
    """A terminal of sixteen million colours."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return monkeypatch


VALUES = {"conv1": 1.0, "block2": 0.25, "fc": None, "out": -0.03, "more": 0.61}


def cka_table(styled):
    columns = tables.columns(CkaRow)
    rows = [
        dict.fromkeys(columns) | {"layer": layer, "cka": value, "cka_null": 0.1}
        for layer, value in VALUES.items()
    ]
    return tables.render(rows, columns, 80, styled=styled)


def test_cka_is_shaded_on_a_terminal(colours):
    found = shades(cka_table(styled=True))
    assert found == {
        "      1": (252, 253, 191),
        " 0.2500": (81, 18, 124),
        "-0.0300": (0, 0, 4),
        " 0.6100": pytest.approx((213, 91, 110), abs=2),
    }
    letters = re.findall(r"\x1b\[38;2;(\d+);\d+;\d+;48", cka_table(styled=True))
    assert letters == ["0", "255", "255", "0"]  # black on what is light


def test_shades_change_no_letter_and_are_for_terminals_that_have_colours(colours):
    plain = cka_table(styled=False)
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", cka_table(styled=True)).split() == plain.split()
    colours.setenv("NO_COLOR", "1")
    assert shades(cka_table(styled=True)) == {} and "48;" not in cka_table(styled=True)
