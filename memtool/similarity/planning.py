"""How a comparison is carried out within a budget of memory: batches, blocks, groups, passes."""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import product

from memtool import MemtoolError
from memtool.device import Processes
from memtool.similarity.feature_space import is_cheaper
from memtool.similarity.hsic import GROUPS, MINIMUM, check_examples
from memtool.similarity.pairs import Comparison, Selection, TensorPair, compared
from memtool.similarity.recorder import Visit
from memtool.similarity.settings import CkaSettings, Estimator, Kernel, Pairs

Batches = list[tuple[int, int]]  # (start, stop) of each


@dataclass(frozen=True)
class Memory:
    """The bytes that a comparison takes at most, beside the forward passes."""

    weights: int  # of all networks of a group
    features: int  # kept for tiles, and for feature space
    centered: int  # of a batch, one layer of each network
    row_sums: int
    grams: int  # Gram matrices or tiles of a batch, of the reference and one more network
    wide_grams: int  # the part of them that is being added up, in float64

    @property
    def total(self) -> int:
        return sum(astuple(self))


@dataclass(frozen=True)
class Plan:
    """How a comparison is carried out.

    The examples come in `batches`. For the tiles of `exact` and `unbiased`, `blocks` are ranges of
    batches whose features are kept at a time; each takes a pass over all batches from its first one
    on. Where nothing takes tiles there are no blocks, and one pass. `groups` are the checkpoints
    that are compared at a time; each group takes passes of the reference as well.
    """

    estimator: Estimator
    batches: Batches
    blocks: list[range]
    groups: list[list[Comparison]]
    memory: Memory = Memory(0, 0, 0, 0, 0, 0)

    @property
    def n(self) -> int:
        """How many examples there are."""
        return self.batches[-1][1]

    @property
    def batch_size(self) -> int:
        """How many examples the largest batch has."""
        return max(stop - start for start, stop in self.batches)

    @property
    def capacity(self) -> int:
        """How many examples the largest block has; 0 without blocks."""
        ends = ((self.batches[block[0]][0], self.batches[block[-1]][1]) for block in self.blocks)
        return max((stop - start for start, stop in ends), default=0)

    @property
    def passes(self) -> float:
        """How often a network sees all the examples, on average."""
        batches = len(self.batches)
        return sum(batches - block.start for block in self.blocks) / batches if self.blocks else 1.0

    @property
    def cost(self) -> float:
        """Passes of all networks together."""
        return self.passes * sum(len(group) + 1 for group in self.groups)

    def visits(self, processes: Processes) -> list[Visit]:
        """What this process has to do, in order; all processes together do all there is to do."""
        if self.blocks:
            visits = [
                Visit(batch, *self.batches[batch], block)
                for block in self._blocks_of(processes)
                for batch in range(block.start, len(self.batches))
            ]
        else:
            visits = [
                Visit(batch, *self.batches[batch], range(0))
                for batch in processes.share(range(len(self.batches)))
            ]
        if self.estimator is not Estimator.minibatch and (not visits or visits[0].batch):
            # The first batch sets the origin of features in every process.
            visits.insert(0, Visit(0, *self.batches[0], range(0)))
        return visits

    def kept_in_feature_space(self, processes: Processes) -> Sequence[int]:
        """The batches whose features this process keeps to the end, each kept by one process."""
        batches = range(len(self.batches))
        if not self.blocks:
            return processes.share(batches)
        return batches if self.blocks[0] in self._blocks_of(processes) else []

    def _blocks_of(self, processes: Processes) -> list[range]:
        """The blocks that this process makes passes for. Early ones take longer, so that each goes
        with a late one."""
        last = len(self.blocks) - 1
        folded = [(block, self.blocks[last - i]) for i, block in enumerate(self.blocks)]
        mine = processes.share(folded[: last // 2 + 1])
        return list(dict.fromkeys(block for pair in mine for block in pair))

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
        comparisons = [comparison for group in self.groups for comparison in group]
        if features := sum(len(one.in_feature_space) for one in comparisons):
            every = sum(len(one.tensors) for one in comparisons)
            text += f"; {features} of {every} pairs of layers in feature space"
        return f"{text}; {self.memory.total / 2**20:,.0f} MiB beside the forward pass"


def make_plan(
    selections: Sequence[Selection],
    reference: Selection,
    n: int,
    settings: CkaSettings,
    processes: int = 1,
) -> Plan:
    """The plan with the fewest forward passes that fits into `settings.memory`.

    `auto` becomes `exact` if one pass of each network fits, else `minibatch`; that does not depend
    on the number of processes. Raises MemtoolError if n is too small for the estimator, or if
    nothing fits.
    """
    comparisons = [compared(selection, reference, settings.pairs) for selection in selections]
    estimator = settings.estimator.canonical
    if estimator is Estimator.auto:
        estimator = _affordable(comparisons, reference, n, settings)
    check_examples(estimator, n)
    batches = _batches_for(estimator, n, settings.batch_size)
    ways = [comparisons]
    if estimator is not Estimator.minibatch and settings.kernel is Kernel.linear:
        cheaper = [_by_the_cheaper(one, reference, n, settings.pairs) for one in comparisons]
        ways = [cheaper, comparisons] if cheaper != comparisons else ways
    plans = [
        plan
        for way, size in product(ways, range(len(selections), 0, -1))
        if (plan := _fitting(estimator, batches, way, size, reference, settings.memory, processes))
    ]
    if not plans:
        batch = max(stop - start for start, stop in batches)
        one_by_one = (_memory(estimator, [one], reference, batches, batch) for one in comparisons)
        least = max(memory.total for memory in one_by_one)
        raise MemtoolError(
            f"--memory: {estimator} CKA of these layers takes {least / 2**20:,.0f} MiB or more; "
            "allow for that, or choose fewer layers, smaller batches or --estimator minibatch"
        )
    return min(plans, key=lambda plan: plan.cost)  # the first of several


def even_batches(n: int, size: int, multiple: int = 1) -> Batches:
    """(start, stop) of batches of n examples, of even sizes: at most `size`, but at least 4, as
    unbiased HSIC needs, if n is; a `multiple` of that many batches if n allows.

    >>> even_batches(10, 4)
    [(0, 5), (5, 10)]
    """
    count = -(-n // size)
    count = -(-count // multiple) * multiple
    count = max(1, min(count, n // MINIMUM))
    return [(n * i // count, n * (i + 1) // count) for i in range(count)]


def _batches_for(estimator: Estimator, n: int, size: int) -> Batches:
    """The batch size is part of `minibatch`; for the others, batches make equal groups to leave
    out."""
    if estimator is Estimator.minibatch:
        return even_batches(n, size)
    return even_batches(n, min(size, -(-n // GROUPS)), multiple=GROUPS)


def _affordable(
    comparisons: Sequence[Comparison], reference: Selection, n: int, settings: CkaSettings
) -> Estimator:
    batches = _batches_for(Estimator.exact, n, settings.batch_size)
    needed = _memory(Estimator.exact, comparisons, reference, batches, n).total
    return Estimator.exact if needed <= settings.memory else Estimator.minibatch


def _by_the_cheaper(
    comparison: Comparison, reference: Selection, n: int, pairs: Pairs
) -> Comparison:
    """The comparison with those pairs in feature space that cost less there: each pair by itself
    or, where each layer is compared with each, all or none, since the Gram matrix of a layer serves
    all pairs that it is in."""
    widths, others = comparison.selection.widths, reference.widths
    parts = [[pair] for pair in comparison.tensors]
    if pairs is Pairs.all:
        parts = [comparison.tensors]
    found: list[TensorPair] = []
    for part in parts:
        mine, theirs = map(dict.fromkeys, zip(*part, strict=True))
        layers = [*(widths[name] for name in mine), *(others[name] for name in theirs)]
        if is_cheaper(n, layers, [(widths[a], others[b]) for a, b in part]):
            found += part
    return replace(comparison, in_feature_space=frozenset(found))


def _fitting(
    estimator: Estimator,
    batches: Batches,
    comparisons: Sequence[Comparison],
    group_size: int,
    reference: Selection,
    memory: int,
    processes: int,
) -> Plan | None:
    """The plan for groups of that many checkpoints with the fewest blocks that fit into `memory`;
    None if nothing does."""
    groups = [list(comparisons[i : i + group_size]) for i in range(0, len(comparisons), group_size)]
    for blocks in _divisions(estimator, len(batches), comparisons, processes):
        plan = Plan(estimator, batches, blocks, groups)
        needed = max(
            (_memory(estimator, group, reference, batches, plan.capacity) for group in groups),
            key=lambda one: one.total,
        )
        if needed.total <= memory:
            return replace(plan, memory=needed)
    return None


def _divisions(
    estimator: Estimator, batches: int, comparisons: Sequence[Comparison], processes: int
) -> Iterable[list[range]]:
    """The ways to divide the batches into blocks, with ever more of them."""
    has_tiles = any(one.computed(in_feature_space=False) for one in comparisons)
    if estimator is Estimator.minibatch or not has_tiles:
        yield []
        return
    step = 2 * processes if processes > 1 else 1  # two for each process: an early, a late one
    for count in range(min(step, batches), batches + 1, step):
        yield [range(batches * i // count, batches * (i + 1) // count) for i in range(count)]


def _memory(
    estimator: Estimator,
    comparisons: Sequence[Comparison],
    reference: Selection,
    batches: Batches,
    capacity: int,
) -> Memory:
    """What is taken at most, if blocks have `capacity` examples."""
    batch, n = max(stop - start for start, stop in batches), batches[-1][1]
    tiled = _tensors(comparisons, reference, in_feature_space=False)
    featured = _tensors(comparisons, reference, in_feature_space=True)
    networks = [*(one.selection for one in comparisons), reference]
    *others, own = map(len, tiled)
    of_two = own + max(others)
    weights = sum(network.weights for network in networks)
    if estimator is Estimator.minibatch:
        return Memory(weights, 0, 0, 0, 4 * of_two * batch**2, 8 * of_two * batch**2)
    return Memory(
        weights=weights,
        features=4 * (capacity * sum(map(sum, tiled)) + n * sum(map(sum, featured))),
        centered=4 * batch * sum(max(network.widths.values()) for network in networks),
        row_sums=8 * n * (GROUPS + 1) * sum(map(len, [*tiled, *featured])),
        grams=4 * of_two * capacity * batch,
        wide_grams=8 * of_two * batch**2,
    )


def _tensors(
    comparisons: Sequence[Comparison], reference: Selection, in_feature_space: bool
) -> list[list[int]]:
    """The widths of the tensors that are computed this way: of each checkpoint, then of the
    reference."""
    pairs = [one.computed(in_feature_space) for one in comparisons]
    others = dict.fromkeys(other for own in pairs for _, other in own)
    return [
        *(
            [one.selection.widths[name] for name in dict.fromkeys(mine for mine, _ in own)]
            for one, own in zip(comparisons, pairs, strict=True)
        ),
        [reference.widths[name] for name in others],
    ]
