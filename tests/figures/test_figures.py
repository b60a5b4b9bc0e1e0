"""Figures: the data in the axes, the labels and the bytes; never pixels."""

import io
import itertools
import json

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from memtool import MemtoolError
from memtool.figures import figures as plot
from memtool.figures.figures import Kind

LAYERS = ["conv1", "block2", "fc"]  # in order of execution, which is not alphabetical
RATIOS = [0.0, 0.25, 0.675]
EPOCHS = [1, 2, 3, 4]


def similarity(layer, ratio, epoch, seed):
    """A CKA for each condition; two of them are equal only by accident."""
    return 0.9 - 0.1 * LAYERS.index(layer) * ratio * epoch + 0.02 * seed


def cka_row(layer, ratio, epoch, seed, **changes):
    row = {
        "checkpoint": f"s{seed}/r{ratio}/epoch-{epoch}.safetensors",
        "reference": f"s{seed}/r{ratio}.safetensors",
        "layer": layer,
        "reference_layer": layer,
        "epoch": epoch,
        "noise_ratio": ratio,
        "seed": seed,
        "reference_epoch": 4,
        "reference_noise_ratio": ratio,
        "reference_seed": seed,
        "estimator": "exact",
        "n": 500,
        "cka": similarity(layer, ratio, epoch, seed),
    }
    return row | changes


def convergence_rows(seeds=(0,), epochs=EPOCHS, **changes):
    return [
        cka_row(layer, ratio, epoch, seed, **changes)
        for seed in seeds
        for ratio in RATIOS
        for epoch in epochs
        for layer in LAYERS
    ]


def divergence_rows(seeds=(0,), epochs=EPOCHS):
    return convergence_rows(seeds, epochs, reference="clean.safetensors", reference_noise_ratio=0.0)


def pair_rows(checkpoint="r50.safetensors", layers=LAYERS):
    return [
        cka_row(LAYERS[0], 0.5, 4, 0)
        | {
            "checkpoint": checkpoint,
            "reference": "r0.safetensors",
            "reference_noise_ratio": 0.0,
            "layer": layer,
            "reference_layer": other,
            "cka": i / 10 + j / 100,
        }
        for i, layer in enumerate(layers)
        for j, other in enumerate(layers)
    ]


def alone(ratio):
    return 0.99 - 0.8 * ratio


def stitched(direction, cut, ratio, seed):
    steps = {"forward": 0.1, "reverse": 0.2, "control": 0.3}
    return 0.95 - steps[direction] * (LAYERS.index(cut) + 1) * ratio + 0.01 * seed


def stitch_row(direction, cut, ratio, seed):
    front = 0.0 if direction == "reverse" else ratio
    back = 0.0 if direction == "forward" else ratio
    return {
        "front": f"s{seed}/r{front}.safetensors",
        "back": f"s{seed}/r{back}.safetensors",
        "direction": direction,
        "front_layer": cut,
        "back_layer": cut,
        "front_noise_ratio": front,
        "back_noise_ratio": back,
        "connector": "conv1x1",
        "start": "lstsq",
        "epochs": 5,
        "seed": seed,
        "n": 500,
        "loss": 0.1,
        "test_accuracy": stitched(direction, cut, ratio, seed),
        "front_accuracy": alone(front),
        "back_accuracy": alone(back),
        "agreement": 0.9,
    }


def stitch_rows(directions=("forward", "reverse", "control"), seeds=(0,)):
    return [
        stitch_row(direction, cut, ratio, seed)
        for seed in seeds
        for ratio in RATIOS[1:]
        for direction in directions
        for cut in LAYERS
    ]


def training_rows(seeds=(0,), ratios=RATIOS):
    return [
        {
            "checkpoint": f"s{seed}/r{ratio}.safetensors",
            "model": "digits-cnn",
            "data": "digits",
            "noise_ratio": ratio,
            "noise_kind": "uniform" if ratio else None,
            "seed": seed,
            "epoch": epoch,
            "loss": 2.0 / epoch + seed,
            "given_accuracy": 1 - ratio / epoch,
            "true_accuracy": 1 - ratio,
            "mislabelled_accuracy": epoch / 4 if ratio else None,
            "test_accuracy": 0.9 - ratio / 2,
        }
        for seed in seeds
        for ratio in ratios
        for epoch in EPOCHS
    ]


TABLES = {
    Kind.convergence: convergence_rows(),
    Kind.divergence: divergence_rows(),
    Kind.stitching: stitch_rows(),
    Kind.heatmap: pair_rows(),
    Kind.training: training_rows(),
}
each_kind = pytest.mark.parametrize(("kind", "rows"), TABLES.items(), ids=list(TABLES))


def curves(axes: Axes) -> dict[str, Line2D]:
    """The lines of a panel by the label that the legend gives to their marker."""
    handles = axes.figure.legends[0].get_lines()
    labels = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    looks = {look(handle): label for handle, label in zip(handles, labels, strict=True)}
    return {looks[look(line)]: line for line in axes.lines if look(line) in looks}


def look(line: Line2D) -> tuple[str, str, str]:
    return to_hex(line.get_color()), str(line.get_marker()), line.get_linestyle()


def bands(axes: Axes) -> list[PolyCollection]:
    return [artist for artist in axes.collections if isinstance(artist, PolyCollection)]


def overlap(a: Bbox, b: Bbox) -> bool:
    return a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1


def legend_labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


# ---------------------------------------------------------------- recognize


@each_kind
def test_each_kind_is_recognized_and_drawn(kind, rows):
    assert plot.recognize(rows) is kind
    assert isinstance(plot.draw(kind, rows), Figure)


@pytest.mark.parametrize(
    "changes",
    [
        {"reference_noise_ratio": 0.0},
        {"reference_seed": 7},
        {"noise_ratio": None, "reference_noise_ratio": None},
    ],
    ids=["clean reference", "other seed", "unknown runs"],
)
def test_a_reference_from_another_run_makes_a_divergence(changes):
    assert plot.recognize(convergence_rows(**changes)) is Kind.divergence


def test_corresponding_layers_with_other_names_are_no_heatmap():
    rows = [row | {"reference_layer": f"net.{row['layer']}"} for row in divergence_rows()]
    assert plot.recognize(rows) is Kind.divergence


@pytest.mark.parametrize("rows", [[], [{"apples": 1, "pears": 2}]], ids=["no rows", "others"])
def test_an_unknown_table_names_its_columns_and_the_kinds(rows):
    with pytest.raises(MemtoolError) as error:
        plot.recognize(rows)
    expected = [*(rows[0] if rows else ["(none)"]), *Kind]
    assert [word for word in expected if word not in str(error.value)] == []


# ---------------------------------------------------------------- what every figure refuses


@each_kind
def test_a_missing_column_is_named(kind, rows):
    for column in plot.COLUMNS[kind]:
        without = [{k: v for k, v in row.items() if k != column} for row in rows]
        with pytest.raises(MemtoolError, match=f"{kind}: the table has no column {column} "):
            plot.draw(kind, without)


@each_kind
def test_a_table_without_rows_or_values_is_refused(kind, rows):
    values = [*plot.TRAINING_PANELS, "cka"]
    empty = [row | {name: None for name in values if name in row} for row in rows]
    with pytest.raises(MemtoolError, match="no row has a value"):
        plot.draw(kind, empty)
    with pytest.raises(MemtoolError, match="no rows"):
        plot.draw(kind, [])


@each_kind
def test_conditions_that_a_mean_would_hide_are_refused(kind, rows):
    for name in plot.CONDITIONS[kind]:
        mixed = [row | {name: "one"} for row in rows[:-1]] + [rows[-1] | {name: "other"}]
        with pytest.raises(MemtoolError, match=rf"differ in {name} \(one, other\)"):
            plot.draw(kind, mixed)


# ---------------------------------------------------------------- convergence, divergence


def test_convergence_has_a_panel_per_layer_and_a_curve_per_ratio():
    figure = plot.convergence(convergence_rows())
    assert titles(figure) == LAYERS
    assert legend_labels(figure) == ["0", "25", "67.5"]
    assert figure.legends[0].get_title().get_text() == "noise ratio r (%)"
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("epoch", "CKA to final model")
    for layer, axes in zip(LAYERS, figure.axes, strict=True):
        low, high = axes.get_ylim()
        assert low <= 0 and high >= 1
        for ratio, line in zip(RATIOS, curves(axes).values(), strict=True):
            expected = [similarity(layer, ratio, epoch, 0) for epoch in EPOCHS]
            np.testing.assert_allclose(line.get_xdata(orig=False), EPOCHS)
            np.testing.assert_allclose(line.get_ydata(orig=False), expected)
        assert bands(axes) == []


def test_seeds_become_their_mean_and_a_band_of_one_standard_deviation():
    seeds = (0, 1, 5)
    figure = plot.convergence(convergence_rows(seeds)[::-1])  # in any order of rows
    axes = next(axes for axes in figure.axes if axes.get_title() == "fc")
    values = np.array(
        [[similarity("fc", 0.675, epoch, seed) for seed in seeds] for epoch in EPOCHS]
    )
    np.testing.assert_allclose(curves(axes)["67.5"].get_ydata(orig=False), values.mean(1))
    corners = bands(axes)[-1].get_paths()[0].vertices
    for epoch, expected in zip(EPOCHS, values, strict=True):
        edges = corners[corners[:, 0] == epoch, 1]
        spread = expected.std(ddof=1)
        assert edges.min() == pytest.approx(expected.mean() - spread)
        assert edges.max() == pytest.approx(expected.mean() + spread)


def test_an_empty_value_is_left_out_of_its_curve():
    rows = [row | ({"cka": None} if row["epoch"] == 2 else {}) for row in convergence_rows()]
    for line in curves(plot.convergence(rows).axes[0]).values():
        assert list(line.get_xdata(orig=False)) == [1, 3, 4]


def test_cka_below_zero_stays_in_sight():
    rows = [row | ({"cka": -0.3} if row["epoch"] == 1 else {}) for row in convergence_rows()]
    assert plot.convergence(rows).axes[0].get_ylim()[0] < -0.3


def test_divergence_says_clean_only_of_a_clean_reference():
    clean = plot.divergence(divergence_rows())
    assert clean.get_supylabel() == "CKA to final clean model"
    assert titles(clean) == LAYERS
    other = plot.divergence(convergence_rows(reference_noise_ratio=0.5))
    assert other.get_supylabel() == "CKA to reference model"


def test_one_epoch_is_drawn_against_the_layers():
    figure = plot.divergence(divergence_rows(seeds=(0, 2), epochs=[4]))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == LAYERS
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("layer", "CKA to final clean model")
    for ratio, line in zip(RATIOS, curves(axes).values(), strict=True):
        assert list(line.get_xdata(orig=False)) == [0, 1, 2]
        expected = [similarity(layer, ratio, 4, 1) for layer in LAYERS]  # 1: the mean seed
        np.testing.assert_allclose(line.get_ydata(orig=False), expected)


def test_checkpoints_from_elsewhere_are_labelled_by_name():
    unknown = {"noise_ratio": None, "epoch": None, "seed": None, "reference_noise_ratio": None}
    long = "folder/" * 9
    rows = [
        cka_row(layer, 0.25, 4, 0) | unknown | {"checkpoint": f"{long}{name}.safetensors"}
        for name in ("_a$b$", "b")
        for layer in LAYERS
    ]
    figure = plot.draw(plot.recognize(rows), rows)
    assert figure.legends[0].get_title().get_text() == "checkpoint"
    first, second = legend_labels(figure)
    assert first.endswith("/_a$b$") and second.endswith("/b")
    assert len(curves(figure.axes[0])) == 2


def test_an_unknown_epoch_among_known_ones_is_refused():
    rows = convergence_rows()
    rows[0]["epoch"] = None
    with pytest.raises(MemtoolError, match=r"epoch-1\.safetensors: its epoch is unknown"):
        plot.convergence(rows)


def test_convergence_of_a_full_table_of_layers_is_refused():
    with pytest.raises(MemtoolError, match="heatmap"):
        plot.convergence(pair_rows())


def test_many_long_layer_names_wrap_without_a_loss():
    names = [f"features.denseblock{i}.denselayer{i}.conv{i}" for i in range(60)]
    rows = [cka_row("fc", 0.5, epoch, 0) | {"layer": name} for name in names for epoch in EPOCHS]
    figure = plot.convergence(rows)
    assert [title.replace("\n", "") for title in titles(figure)] == names
    assert figure.get_figwidth() == plot.PAGE_WIDTH
    figure.draw_without_rendering()
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    assert not any(overlap(a, b) for a, b in itertools.pairwise(boxes))


# ---------------------------------------------------------------- stitching


@pytest.mark.parametrize(
    ("directions", "expected"),
    [
        (["reverse", "forward"], ["noisy front, clean back", "clean front, noisy back"]),
        (["control"], ["noisy front, own back (control)"]),
    ],
    ids=["both", "control"],
)
def test_stitching_has_panels_for_the_directions_present(directions, expected):
    assert titles(plot.stitching(stitch_rows(directions))) == expected


def test_stitching_draws_a_curve_per_cut_between_clean_and_noisy():
    figure = plot.stitching(stitch_rows())
    assert legend_labels(figure) == [*LAYERS, "clean model", "noisy model"]
    assert (figure.get_supxlabel(), figure.get_supylabel()) == (
        "noise ratio r (%)",
        "test accuracy",
    )
    for direction, axes in zip(["forward", "reverse", "control"], figure.axes, strict=True):
        lines = curves(axes)
        clean, noisy = lines["clean model"], lines["noisy model"]
        assert (clean.get_color(), clean.get_linestyle()) == ("black", ":")
        np.testing.assert_allclose(clean.get_ydata(orig=False), alone(0))
        assert noisy.get_linestyle() == "--"
        np.testing.assert_allclose(noisy.get_xdata(orig=False), [25, 67.5])
        np.testing.assert_allclose(noisy.get_ydata(orig=False), [alone(r) for r in RATIOS[1:]])
        for cut in LAYERS:
            expected = [stitched(direction, cut, ratio, 0) for ratio in RATIOS[1:]]
            np.testing.assert_allclose(lines[cut].get_xdata(orig=False), [25, 67.5])
            np.testing.assert_allclose(lines[cut].get_ydata(orig=False), expected)
    assert len({lines[cut].get_marker() for cut in LAYERS}) == len(LAYERS)


def test_stitching_seeds_become_their_mean_with_error_bars():
    figure = plot.stitching(stitch_rows(["forward"], seeds=(0, 1)))
    (axes,) = figure.axes
    expected = [stitched("forward", "fc", ratio, 0.5) for ratio in RATIOS[1:]]
    np.testing.assert_allclose(curves(axes)["fc"].get_ydata(orig=False), expected)
    bars = axes.containers[-1].lines[2][0].get_segments()
    spread = np.std([0, 0.01], ddof=1)
    for mean, bar in zip(expected, bars, strict=True):
        np.testing.assert_allclose(sorted(bar[:, 1]), [mean - spread, mean + spread])


def test_clean_networks_count_once_each():
    rows = stitch_rows(["forward"], seeds=(0, 1))
    rows = [row | {"back_accuracy": 0.9 if row["back"].startswith("s0") else 0.8} for row in rows]
    figure = plot.stitching(rows + rows[:2])  # the first network has more rows
    np.testing.assert_allclose(curves(figure.axes[0])["clean model"].get_ydata(orig=False), 0.85)


def test_without_a_clean_network_there_is_no_line_for_it():
    figure = plot.stitching(stitch_rows(["control"]))
    assert "clean model" not in legend_labels(figure)


def test_a_cut_between_layers_of_different_names_shows_both():
    rows = [row | {"back_layer": "net." + row["back_layer"]} for row in stitch_rows(["forward"])]
    assert legend_labels(plot.stitching(rows))[0] == "conv1 → net.conv1"


def with_control(rows):
    """Each row's control, in a column, as `memtool stitch --control` has it."""

    def control(row):
        noisy = "back" if row["direction"] == "reverse" else "front"
        return stitched("control", row["front_layer"], row[f"{noisy}_noise_ratio"], row["seed"])

    return [row | {"control_accuracy": control(row) + row["seed"] / 10} for row in rows]


def test_stitching_net_of_control_takes_it_off_row_by_row():
    rows = with_control(stitch_rows(seeds=(0, 1)))
    figure = plot.stitching(rows, net_of_control=True)
    assert titles(figure) == ["noisy front, clean back", "clean front, noisy back"]
    assert figure.get_supylabel() == "test accuracy − control's"
    assert legend_labels(figure) == [*LAYERS, "as the control"]
    for direction, axes in zip(["forward", "reverse"], figure.axes, strict=True):
        lines = curves(axes)
        np.testing.assert_allclose(lines["as the control"].get_ydata(orig=False), 0)
        for cut in LAYERS:
            expected = [
                stitched(direction, cut, ratio, 0) - stitched("control", cut, ratio, 0) - 0.05
                for ratio in RATIOS[1:]
            ]
            np.testing.assert_allclose(lines[cut].get_ydata(orig=False), expected, atol=1e-12)


@pytest.mark.parametrize(
    "rows",
    [stitch_rows(["forward"]), with_control(stitch_rows(["control"]))],
    ids=["no control", "nothing else"],
)
def test_net_of_control_needs_a_control_and_a_direction(rows):
    with pytest.raises(MemtoolError, match="stitch with --control"):
        plot.stitching(rows, net_of_control=True)


def test_of_a_curve_over_epochs_the_last_is_drawn():
    last = [row | {"epoch": 5} for row in stitch_rows(["forward"])]
    earlier = [row | {"epoch": 2, "test_accuracy": 0.1} for row in last]
    lines = curves(plot.stitching(earlier + last).axes[0])
    expected = [stitched("forward", "fc", ratio, 0) for ratio in RATIOS[1:]]
    np.testing.assert_allclose(lines["fc"].get_ydata(orig=False), expected)


def test_the_option_net_of_control_draws_the_difference(run, tmp_path):
    def drawn(name, rows):
        source, figure = tmp_path / "rows.jsonl", tmp_path / name
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return run("plot", source, "--net-of-control", "-o", figure), figure

    result, figure = drawn("a.svg", with_control(stitch_rows()))
    assert result.code == 0, result.stderr
    expected = io.BytesIO()
    plot.save(plot.stitching(with_control(stitch_rows()), net_of_control=True), expected, "svg")
    assert figure.read_bytes() == expected.getvalue()
    result, figure = drawn("b.svg", training_rows())
    assert result.code == 2 and "training has no control" in result.stderr
    assert not figure.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"direction": "sideways"}, "sideways"), ({"front_noise_ratio": None}, "ratio is unknown")],
    ids=["direction", "noise ratio"],
)
def test_stitching_refuses_what_it_cannot_place(changes, message):
    rows = stitch_rows(["forward"])
    with pytest.raises(MemtoolError, match=message):
        plot.stitching([rows[0] | changes, *rows[1:]])


# ---------------------------------------------------------------- heatmap


def test_heatmap_is_the_matrix_of_layers_by_reference_layers():
    figure = plot.heatmap(pair_rows())
    axes, colorbar = figure.axes
    (image,) = axes.images
    expected = [[i / 10 + j / 100 for j in range(3)] for i in range(3)]
    np.testing.assert_allclose(image.get_array(), expected)
    assert image.get_clim() == (0, 1)
    assert [label.get_text() for label in axes.get_xticklabels()] == LAYERS
    assert [label.get_text() for label in axes.get_yticklabels()] == LAYERS
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("layer of r50", "layer of r0")
    assert colorbar.get_ylabel() == "CKA"
    assert sorted(text.get_text() for text in axes.texts)[-1] == "0.22"


def test_an_empty_cell_is_grey_and_bare():
    rows = pair_rows()
    rows[1]["cka"] = None
    figure = plot.heatmap(rows)
    (image,) = figure.axes[0].images
    assert np.ma.getmaskarray(image.get_array()).tolist() == [
        [False, True, False],
        *[[False] * 3] * 2,
    ]
    red, green, blue, _ = image.to_rgba(image.get_array())[0, 1]
    assert red == green == blue
    assert len(figure.axes[0].texts) == 8


def test_heatmap_has_a_panel_per_pair_of_checkpoints():
    names = ["r10", "r25", "r50"]
    rows = [row for name in names for row in pair_rows(f"{name}.safetensors")]
    figure = plot.heatmap(rows)
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_ylabel() for axes in panels] == [f"layer of {name}" for name in names]


@pytest.mark.parametrize(("layers", "shown"), [(60, 60), (200, 67)])
def test_names_of_many_layers_keep_apart(layers, shown):
    figure = plot.heatmap(pair_rows(layers=[f"layer{i}.conv" for i in range(layers)]))
    axes = figure.axes[0]
    assert len(axes.texts) == 0
    labels = axes.get_yticklabels()
    assert len(labels) == shown
    assert min(label.get_fontsize() for label in labels) >= 5
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in labels]
    assert not any(overlap(a, b) for a, b in itertools.pairwise(boxes))


def test_heatmap_refuses_to_average():
    with pytest.raises(MemtoolError, match=r"r50\.safetensors: .* more than once"):
        plot.heatmap(pair_rows() + pair_rows()[:1])


# ---------------------------------------------------------------- training


def test_training_has_a_panel_per_measure():
    figure = plot.training(training_rows(seeds=(0, 1)))
    assert titles(figure) == list(plot.TRAINING_PANELS.values())
    assert figure.get_supxlabel() == "epoch"
    assert legend_labels(figure) == ["0", "25", "67.5"]
    loss, given, _, memorized, _ = map(curves, figure.axes)
    np.testing.assert_allclose(loss["25"].get_ydata(orig=False), [2 / e + 0.5 for e in EPOCHS])
    np.testing.assert_allclose(given["25"].get_ydata(orig=False), [1 - 0.25 / e for e in EPOCHS])
    assert list(memorized) == ["25", "67.5"]  # nothing is mislabelled at 0


def test_training_without_noise_has_no_panel_for_memorization():
    figure = plot.training(training_rows(ratios=[0.0]))
    assert len(figure.axes) == len(plot.TRAINING_PANELS) - 1
    assert not any("memorization" in title for title in titles(figure))


# ---------------------------------------------------------------- save


@pytest.mark.parametrize("format", ["pdf", "png", "svg"])
@each_kind
def test_equal_figures_give_equal_bytes(kind, rows, format):
    saved = []
    for _ in range(2):
        stream = io.BytesIO()
        plot.save(plot.draw(kind, rows), stream, format)
        saved.append(stream.getvalue())
    assert saved[0] == saved[1]
    assert {"pdf": b"%PDF", "png": b"\x89PNG", "svg": b"<?xml"}[format] == saved[0][:5].rstrip(
        b"-\r"
    )


def test_files_carry_no_date_and_fonts_that_journals_take():
    pdf, svg = io.BytesIO(), io.BytesIO()
    figure = plot.training(training_rows())
    plot.save(figure, pdf, "pdf")
    plot.save(figure, svg, "svg")
    assert b"/CreationDate" not in pdf.getvalue()
    assert b"/Type3" not in pdf.getvalue() and b"/CIDFontType2" in pdf.getvalue()
    assert b"dc:date" not in svg.getvalue()


def test_an_unknown_format_is_refused():
    with pytest.raises(MemtoolError, match="'gif'; there are pdf, png, svg"):
        plot.save(Figure(), io.BytesIO(), "gif")
