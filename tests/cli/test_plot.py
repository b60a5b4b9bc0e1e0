"""The command plot: its options, and the rows that it writes."""

import csv
import io
import json

import pytest

from memtool import tables, tensors
from memtool.figures import Options, draw, save

from ..figures.examples import EPOCHS, stitch_rows, training_rows, with_control


def test_the_option_net_of_control_draws_the_difference(run, tmp_path):
    def drawn(name, rows):
        source, figure = tmp_path / "rows.jsonl", tmp_path / name
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return run("plot", source, "--net-of-control", "-o", figure), figure

    result, figure = drawn("a.svg", with_control(stitch_rows()))
    assert result.code == 0, result.stderr
    expected = io.BytesIO()
    save(
        draw("stitching", with_control(stitch_rows()), Options(net_of_control=True)),
        expected,
        "svg",
    )
    assert figure.read_bytes() == expected.getvalue()
    result, figure = drawn("b.svg", training_rows())
    assert result.code == 2 and "training has no option net_of_control" in " ".join(
        result.stderr.split()
    )
    assert not figure.exists()


def test_quiet_means_no_notes(run, tmp_path):
    rows = with_control(stitch_rows())
    rows[0]["control_accuracy"] = None  # a cut that a note says is left out
    source, figure = tmp_path / "rows.jsonl", tmp_path / "f.svg"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("plot", source, "--net-of-control", "-o", figure)
    loud, quiet = run(*command), run(*command, "-q")
    assert loud.code == quiet.code == 0, loud.stderr + quiet.stderr
    assert "left out where there is no control" in loud.stderr and quiet.stderr == ""


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("f.svg", ("--ratios", "25"), "ratio 25 is outside [0, 1]; did you mean 25%?"),
        ("f.svg", ("--width", "wide"), "width 'wide': it is one of column, page, or a number"),
        ("f.svg", ("--x", "layer"), "a figure of kind training has no option x; it takes"),
        ("f.svg", ("--style", "no.mplstyle"), "no.mplstyle: cannot be read as a style"),
    ],
)
def test_what_cannot_be_drawn_is_a_usage_error(run, tmp_path, name, options, message):
    (tmp_path / "rows.jsonl").write_text(json.dumps(training_rows()[0]) + "\n")
    result = run("plot", tmp_path / "rows.jsonl", "-o", tmp_path / name, *options)
    assert result.code == 2 and message in " ".join(result.stderr.split())
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("f.pgf", "f.pgf: pgf: matplotlib writes it with the help of LaTeX alone"),
        ("f.gif", "f.gif: no figure format 'gif'; there are pdf, png, svg, eps; a table ends in"),
    ],
)
def test_a_format_that_is_not_written_is_refused_at_once(run, tmp_path, name, message):
    result = run("plot", tmp_path / "none.csv", "-o", tmp_path / name)
    assert result.code == 1 and message in result.stderr


def test_a_table_has_the_values_of_the_figure(run, tmp_path):
    rows = training_rows(seeds=(0, 2))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text)
    outputs = ("-o", tmp_path / "f.csv", "-o", tmp_path / "f.SVG", "-o", tmp_path / "f.JSONL")
    assert run("plot", tmp_path / "rows.jsonl", *outputs, "--ratios", "0,25%").code == 0
    found = tables.read(tmp_path / "f.csv")
    assert found == tables.read(tmp_path / "f.JSONL") and (tmp_path / "f.SVG").exists()
    assert list(found[0]) == ["panel", "curve", "x", "measure", "value", "deviation", "n"]
    losses = [row for row in found if row["measure"] == "loss" and row["curve"] == "25"]
    assert [row["x"] for row in losses] == ["1", "2", "3", "4"]
    assert [row["value"] for row in losses] == [2 / epoch + 1 for epoch in EPOCHS]  # 1: mean seed
    assert {(row["n"], round(row["deviation"], 6)) for row in losses} == {(2, round(2**0.5, 6))}
    assert {row["curve"] for row in found} == {"0", "25"}
    assert {row["panel"] for row in losses} == {"loss"}


def test_a_figure_may_be_shown_on_the_terminal_alone(run, tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in training_rows()))
    result = run("plot", source, "--terminal", "--ratios", "0,25%")
    assert result.code == 0, result.stderr
    assert "test accuracy" in result.stdout and result.stdout.splitlines()[-1].endswith(" 25")
    assert list(tmp_path.iterdir()) == [source]
    nothing = run("plot", source)
    assert nothing.code == 2 and "--terminal" in nothing.stderr


@pytest.fixture(scope="module")
def stitched(run, runs, tmp_path_factory):
    """The noisy front on the clean back, the reverse, and the noisy network on itself."""
    folder = tmp_path_factory.mktemp("stitched")
    arguments = ("--at", "block3", "--both", "--control", "--epochs", 0, "--save", folder)
    result = run("stitch", runs.noisy, runs.clean, *arguments, "-q")
    assert result.code == 0, result.stderr
    return folder


def test_both_ends_of_a_stitched_model_are_on_record(run, runs, stitched, tmp_path):
    models = sorted(stitched.iterdir())
    result = run("cka", *models, runs.clean, "--layers", "*block?", "-o", tmp_path / "cka.csv")
    assert result.code == 0, result.stderr
    rows = tables.read(tmp_path / "cka.csv")
    ends = {row["checkpoint"]: (row["front_noise_ratio"], row["back_noise_ratio"]) for row in rows}
    assert [ends[str(path)] for path in models] == [(0.0, 0.5), (0.5, 0.0), (0.5, 0.5)]
    assert {(row["data"], row["front_seed"], row["back_seed"]) for row in rows} == {
        ("digits", 0, 0)
    }
    noise = {(r["noise_ratio"], r["front_noise_seed"], r["back_noise_seed"]) for r in rows}
    assert noise == {(None, None, 0), (None, 0, None), (0.5, 0, 0)}
    assert {(row["front_layer"], row["back_layer"]) for row in rows} == {("block3", "block3")}
    assert rows[0]["model"].startswith("stitched(digits-cnn?")
    assert rows[0]["reference_model"].startswith("digits-cnn?")
    assert [row["back_noise_ratio"] for row in _info(run, models)] == ["0.5", "0.0", "0.5"]
    assert run("plot", tmp_path / "cka.csv", "-o", tmp_path / "cka.svg").code == 0
    ends = ("front of r = 50 %, clean back", "clean front, back of r = 50 %")
    for title in (*ends, "front and back of r = 50 %"):
        assert f">{title}</text>" in (tmp_path / "cka.svg").read_text()


def test_a_table_of_cka_says_which_layers_are_the_same_tensor(run, runs, tmp_path):
    table = tmp_path / "cka.csv"
    command = ("cka", runs.noisy, runs.clean, "--layers", "block1*,fc", "-o", table)
    assert run(*command).code == 0
    same = {row["layer"]: row["same_as"] for row in tables.read(table)}
    assert same == {**dict.fromkeys(same), list(same)[-3]: "block1"}
    assert list(same)[-3:] == ["block1.relu", "block1", "fc"]


def _info(run, paths):
    return list(csv.DictReader(io.StringIO(run("info", *paths).stdout)))


def test_a_stitched_model_may_be_stitched_again(run, runs, stitched, tmp_path):
    first = stitched / "r50--block3--r0.safetensors"
    twice = ("stitch", first, runs.noisy, "--at", "front.block2=block2", "--epochs", 0)
    result = run(*twice, "--save", tmp_path)
    assert result.code == 0, result.stderr
    (row,) = csv.DictReader(io.StringIO(result.stdout))
    assert (row["front_noise_ratio"], row["back_noise_ratio"]) == ("", "0.5")
    (row,) = _info(run, tmp_path.iterdir())
    assert (row["noise_ratio"], row["front_noise_ratio"], row["back_noise_ratio"]) == (
        "",
        "",
        "0.5",
    )


@pytest.mark.parametrize("field, value", [("noise_ratio", "much"), ("seed", []), ("front", 3)])
def test_an_end_whose_record_is_no_record_is_refused(run, stitched, tmp_path, field, value):
    source = stitched / "r50--block3--r0.safetensors"
    metadata = tensors.read_metadata(source)
    metadata["training"]["front"][field] = value
    path = tmp_path / "changed.safetensors"
    tensors.save_tensors(path, "checkpoint", tensors.load_tensors(source), metadata)
    result = run("info", path)
    assert result.code == 1 and f"no sensible '{field}' in 'training.front'" in result.stderr


@pytest.mark.parametrize("name", ["rows.csv", "./x/../rows.csv", "link.csv"])
def test_a_figure_never_replaces_its_table(run, tmp_path, name):
    (tmp_path / "x").mkdir()
    with tables.writer(list(training_rows()[0]), source := tmp_path / "rows.csv", None) as write:
        for row in training_rows():
            write(row)
    (tmp_path / "link.csv").symlink_to(source)
    content = source.read_bytes()
    result = run("plot", "training", source, "-o", f"{tmp_path}/{name}")
    assert result.code == 2 and "is a table that is drawn" in result.stderr
    assert source.read_bytes() == content


@pytest.mark.parametrize("dpi", ["1e9", "50000"])
def test_a_style_of_too_many_pixels_is_told(run, tmp_path, dpi):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in training_rows()))
    (tmp_path / "fine.mplstyle").write_text(f"savefig.dpi: {dpi}\n")
    style = ("--style", tmp_path / "fine.mplstyle")
    result = run("plot", tmp_path / "rows.jsonl", *style, "-o", tmp_path / "x.png")
    assert result.code == 1 and "too large for a PNG" in result.stderr
