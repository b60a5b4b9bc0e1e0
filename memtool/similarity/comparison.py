"""Comparing checkpoints with references, layer by layer, in one pass of each network."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from math import inf

from torch import Tensor

from memtool.checkpoints import NOT_STITCHED
from memtool.data import HostImages
from memtool.device import Precision, Processes
from memtool.errors import told_names
from memtool.layers import Layer
from memtool.progress import Progress, silent
from memtool.similarity.measuring import Outcome, Setting, Value, Values, image_order, measure
from memtool.similarity.pairs import Comparison, Selection
from memtool.similarity.planning import Plan
from memtool.similarity.settings import Kernel
from memtool.tables import CkaRow

logger = logging.getLogger("memtool")

TOLERANCE = 0.001  # by which a lower precision may change CKA


def compare(
    plan: Plan,
    images: Tensor | HostImages,
    data: str,
    processes: Processes,
    progress: Progress = silent,
) -> Iterator[CkaRow]:
    """CKA of each checkpoint of `plan` with its references over all `images`, uint8 (n, c, h, w),
    those of the data set named `data`.

    Yields one row for each pair of layers, in order of execution, of one reference after the other
    for each checkpoint. Where there is no CKA, it is None and a warning says why. Of several
    processes each does its part, and all yield the same rows. A precision that changes CKA of the
    first batch by more than TOLERANCE is not used.
    """
    if plan.settings.precision is not Precision.float32:
        plan = _in_safe_precision(plan, images, processes)
    told: set[Selection] = set()
    setting = Setting(plan, images, processes)
    for group in plan.groups:
        measured = measure(group, setting, progress)
        for network, outcome in measured.networks.items():
            if network not in told:
                _tell(outcome)
        told |= measured.networks.keys()
        for comparison, values in zip(group, measured.values, strict=True):
            _tell_missing(comparison, values, measured.networks)
            for layer, other in comparison.layers:
                value = values[layer.same_as, other.same_as]
                yield _row(comparison, layer, other, value, plan, data)


def _in_safe_precision(plan: Plan, images: Tensor | HostImages, processes: Processes) -> Plan:
    """The plan, in float32 if its precision would change CKA of the first batch."""
    start, stop = plan.batches[0]
    order = image_order(len(images), plan.settings.seed).to(images.device)
    batch = images[order[start:stop]]
    exact = replace(plan, settings=replace(plan.settings, precision=Precision.float32))

    def found(plan: Plan) -> Iterator[tuple[str, float | None]]:
        trial = replace(plan, batches=[(start, stop)], blocks=[range(1)] if plan.blocks else [])
        setting = Setting(trial, batch, Processes())
        for group in plan.groups:
            for values in measure(group, setting, silent).values:
                yield from ((layer, value.cka) for (layer, _), value in values.items())

    change, layer = max(processes.gather(_change(found(plan), found(exact))))
    if change <= TOLERANCE:
        return plan
    told = (
        f"changes CKA of {layer} by {change:.2g} in the first {stop} images, more than {TOLERANCE}"
    )
    if change == inf:
        told = f"decides whether there is CKA of {layer} in the first {stop} images"
    logger.warning(f"--precision {plan.settings.precision} {told}: computing in float32")
    return exact


def _change(
    found: Iterable[tuple[str, float | None]], expected: Iterable[tuple[str, float | None]]
) -> tuple[float, str]:
    """The largest difference of two values of CKA, and its layer; infinite if there is only one."""
    changes = [(0.0, "")]
    for (layer, value), (_, exact) in zip(found, expected, strict=True):
        if value is not None and exact is not None:
            changes.append((abs(value - exact), layer))
        elif value is not exact:
            changes.append((inf, layer))
    return max(changes)


def _tell(outcome: Outcome) -> None:
    """Say of which layers of a network there is no CKA, or one that depends on the batches."""
    layers: dict[str, list[str]] = {}  # by what is said of them
    for layer in outcome.selection.layers:
        if told := _remark(outcome, layer.same_as):
            layers.setdefault(told, []).append(layer.name)
    for told, names in layers.items():
        logger.warning(f"{outcome.selection.checkpoint.path}: {told.format(told_names(names))}")


def _remark(outcome: Outcome, tensor: str) -> str | None:
    """What is to be said of layers with this tensor, whose names go into the braces."""
    if tensor in outcome.unaligned:
        return (
            "no CKA of {}: not one row for each image, all of one length and in the order of the "
            "images (seen, or called for, only some of them, or sorted?)"
        )
    if tensor in outcome.mixed:
        return (
            "CKA of {} depends on the other images of a batch, unlike the result of the model "
            "(--batch-size)"
        )
    if tensor in outcome.constant:
        return "no CKA of {}: the same for all images, or differing no more than by rounding"
    if tensor in outcome.coincident:
        return (
            "no CKA of {} for --kernel rbf: the same for so many images that their median distance "
            "is 0"
        )
    return None


def _tell_missing(
    comparison: Comparison, values: Values, networks: Mapping[Selection, Outcome]
) -> None:
    """Say of which pairs of layers there is no CKA, unless it has been said of one of the two."""
    mine, theirs = networks[comparison.selection], networks[comparison.reference]
    pairs = [
        f"{layer.name} with {other.name}"
        for layer, other in comparison.layers
        if values[layer.same_as, other.same_as].cka is None
        and layer.same_as not in mine.explained
        and other.same_as not in theirs.explained
    ]
    if pairs:
        logger.warning(
            f"{comparison.selection.checkpoint.path}: no CKA of {told_names(pairs)}: an HSIC with "
            "itself is not positive and finite (too few images for this estimator, activations "
            "that are not finite, or some in a later batch so much larger than in the first that "
            "their squares are not, for which a larger --batch-size may help)"
        )


def _row(
    comparison: Comparison,
    layer: Layer,
    other: Layer,
    value: Value,
    plan: Plan,
    data: str,
) -> CkaRow:
    settings = plan.settings
    checkpoint, reference = comparison.selection.checkpoint, comparison.reference.checkpoint
    mine, theirs = checkpoint.provenance, reference.provenance
    front, back = mine.front or NOT_STITCHED, mine.back or NOT_STITCHED
    cut = checkpoint.spec.options if mine.front else {}
    return {
        "checkpoint": str(checkpoint.path),
        "reference": str(reference.path),
        "layer": layer.name,
        "reference_layer": other.name,
        "same_as": layer.same_as if layer.same_as != layer.name else None,
        "model": str(checkpoint.spec),
        "reference_model": str(reference.spec),
        "data": data,
        "epoch": mine.epoch,
        "noise_ratio": mine.noise_ratio,
        "noise_kind": mine.noise_kind,
        "noise_seed": mine.noise_seed,
        "seed": mine.seed,
        "order_seed": mine.order_seed,
        "front_layer": cut.get("front_layer"),
        "back_layer": cut.get("back_layer"),
        "front_noise_ratio": front.noise_ratio,
        "front_noise_seed": front.noise_seed,
        "front_seed": front.seed,
        "back_noise_ratio": back.noise_ratio,
        "back_noise_seed": back.noise_seed,
        "back_seed": back.seed,
        "reference_epoch": theirs.epoch,
        "reference_noise_ratio": theirs.noise_ratio,
        "reference_noise_kind": theirs.noise_kind,
        "reference_noise_seed": theirs.noise_seed,
        "reference_seed": theirs.seed,
        "reference_order_seed": theirs.order_seed,
        "estimator": str(plan.estimator),
        "kernel": str(settings.kernel),
        "bandwidth": settings.bandwidth if settings.kernel is Kernel.rbf else None,
        "precision": str(settings.precision),
        "n": plan.n,
        "batch_size": plan.batch_size,
        "sample_seed": settings.seed,
        "cka": value.cka,
        "cka_se": value.error,
        "cka_null": value.null,
    }
