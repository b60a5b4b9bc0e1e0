"""How a comparison is carried out within a budget of memory: batches, blocks, groups, passes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from memtool import MemtoolError
from memtool.device import Precision, Processes
from memtool.similarity.gram import GROUPS
from memtool.similarity.pairs import (
    Comparison,
    Form,
    Selection,
    by_grams,
    by_the_cheaper,
    reference_tensors,
)
from memtool.similarity.settings import Estimator, Kernel, Pairs
from memtool.similarity.stream import batches, check_examples


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


@dataclass(frozen=True)
class Step:
    """A batch to run through all networks. `first`: it begins a block, whose features are kept
    for the tiles of later batches; `keep`: it is part of that block; `new`: it was in no step
    before, of this process or another."""

    batch: int
    first: bool = False
    keep: bool = True
    new: bool = True


@dataclass(frozen=True)
class Plan:
    """How a comparison is carried out within a budget of memory.

    The examples come in `batches`, (start, stop) each. For the tiles of `exact` and `unbiased`,
    `blocks` are ranges of batches whose features are kept at a time; each needs a pass over all
    batches from its first one on. `groups` are the checkpoints that are compared at a time; each
    group takes a pass of the reference more. `bytes` is what weights, features and tiles take at
    most.
    """

    estimator: Estimator
    batches: list[tuple[int, int]]
    blocks: list[range]
    groups: list[list[Comparison]]
    bytes: int

    @property
    def rows(self) -> int:
        """How many examples a block has at most; 0 without blocks."""
        cut = self.batches
        return max((cut[block[-1]][1] - cut[block[0]][0] for block in self.blocks), default=0)

    @property
    def passes(self) -> float:
        """How often a network sees all the images, in the mean."""
        batches = len(self.batches)
        return sum(batches - block.start for block in self.blocks) / batches if self.blocks else 1.0

    def steps(self, processes: Processes) -> list[Step]:
        """The steps of this process; those of all together are all there is to do."""
        if not self.blocks:
            steps = [Step(batch) for batch in processes.share(range(len(self.batches)))]
        else:
            last = len(self.blocks) - 1  # early blocks take longer: each goes with a late one
            folded = [(block, self.blocks[last - i]) for i, block in enumerate(self.blocks)]
            mine = processes.share(folded[: last // 2 + 1])
            steps = [
                Step(batch, batch == block.start, batch in block, block.start == 0)
                for block in dict.fromkeys(block for pair in mine for block in pair)
                for batch in range(block.start, len(self.batches))
            ]
        if not steps or steps[0].batch != 0 and self.estimator is not Estimator.minibatch:
            # All processes take the origin of features from the first batch, with or without work.
            steps.insert(0, Step(0, first=True, keep=False, new=False))
        return steps

    def advances(self, processes: Processes) -> int:
        """How often `compare` calls `advance` in this process."""
        networks = sum(len(group) + 1 for group in self.groups)
        return len(self.steps(processes)) * networks + self.cells(Form.features)

    def cells(self, form: Form) -> int:
        """How many pairs of tensors are compared in this form."""
        return sum(len(one.cells[form]) for group in self.groups for one in group)

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
        if features := self.cells(Form.features):
            every = features + self.cells(Form.gram)
            text += f"; {features} of {every} pairs of layers in feature space"
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
    whole = [by_grams(selection, reference, settings.pairs) for selection in selections]
    estimator = settings.estimator
    if estimator is Estimator.auto:
        exact = _batches(Estimator.exact, n, settings.batch_size)
        needed = _bytes(Estimator.exact, whole, reference, exact, n)
        estimator = Estimator.exact if needed <= settings.memory else Estimator.minibatch
    check_examples(estimator, n)
    cut = _batches(estimator, n, settings.batch_size)
    forms = [whole]
    if estimator is not Estimator.minibatch and settings.kernel is Kernel.linear:
        split = [by_the_cheaper(one, reference, n, settings.pairs) for one in whole]
        forms = [split, whole] if split != whole else forms
    best: Plan | None = None
    for comparisons, size in product(forms, range(len(selections), 0, -1)):
        groups = [comparisons[i : i + size] for i in range(0, len(selections), size)]
        found = _blocked(estimator, groups, reference, cut, settings.memory, processes)
        if found and (best is None or _cost(found) < _cost(best)):
            best = found
    if best is None:
        rows = max(stop - start for start, stop in cut)
        least = max(_bytes(estimator, [one], reference, cut, rows) for one in whole)
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
    groups: list[list[Comparison]],
    reference: Selection,
    cut: list[tuple[int, int]],
    memory: int,
    processes: int,
) -> Plan | None:
    """The plan for these groups with the fewest blocks that fit; None if nothing does."""

    def fitting(blocks: list[range]) -> Plan | None:
        made = Plan(estimator, cut, blocks, groups, 0)
        bytes_ = max(_bytes(estimator, group, reference, cut, made.rows) for group in groups)
        return replace(made, bytes=bytes_) if bytes_ <= memory else None

    has_tiles = any(one.cells[Form.gram] for group in groups for one in group)
    if estimator is Estimator.minibatch or not has_tiles:
        return fitting([])
    count = 2 * processes if processes > 1 else 1  # two blocks for each process: an early, a late
    for blocks in range(min(count, len(cut)), len(cut) + 1, count):
        found = fitting(
            [range(len(cut) * i // blocks, len(cut) * (i + 1) // blocks) for i in range(blocks)]
        )
        if found:
            return found
    return None


def _cost(plan: Plan) -> float:
    """Forward passes in all."""
    return plan.passes * sum(len(group) + 1 for group in plan.groups)


def _bytes(
    estimator: Estimator,
    comparisons: Sequence[Comparison],
    reference: Selection,
    cut: Sequence[tuple[int, int]],
    rows: int,
) -> int:
    """What weights, kept features (of `rows` examples for tiles), and Gram matrices take at
    most."""
    batch, n = max(stop - start for start, stop in cut), cut[-1][1]
    networks = [*(one.selection for one in comparisons), reference]
    weights = sum(network.weights for network in networks)
    tensors, features = {}, {}
    for form in Form:
        names = [one.tensors(form) for one in comparisons]
        names.append(reference_tensors(comparisons, form))
        tensors[form] = [len(some) for some in names]
        features[form] = sum(
            network.widths[name]
            for network, some in zip(networks, names, strict=True)
            for name in some
        )
    # Two networks have tiles at a time: the reference and one more. Of a tile the part that is
    # being added up is there in float64 as well.
    *others, own = tensors[Form.gram]
    two = own + max(others)
    added = 8 * two * batch**2
    if estimator is Estimator.minibatch:
        return weights + 4 * two * batch**2 + added
    kept = 4 * (rows * features[Form.gram] + n * features[Form.features])
    centered = 4 * batch * sum(max(network.widths.values()) for network in networks)
    row_sums = 8 * n * (GROUPS + 1) * sum(tensors[Form.gram] + tensors[Form.features])
    return weights + kept + centered + row_sums + 4 * two * rows * batch + added
