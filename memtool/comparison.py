"""Comparing checkpoints with a reference, layer by layer: one forward pass of each network."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from math import isfinite, prod
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from memtool import MemtoolError
from memtool.checkpoint import Checkpoint, stored_tensors, traced_all
from memtool.choices import Estimator, Kernel, Pairs, Precision
from memtool.cka import Alignment, Grams, batches, check_examples, grams
from memtool.device import Processes, precision
from memtool.gram import GROUPS, chosen, crossed
from memtool.layers import Layer, observed, select


@dataclass(frozen=True)
class Selection:
    """The layers of a checkpoint that take part, in order of execution."""

    checkpoint: Checkpoint
    layers: list[Layer]
    patterns: Sequence[str]

    @property
    def tensors(self) -> list[str]:
        """One name for each distinct tensor: a block and its last ReLU are computed once."""
        return list(dict.fromkeys(layer.same_as for layer in self.layers))

    @property
    def features(self) -> int:
        """How many numbers one example has at all these tensors together."""
        shapes = {layer.same_as: layer.shape for layer in self.layers}
        return sum(map(prod, shapes.values()))

    def uncalled(self, model: nn.Module) -> list[str]:
        """The modules that the patterns name and the model never calls."""
        known = {layer.name for layer in self.layers}
        return [
            name
            for name, module in model.named_modules()
            if name not in known
            and not isinstance(module, nn.ModuleList | nn.ModuleDict)  # have nothing to call
            and any(name and (p == "all" or fnmatchcase(name, p)) for p in self.patterns)
        ]


@dataclass(frozen=True)
class Settings:
    """How CKA is computed; `memory` is in bytes, `seed` orders the examples."""

    pairs: Pairs = Pairs.same
    estimator: Estimator = Estimator.auto
    kernel: Kernel = Kernel.linear
    bandwidth: float = 1.0
    precision: Precision = Precision.float32
    batch_size: int = 256
    seed: int = 0
    memory: int = 4 * 2**30


class Reporter(Protocol):
    """Where notes and warnings go: the console."""

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


def selections(
    checkpoints: Sequence[Checkpoint],
    patterns: Sequence[str],
    reference_patterns: Sequence[str] | None = None,
) -> list[Selection]:
    """The layers of each checkpoint that match `patterns`; of the last one, the reference, those
    that match `reference_patterns`, if there are any.

    Raises MemtoolError for a pattern that matches no layer of one of them.
    """
    wanted = [patterns] * (len(checkpoints) - 1) + [reference_patterns or patterns]
    return [
        Selection(checkpoint, select(layers, globs, str(checkpoint.path)), globs)
        for checkpoint, layers, globs in zip(
            checkpoints, traced_all(checkpoints), wanted, strict=True
        )
    ]


def paired(selection: Selection, reference: Selection, pairs: Pairs) -> list[tuple[Layer, Layer]]:
    """The (layer, reference layer) pairs to compare; corresponding layers have the same name.

    The parts of a stitched model are named `front.` and `back.`: a layer of either corresponds to
    the layer that is called so without. Where the reference's layers were chosen by patterns of
    their own, the k-th corresponds to the k-th. Raises MemtoolError if no layers correspond.
    """
    if pairs is Pairs.all:
        return [(layer, other) for layer in selection.layers for other in reference.layers]
    remedy = "compare each with each: --pairs all"
    mine, theirs = selection.checkpoint.path, reference.checkpoint.path
    if selection.patterns != reference.patterns:
        counts = len(selection.layers), len(reference.layers)
        if counts[0] != counts[1]:
            raise MemtoolError(
                f"{mine}: {counts[0]} layers chosen, but {counts[1]} of {theirs}; "
                f"the same number makes pairs, else {remedy}"
            )
        return list(zip(selection.layers, reference.layers, strict=True))
    exact = {layer.name: layer for layer in reference.layers}
    bare = {_bare(layer.name): layer for layer in reference.layers}
    result = [
        (layer, other)
        for layer in selection.layers
        if (other := exact.get(layer.name) or bare.get(_bare(layer.name)))
    ]
    if not result:
        raise MemtoolError(f"{mine}: none of its layers corresponds to one of {theirs}; {remedy}")
    return result


def _bare(name: str) -> str:
    for part in ("front.", "back."):
        name = name.removeprefix(part)
    return name


@dataclass(frozen=True)
class Step:
    """A batch to run through all networks. `first`: it begins a block, whose features are kept
    for the tiles of later batches; `keep`: it is part of that block."""

    batch: int
    first: bool = False
    keep: bool = True


@dataclass(frozen=True)
class Plan:
    """How a comparison is carried out within a budget of memory.

    The examples come in `batches`, (start, stop) each. For `exact` and `unbiased`, `blocks` are
    ranges of batches whose features are kept at a time; each needs a pass over all batches from
    its first one on. `groups` are the checkpoints that are compared at a time; each group takes a
    pass of the reference more. `bytes` is what weights, features and tiles take at most.
    """

    estimator: Estimator
    batches: list[tuple[int, int]]
    blocks: list[range]
    groups: list[list[Selection]]
    bytes: int

    def rows(self, block: range) -> int:
        """How many examples a block has."""
        return self.batches[block[-1]][1] - self.batches[block[0]][0]

    @property
    def passes(self) -> float:
        """How often a network sees all the images, in the mean."""
        batches = len(self.batches)
        return sum(batches - block.start for block in self.blocks) / batches if self.blocks else 1.0

    def steps(self, processes: Processes) -> list[Step]:
        """The steps of this process; those of all together are all there is to do."""
        if self.estimator is Estimator.minibatch:
            steps = [Step(batch) for batch in processes.share(range(len(self.batches)))]
        else:
            last = len(self.blocks) - 1  # early blocks take longer: each goes with a late one
            folded = [(block, self.blocks[last - i]) for i, block in enumerate(self.blocks)]
            mine = processes.share(folded[: last // 2 + 1])
            steps = [
                Step(batch, batch == block.start, batch in block)
                for block in dict.fromkeys(block for pair in mine for block in pair)
                for batch in range(block.start, len(self.batches))
            ]
        if not steps or steps[0].batch != 0 and self.blocks:
            # All processes take the origin of features from the first batch, with or without work.
            steps.insert(0, Step(0, first=True, keep=False))
        return steps

    def __str__(self) -> str:
        start, stop = self.batches[-1]
        passes = f"{self.passes:.3g} forward pass{'es' if self.passes > 1 else ''}"
        text = (
            f"{self.estimator} CKA of {stop:,} examples, {len(self.batches)} batches of "
            f"{stop - start}: {passes} of each network"
        )
        if len(self.blocks) > 1:
            text += f" ({len(self.blocks)} blocks of examples)"
        if len(self.groups) > 1:
            text += f", of the reference {self.passes * len(self.groups):.3g}"
        return f"{text}; {self.bytes / 2**20:,.0f} MiB beside the forward pass"


def plan(
    selections: Sequence[Selection],
    reference: Selection,
    n: int,
    settings: Settings,
    processes: int = 1,
) -> Plan:
    """The plan with the fewest forward passes that fits `settings.memory`.

    `auto` becomes `exact` if one pass of each network fits, else `minibatch`; that does not depend
    on the number of processes. Raises MemtoolError if n is too small for the estimator, or if
    nothing fits.
    """
    estimator = settings.estimator
    if estimator is Estimator.auto:
        exact = _batches(Estimator.exact, n, settings.batch_size)
        needed = _bytes(Estimator.exact, [*selections, reference], exact, n)
        estimator = Estimator.exact if needed <= settings.memory else Estimator.minibatch
    check_examples(estimator, n)
    cut = _batches(estimator, n, settings.batch_size)
    best: Plan | None = None
    for size in range(len(selections), 0, -1):
        groups = [list(selections[i : i + size]) for i in range(0, len(selections), size)]
        found = _blocked(estimator, groups, reference, cut, n, settings.memory, processes)
        if found and (best is None or _cost(found) < _cost(best)):
            best = found
    if best is None:
        rows = max(stop - start for start, stop in cut)
        least = max(_bytes(estimator, [one, reference], cut, rows) for one in selections)
        raise MemtoolError(
            f"--memory: {estimator} CKA of these layers takes {least / 2**20:,.0f} MiB or more; "
            "allow for that, or choose fewer layers, smaller batches or --estimator minibatch"
        )
    return best


def _batches(estimator: Estimator, n: int, size: int) -> list[tuple[int, int]]:
    """The batch size is part of `minibatch`; for the others batches make equal groups to leave
    out."""
    if estimator is Estimator.minibatch:
        return batches(n, size)
    return batches(n, min(size, -(-n // GROUPS)), multiple=GROUPS)


def _blocked(
    estimator: Estimator,
    groups: list[list[Selection]],
    reference: Selection,
    cut: list[tuple[int, int]],
    n: int,
    memory: int,
    processes: int,
) -> Plan | None:
    """The plan for these groups with the fewest blocks that fit; None if nothing does."""
    count = 2 * processes if processes > 1 else 1  # two blocks for each process: an early, a late
    for blocks in range(min(count, len(cut)), len(cut) + 1, count):
        ranges = [
            range(len(cut) * i // blocks, len(cut) * (i + 1) // blocks) for i in range(blocks)
        ]
        rows = max(cut[block[-1]][1] - cut[block[0]][0] for block in ranges)
        bytes_ = max(_bytes(estimator, [*group, reference], cut, rows) for group in groups)
        if estimator is Estimator.minibatch:
            return Plan(estimator, cut, [], groups, bytes_) if bytes_ <= memory else None
        if bytes_ <= memory:
            return Plan(estimator, cut, ranges, groups, bytes_)
    return None


def _cost(plan: Plan) -> float:
    """Forward passes in all."""
    return plan.passes * sum(len(group) + 1 for group in plan.groups)


def _bytes(
    estimator: Estimator, networks: Sequence[Selection], cut: Sequence[tuple[int, int]], rows: int
) -> int:
    """What weights, kept features of `rows` examples, and Gram matrices take at most."""
    batch = max(stop - start for start, stop in cut)
    stored = [t for one in networks for t in stored_tensors(one.checkpoint.path).values()]
    weights = sum(4 * prod(tensor.shape) for tensor in stored)
    tensors = [len(one.tensors) for one in networks]
    # Two networks have tiles at a time: the reference and one more. Of a tile the part that is
    # being added up is there in float64 as well.
    two = tensors[-1] + max(tensors[:-1])
    added = 8 * two * batch**2
    if estimator is Estimator.minibatch:
        return weights + 4 * two * batch**2 + added
    features = 4 * rows * sum(one.features for one in networks)
    row_sums = 8 * cut[-1][1] * (GROUPS + 1) * sum(tensors)
    return weights + features + row_sums + 4 * two * rows * batch + added


@dataclass(frozen=True)
class _Side:
    """A network's Gram matrices and, unless it is the reference, its CKA with that: of the `cells`
    (tensor, reference tensor), in the order of the alignment's values."""

    selection: Selection
    grams: Grams
    cells: Sequence[tuple[int, int]] = ()
    alignment: Alignment | None = None


def compare(
    plan: Plan,
    reference: Selection,
    images: Tensor,
    settings: Settings,
    processes: Processes,
    reporter: Reporter,
    advance: Callable[[], None],
) -> Iterator[dict[str, Any]]:
    """CKA of each checkpoint of `plan` with the reference over all `images`, uint8 (n, c, h, w).

    Yields a row a pair, in order of execution, with None for `cka` where there is none;
    `reporter` is told why. `advance` is called after each batch of each network. Of several
    processes each does its part, and all yield the same rows.
    """
    for group in plan.groups:
        own = _Side(reference, _grams(reference, plan, settings))
        others = [_side(selection, own, plan, settings) for selection in group]
        with torch.inference_mode(), precision(settings.precision, images.device):
            _run(plan, [own, *others], images, settings.seed, processes, reporter, advance)
            for side in (own, *others):
                _share(side, plan, processes)
                _warn_of_constant(side, reporter)
            results = [_values(side) for side in others]
        for side, values in zip(others, results, strict=True):
            yield from _rows(side, own, values, plan, settings, reporter)


def _grams(selection: Selection, plan: Plan, settings: Settings) -> Grams:
    rows = max(map(plan.rows, plan.blocks), default=0)
    return grams(selection.tensors, plan.estimator, settings.kernel, settings.bandwidth, rows)


def _side(selection: Selection, own: _Side, plan: Plan, settings: Settings) -> _Side:
    mine = _grams(selection, plan, settings)
    tensors, others = selection.tensors, own.selection.tensors
    if settings.pairs is Pairs.all:
        cells = list(product(range(len(tensors)), range(len(others))))
        return _Side(selection, mine, cells, Alignment(mine, own.grams, crossed))
    found = paired(selection, own.selection, settings.pairs)
    cells = [(tensors.index(one.same_as), others.index(other.same_as)) for one, other in found]
    cells = list(dict.fromkeys(cells))
    rows, columns = ([cell[i] for cell in cells] for i in (0, 1))
    return _Side(selection, mine, cells, Alignment(mine, own.grams, chosen(rows, columns)))


def _run(
    plan: Plan,
    sides: Sequence[_Side],
    images: Tensor,
    seed: int,
    processes: Processes,
    reporter: Reporter,
    advance: Callable[[], None],
) -> None:
    """Run each step's batch through all networks in turn, the reference first, so that nothing
    but the Gram matrices of two networks is there at a time."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    order = order.to(images.device)
    with ExitStack() as hooks:
        networks = []
        for side in sides:
            network = side.selection.checkpoint.network(images.device)
            _note_uncalled(side.selection, network.model, reporter)
            hooks.enter_context(observed(network.model, side.selection.tensors, side.grams.see))
            networks.append(network)
        for step in plan.steps(processes):
            start, stop = plan.batches[step.batch]
            batch = images[order[start:stop]]
            for network, side in zip(networks, sides, strict=True):
                side.grams.begin(step.batch, stop - start, step.keep, step.first)
                network(batch)
                if side.alignment:
                    side.alignment.add()
                advance()


def _share(side: _Side, plan: Plan, processes: Processes) -> None:
    side.grams.share(processes.sum, [stop - start for start, stop in plan.batches])
    if side.alignment:
        side.alignment.share(processes.sum, len(plan.batches))


def _note_uncalled(selection: Selection, model: nn.Module, reporter: Reporter) -> None:
    names = selection.uncalled(model)
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        reporter.note(
            f"{selection.checkpoint.path}: no activations of {', '.join(names[:5])}{more}: "
            "the model has but never calls them"
        )


def _warn_of_constant(side: _Side, reporter: Reporter) -> None:
    constant = side.grams.constant().tolist()
    for tensor, is_constant in zip(side.selection.tensors, constant, strict=True):
        if is_constant:
            names = [layer.name for layer in side.selection.layers if layer.same_as == tensor]
            reporter.warn(
                f"{side.selection.checkpoint.path}: {', '.join(names)} is the same for all "
                "images: no CKA with it"
            )


# By cell: CKA and its standard error, either None where it is not a number.
_Values = dict[tuple[int, int], tuple[float | None, float | None]]


def _values(side: _Side) -> _Values:
    assert side.alignment
    numbers = (
        [value if isfinite(value) else None for value in result.flatten().tolist()]
        for result in side.alignment.compute()
    )
    return dict(zip(side.cells, zip(*numbers, strict=True), strict=True))


def _rows(
    side: _Side,
    own: _Side,
    values: _Values,
    plan: Plan,
    settings: Settings,
    reporter: Reporter,
) -> Iterator[dict[str, Any]]:
    checkpoint, reference = side.selection.checkpoint, own.selection.checkpoint
    tensors, others = side.selection.tensors, own.selection.tensors
    constant = [one.grams.constant().tolist() for one in (side, own)]
    for layer, other in paired(side.selection, own.selection, settings.pairs):
        cell = tensors.index(layer.same_as), others.index(other.same_as)
        value, error = values[cell]
        if value is None and not (constant[0][cell[0]] or constant[1][cell[1]]):
            reporter.warn(
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
