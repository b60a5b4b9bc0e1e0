"""The command plot: its options, and the rows that it writes."""

import csv
import io
import json

from memtool.figures import draw, save

from ..figures.examples import stitch_rows, training_rows, with_control


def test_the_option_net_of_control_draws_the_difference(run, tmp_path):
    def drawn(name, rows):
        source, figure = tmp_path / "rows.jsonl", tmp_path / name
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return run("plot", source, "--net-of-control", "-o", figure), figure

    result, figure = drawn("a.svg", with_control(stitch_rows()))
    assert result.code == 0, result.stderr
    expected = io.BytesIO()
    save(draw("stitching", with_control(stitch_rows()), net_of_control=True), expected, "svg")
    assert figure.read_bytes() == expected.getvalue()
    result, figure = drawn("b.svg", training_rows())
    assert result.code == 2 and "training has no control" in result.stderr
    assert not figure.exists()


def test_rows_of_different_tables_are_written_with_the_columns_of_all(run, tmp_path):
    clean, noisy = training_rows(ratios=[0.0]), training_rows(ratios=[0.5])
    clean = [{k: v for k, v in row.items() if k != "noise_kind"} for row in clean]
    noisy = [row | {"note": "a, b"} for row in noisy]
    for name, rows in {"clean": clean, "noisy": noisy}.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    target = tmp_path / "all.csv"
    result = run("plot", tmp_path / "clean.jsonl", tmp_path / "noisy.jsonl", "-o", target)
    assert result.code == 0, result.stderr
    found = list(csv.DictReader(io.StringIO(target.read_text(), newline="")))
    columns = [*clean[0], "noise_kind", "note"]
    assert list(found[0]) == columns
    assert [(row["noise_kind"], row["note"]) for row in found] == [("", "")] * 4 + [
        ("uniform", "a, b")
    ] * 4
    assert [float(row["loss"]) for row in found] == [row["loss"] for row in clean + noisy]
