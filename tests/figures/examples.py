"""Rows for the tests of figures, and reading what a figure shows: its axes, never its pixels."""

import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from memtool.figures import Kind

QUICK = ("pdf", "png", "svg")  # formats; for an EPS matplotlib takes seconds
LAYERS = ["conv1", "block2", "fc"]  # in order of execution, which is not alphabetical
RATIOS = [0.0, 0.25, 0.675]
STITCHED_RATIOS = [0.1, 0.25, 0.675]
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


def supplement_row(cut, part, layer, front, back, seed=0):
    """A row of the model stitched after layer number `cut`, of a layer of its front or back."""
    ends = f"r{front:g}-r{back:g}"
    return {
        "checkpoint": f"s{seed}/{ends}--{LAYERS[cut]}.safetensors",
        "reference": f"s{seed}/r0.safetensors",
        "layer": f"{part}.{LAYERS[layer]}",
        "reference_layer": LAYERS[layer],
        "epoch": 5,
        "noise_ratio": front if front == back else None,
        "seed": 0,
        "front_layer": LAYERS[cut],
        "back_layer": LAYERS[cut],
        "front_noise_ratio": front,
        "back_noise_ratio": back,
        "front_seed": seed,
        "back_seed": seed,
        "reference_noise_ratio": 0.0,
        "reference_seed": seed,
        "estimator": "exact",
        "n": 500,
        "cka": supplement_cka(cut, part, layer, front, back, seed),
        "cka_null": 0.01,
    }


def supplement_cka(cut, part, layer, front, back, seed=0):
    before = 1 - 0.2 * front * (layer + 1)
    after = 0.1 * (cut - layer) * (1 + back) if part == "back" else 0.0
    return before + after - 0.05 + 0.02 * seed


def supplement_rows(ratios=(0.25, 0.5), seeds=(0,), cuts=(0, 1)):
    """Noisy fronts on clean backs, the reverse and controls, stitched after the first layers."""
    return [
        supplement_row(cut, part, layer, front, back, seed)
        for seed in seeds
        for ratio in ratios
        for front, back in ((ratio, 0.0), (0.0, ratio), (ratio, ratio))
        for cut in cuts
        for part in ("front", "back")
        for layer in range(len(LAYERS))
        if (layer <= cut if part == "front" else layer >= cut)
    ]


def alone(ratio):
    return 0.95 - 0.8 * ratio


def stitched(direction, cut, ratio, seed):
    steps = {"forward": 0.1, "reverse": 0.2, "control": 0.3}
    return 0.9 - steps[direction] * (LAYERS.index(cut) + 1) * ratio + 0.01 * seed


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
        "init": "lstsq",
        "epochs": 5,
        "seed": seed,
        "n": 500,
        "loss": 0.1,
        "test_accuracy": stitched(direction, cut, ratio, seed),
        "front_accuracy": alone(front),
        "back_accuracy": alone(back),
        "agreement": 0.9,
    }


def stitch_rows(directions=("forward", "reverse", "control"), seeds=(0,), ratios=STITCHED_RATIOS):
    return [
        stitch_row(direction, cut, ratio, seed)
        for seed in seeds
        for ratio in ratios
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


def with_control(rows):
    """Each row's control, in a column, as `memtool stitch --control` has it."""

    def control(row):
        noisy = "back" if row["direction"] == "reverse" else "front"
        return stitched("control", row["front_layer"], row[f"{noisy}_noise_ratio"], row["seed"])

    return [row | {"control_accuracy": control(row) + row["seed"] / 10} for row in rows]


TABLES = {
    Kind.convergence: convergence_rows(),
    Kind.divergence: divergence_rows(),
    Kind.stitching: stitch_rows(),
    Kind.supplement: supplement_rows(ratios=[0.5], cuts=[1]),
    Kind.heatmap: pair_rows(),
    Kind.training: training_rows(),
}
each_kind = pytest.mark.parametrize(("kind", "rows"), TABLES.items(), ids=list(TABLES))


def curves(axes: Axes) -> dict[str, Line2D]:
    """The lines of a panel by the label that the legend gives to their marker."""
    looks = {look(line): str(line.get_label()) for line in axes.figure.legends[0].get_lines()}
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
