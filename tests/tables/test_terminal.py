"""Tables on a terminal."""

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
