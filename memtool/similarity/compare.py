"""Comparing checkpoints with a reference, layer by layer: one forward pass of each network."""

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from memtool.checkpoints.checkpoint import Checkpoint
from memtool.device import Precision, Processes, precision
from memtool.layers import observed
from memtool.similarity.alignment import Alignment, FeatureAlignment, grams
from memtool.similarity.feature_space import Features
from memtool.similarity.gram import Statistics, chosen, crossed
from memtool.similarity.pairs import Cells, Comparison, Form, Selection, paired, reference_tensors
from memtool.similarity.plan import Plan, Settings
from memtool.similarity.settings import Kernel, Pairs

logger = logging.getLogger(__name__)

TOLERANCE = 0.001  # by which a lower precision may change CKA


@dataclass(frozen=True)
class _Side:
    """A network, what CKA takes from its layers, and, unless it is the reference, its CKA with
    that, of the cells in the order of the alignment's values; both by form."""

    selection: Selection
    statistics: Mapping[Form, Statistics]
    alignments: Mapping[Form, tuple[Cells, Alignment | FeatureAlignment]]

    def see(self, name: str, activation: Tensor) -> None:
        for statistics in self.statistics.values():
            if name in statistics.layers:
                statistics.see(name, activation)

    def constant(self) -> set[Hashable]:
        """The tensors that are the same for all examples."""
        return {
            name
            for statistics in self.statistics.values()
            for name, constant in zip(
                statistics.layers, statistics.constant().tolist(), strict=True
            )
            if constant
        }


def compare(
    plan: Plan,
    reference: Selection,
    images: Tensor,
    settings: Settings,
    processes: Processes,
    advance: Callable[[], None],
) -> Iterator[dict[str, Any]]:
    """CKA of each checkpoint of `plan` with the reference over all `images`, uint8 (n, c, h, w).

    Yields a row a pair, in order of execution, with None for `cka` where there is none;
    a warning says why. `advance` is called after each batch of each network and each cell in
    feature space. Of several processes each does its part, and all yield the same rows. A
    precision that changes CKA of the first batch by more than TOLERANCE is not used.
    """
    if settings.precision is not Precision.float32:
        change, layer = max(processes.gather(_change(plan, reference, images, settings)))
        if change > TOLERANCE:
            logger.warning(
                f"--precision {settings.precision} changes CKA of {layer} by {change:.2g} in the "
                f"first {plan.batches[0][1]} images, more than {TOLERANCE}: computing in float32"
            )
            settings = replace(settings, precision=Precision.float32)
    yield from _compare(plan, reference, images, settings, processes, advance)


def _change(
    plan: Plan, reference: Selection, images: Tensor, settings: Settings
) -> tuple[float, str]:
    """By how much the precision changes CKA of the first batch, at which layer most."""
    start, stop = plan.batches[0]
    batch = images[_order(images, settings.seed)[start:stop]]
    trial = replace(plan, batches=[(start, stop)], blocks=[range(1)] if plan.blocks else [])
    values = [
        [
            (row["cka"], row["layer"])
            for row in _compare(
                trial,
                reference,
                batch,
                replace(settings, precision=one),
                Processes(),
                lambda: None,
            )
        ]
        for one in (settings.precision, Precision.float32)
    ]
    changes = (
        (abs(a - b), layer)
        for (a, layer), (b, _) in zip(*values, strict=True)
        if a is not None and b is not None
    )
    return max(changes, default=(0.0, ""))


def _compare(
    plan: Plan,
    reference: Selection,
    images: Tensor,
    settings: Settings,
    processes: Processes,
    advance: Callable[[], None],
) -> Iterator[dict[str, Any]]:
    for group in plan.groups:
        names = {form: reference_tensors(group, form) for form in Form}
        own = _Side(reference, _statistics(names, plan, settings), {})
        others = [_side(one, own, plan, settings) for one in group]
        with torch.inference_mode(), precision(settings.precision, images.device):
            _run(plan, [own, *others], images, settings.seed, processes, advance)
            for side in (own, *others):
                _share(side, plan, processes)
                _warn_of_constant(side)
            results = [_values(side, advance) for side in others]
        for side, values in zip(others, results, strict=True):
            yield from _rows(side, own, values, plan, settings)


def _statistics(
    tensors: Mapping[Form, list[str]], plan: Plan, settings: Settings
) -> dict[Form, Statistics]:
    found: dict[Form, Statistics] = {}
    if names := tensors[Form.gram]:
        kernel = settings.kernel, settings.bandwidth
        found[Form.gram] = grams(names, plan.estimator, *kernel, plan.rows)
    if names := tensors[Form.features]:
        found[Form.features] = Features(names, plan.estimator)
    return found


def _side(one: Comparison, own: _Side, plan: Plan, settings: Settings) -> _Side:
    mine = _statistics({form: one.tensors(form) for form in Form}, plan, settings)
    alignments = {}
    for form, statistics in mine.items():
        theirs, cells = own.statistics[form], one.cells[form]
        rows = [statistics.layers[name] for name, _ in cells]
        columns = [theirs.layers[name] for _, name in cells]
        alignment: Alignment | FeatureAlignment
        if isinstance(statistics, Features):
            assert isinstance(theirs, Features)
            alignment = FeatureAlignment(statistics, theirs, list(zip(rows, columns, strict=True)))
        else:
            each = settings.pairs is Pairs.all
            alignment = Alignment(statistics, theirs, crossed if each else chosen(rows, columns))
        alignments[form] = cells, alignment
    return _Side(one.selection, mine, alignments)


def _run(
    plan: Plan,
    sides: Sequence[_Side],
    images: Tensor,
    seed: int,
    processes: Processes,
    advance: Callable[[], None],
) -> None:
    """Run each step's batch through all networks in turn, the reference first, so that nothing
    but the Gram matrices of two networks is there at a time."""
    order = _order(images, seed)
    with ExitStack() as hooks:
        networks = []
        for side in sides:
            network = side.selection.checkpoint.network(images.device).fastest(images)
            _note_uncalled(side.selection, network.model)
            hooks.enter_context(observed(network.model, side.selection.tensors, side.see))
            networks.append(network)
        for step in plan.steps(processes):
            start, stop = plan.batches[step.batch]
            batch = images[order[start:stop]]
            for network, side in zip(networks, sides, strict=True):
                for form, statistics in side.statistics.items():
                    keep = step.keep if form is Form.gram else step.new
                    statistics.begin(step.batch, stop - start, keep, step.first)
                network(batch)
                for _, alignment in side.alignments.values():
                    alignment.add()
                advance()


def _order(images: Tensor, seed: int) -> Tensor:
    """The order in which images come in batches."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return order.to(images.device)


def _share(side: _Side, plan: Plan, processes: Processes) -> None:
    for statistics in side.statistics.values():
        statistics.share(processes.sum, [stop - start for start, stop in plan.batches])
    for _, alignment in side.alignments.values():
        alignment.share(processes.sum, len(plan.batches))


def _note_uncalled(selection: Selection, model: nn.Module) -> None:
    names = selection.uncalled(model)
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        logger.info(
            f"{selection.checkpoint.path}: no activations of {', '.join(names[:5])}{more}: "
            "the model has but never calls them"
        )


def _warn_of_constant(side: _Side) -> None:
    constant = side.constant()
    for tensor in side.selection.tensors:
        if tensor in constant:
            names = [layer.name for layer in side.selection.layers if layer.same_as == tensor]
            logger.warning(
                f"{side.selection.checkpoint.path}: {', '.join(names)} is the same for all "
                "images: no CKA with it"
            )


# By cell: CKA and its standard error, either None where it is not a number.
_Values = dict[tuple[str, str], tuple[float | None, float | None]]


def _values(side: _Side, advance: Callable[[], None]) -> _Values:
    values: _Values = {}
    for cells, alignment in side.alignments.values():
        if isinstance(alignment, FeatureAlignment):
            results = alignment.compute(advance)
        else:
            results = alignment.compute()
        numbers = (
            [value if isfinite(value) else None for value in result.flatten().tolist()]
            for result in results
        )
        values |= zip(cells, zip(*numbers, strict=True), strict=True)
    return values


def _rows(
    side: _Side,
    own: _Side,
    values: _Values,
    plan: Plan,
    settings: Settings,
) -> Iterator[dict[str, Any]]:
    checkpoint, reference = side.selection.checkpoint, own.selection.checkpoint
    mine, theirs = side.constant(), own.constant()
    for layer, other in paired(side.selection, own.selection, settings.pairs):
        value, error = values[layer.same_as, other.same_as]
        if value is None and layer.same_as not in mine and other.same_as not in theirs:
            logger.warning(
                f"{checkpoint.path}: no CKA of {layer.name} with {other.name}: an HSIC with "
                "itself is not positive (too few images for this estimator, or activations that "
                "are not finite)"
            )
        yield {
            **conditions(checkpoint, reference),
            "layer": layer.name,
            "reference_layer": other.name,
            "estimator": str(plan.estimator),
            "kernel": str(settings.kernel),
            "bandwidth": settings.bandwidth if settings.kernel is Kernel.rbf else None,
            "precision": str(settings.precision),
            "n": plan.batches[-1][1],
            "batch_size": max(stop - start for start, stop in plan.batches),
            "sample_seed": settings.seed,
            "cka": value,
            "cka_se": error,
        }


def conditions(checkpoint: Checkpoint, reference: Checkpoint) -> dict[str, Any]:
    """The columns that say what is compared with what."""
    mine, theirs = checkpoint.training, reference.training
    return {
        "checkpoint": str(checkpoint.path),
        "reference": str(reference.path),
        "epoch": mine.get("epoch"),
        "noise_ratio": mine.get("noise_ratio"),
        "seed": mine.get("seed"),
        "reference_epoch": theirs.get("epoch"),
        "reference_noise_ratio": theirs.get("noise_ratio"),
        "reference_seed": theirs.get("seed"),
    }
