"""How a comparison is carried out within a budget of memory: batches, blocks, groups, passes."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from itertools import product
from operator import attrgetter

from memtool import MemtoolError
from memtool.device import Processes
from memtool.errors import told_size
from memtool.similarity.feature_space import is_cheaper
from memtool.similarity.hsic import GROUPS, MINIMUM, check_examples, minimum
from memtool.similarity.minibatch import CHUNK
from memtool.similarity.pairs import (
    Comparison,
    Selection,
    TensorPair,
    compared,
    networks_of,
    tensors_of,
)
from memtool.similarity.recorder import Visit
from memtool.similarity.settings import CkaSettings, Estimator, Kernel, Pairs, Route

Batches = list[tuple[int, int]]  # (start, stop) of each


@dataclass(frozen=True)
class Memory:
    """The bytes that a comparison takes at most."""

    weights: int  # of all networks of a group
    passes: int  # a forward pass
    kept: int  # the activations of a batch of several passes, or of a pass of several batches
    grams: int  # Gram matrices or tiles of a batch, or all of a pass; of references and one more
    wide_grams: int  # those of a batch, the part that is being added up, in float64
    features: int = 0  # kept for tiles, and for feature space
    centered: int = 0  # of a batch, what is centered at a time of each network
    row_sums: int = 0

    @property
    def total(self) -> int:
        return sum(astuple(self))


TOTAL = attrgetter("total")


@dataclass(frozen=True)
class Plan:
    """How a comparison is carried out, with which `settings`, whose estimator is not `auto`.

    The examples come in `batches`. For the tiles of `exact` and `unbiased`, `blocks` are ranges of
    batches whose features are kept at a time; each takes a pass over all batches from its first one
    on. Where nothing takes tiles there are no blocks, and one pass. `groups` are the checkpoints
    that are compared at a time; each group takes passes of the references as well. A network is
    given at most `portion` examples at a time, of one batch or of several.
    """

    settings: CkaSettings
    batches: Batches
    blocks: list[range]
    groups: list[list[Comparison]]
    portion: int
    memory: Memory = Memory(0, 0, 0, 0, 0)

    @property
    def estimator(self) -> Estimator:
        return self.settings.estimator

    @property
    def n(self) -> int:
        """How many examples there are."""
        return self.batches[-1][1]

    @property
    def batch_size(self) -> int:
        """How many examples the largest batch has."""
        return largest(self.batches)

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
        return self.passes * sum(len(networks_of(group)) for group in self.groups)

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

    def stretches(self, processes: Processes) -> list[list[Visit]]:
        """The visits, in order: those next to each other together, as far as a network is given
        their examples in one forward pass."""
        found: list[list[Visit]] = []
        for visit in self.visits(processes):
            last = found[-1] if found else []
            if last and visit.follows(last[-1]) and visit.stop - last[0].start <= self.portion:
                last.append(visit)
            else:
                found.append([visit])
        return found

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

    def json(self) -> dict[str, object]:
        """The plan and its settings as JSON holds them: the layers that are compared, and how."""
        compared = [
            {
                "checkpoint": str(one.selection.checkpoint.path),
                "reference": str(one.reference.checkpoint.path),
                "layers": [layer.name for layer in one.selection.layers],
                "reference_layers": [layer.name for layer in one.reference.layers],
                "rows": len(one.layers),
            }
            for group in self.groups
            for one in group
        ]
        return {
            **asdict(self.settings),
            "n": self.n,
            "batch_size": self.batch_size,
            "passes": self.passes,
            "compared": compared,
        }

    def __str__(self) -> str:
        start, stop = self.batches[-1]
        passes = f"{self.passes:.3g} forward pass{'es' if self.passes > 1 else ''}"
        batches = f"{len(self.batches)} batch{'es' if len(self.batches) > 1 else ''}"
        text = (
            f"{self.estimator} CKA of {stop:,} examples, {batches} of {stop - start}: "
            f"{passes} of each network"
        )
        if len(self.blocks) > 1:
            text += f" ({len(self.blocks)} blocks of examples)"
        if len(self.groups) > 1:
            text += f", of a reference {self.passes * len(self.groups):.3g}"
        comparisons = [comparison for group in self.groups for comparison in group]
        if features := sum(len(one.in_feature_space) for one in comparisons):
            every = sum(len(one.tensors) for one in comparisons)
            text += f"; {features} of {every} pairs of layers in feature space"
        passes, total = told_size(self.memory.passes), told_size(self.memory.total)
        images = f" of {self.portion} images" if self.portion < self.batch_size else ""
        return f"{text}; {total}, of which a forward pass{images} takes {passes}"


def make_plan(
    selections: Sequence[Selection],
    references: Sequence[Selection],
    n: int,
    settings: CkaSettings,
    processes: int = 1,
) -> Plan:
    """The plan with the fewest forward passes that compares each of the selections with each of the
    references and fits into `settings.memory`.

    `auto` becomes `exact` if one pass of each network fits, or if `minibatch` does not fit, else
    `minibatch`; that does not depend on the number of processes. The batches of `minibatch` are
    part of its definition. Those of the others are smaller where a forward pass would take more
    than half of the memory, or where nothing fits else: that changes no more than roundings of CKA,
    and its standard error, which leaves out groups of batches. Raises MemtoolError if n is too
    small for the estimator, or if nothing fits.
    """
    comparisons = [
        compared(selection, reference, settings.pairs)
        for selection, reference in product(selections, references)
    ]
    tried = [settings.estimator.canonical]
    if settings.estimator is Estimator.auto:
        is_affordable = _takes_one_pass(comparisons, n, settings)
        tried = [Estimator.exact] if is_affordable else [Estimator.minibatch, Estimator.exact]
    check_examples(tried[0], n)
    for estimator in tried:
        chosen = replace(settings, estimator=estimator)
        if plan := _cheapest(comparisons, len(references), n, chosen, processes):
            return plan
    raise _too_large(comparisons, len(references), n, settings, tried)


def _cheapest(
    comparisons: Sequence[Comparison],
    references: int,
    n: int,
    settings: CkaSettings,
    processes: int = 1,
) -> Plan | None:
    """The plan with the fewest forward passes that fits into memory, where each checkpoint is
    compared with so many references; None if there is none."""
    ways = [comparisons]
    if settings.estimator is not Estimator.minibatch and settings.kernel is Kernel.linear:
        cheaper = [_by_the_cheaper(one, n, settings.pairs) for one in comparisons]
        ways = [cheaper, comparisons] if cheaper != comparisons else ways
    # Groups of whole checkpoints: all comparisons of one are next to each other. Of the sizes that
    # make equally many groups, the smallest takes least.
    checkpoints = len(comparisons) // references
    each = {-(-checkpoints // groups) for groups in range(1, checkpoints + 1)}
    sizes = [references * size for size in sorted(each, reverse=True)]
    for batches in _batchings(settings, n, networks_of(comparisons)):
        fitting = [
            way
            for way in ways
            if _least(way, references, batches, settings).total <= settings.memory
        ]
        plans = [
            plan
            for way, size in product(fitting, sizes)
            if (plan := _fitting(settings, batches, way, size, processes))
        ]
        if plans:
            return min(plans, key=lambda plan: plan.cost)  # the first of several
    return None


def _too_large(
    comparisons: Sequence[Comparison],
    references: int,
    n: int,
    settings: CkaSettings,
    tried: Sequence[Estimator],
) -> MemtoolError:
    """The error that says what the checkpoint that takes most takes at least, by itself, with the
    estimator that takes less of those `tried`."""
    by_estimator = {one: replace(settings, estimator=one) for one in Estimator}
    each = {}
    for one in tried:
        size = settings.batch_size
        size = size if one is Estimator.minibatch else min(size, MINIMUM)
        batches = _batches(by_estimator[one], n, size)
        each[one] = _least(comparisons, references, batches, by_estimator[one])
    estimator, most = min(each.items(), key=lambda item: item[1].total)
    fitting = [
        one
        for one in (Estimator.minibatch, Estimator.exact)
        if one not in tried and n >= minimum(one)
        if _cheapest(comparisons, references, n, by_estimator[one])
    ]
    other = f", or --estimator {fitting[0]}" if fitting else ""
    return MemtoolError(
        f"--memory: {estimator} CKA of these layers takes {told_size(most.total)} or "
        f"more, of which a forward pass takes {told_size(most.passes)} and the weights of the "
        f"networks {told_size(most.weights)}; allow for that, or choose fewer layers, smaller "
        f"batches or images{other}"
    )


def _least(
    comparisons: Sequence[Comparison], references: int, batches: Batches, settings: CkaSettings
) -> Memory:
    """What the checkpoint that takes most takes by itself, with these batches: in blocks of one,
    each in one forward pass or in the smallest ones."""
    batch, groups = largest(batches), divided(comparisons, references)
    each = [
        [_memory(settings, group, batches, batch, portion) for group in groups]
        for portion in (1, batch)
    ]
    return min((max(some, key=TOTAL) for some in each), key=TOTAL)


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


def divided(comparisons: Sequence[Comparison], size: int) -> list[list[Comparison]]:
    """The comparisons in lists of so many."""
    return [list(comparisons[i : i + size]) for i in range(0, len(comparisons), size)]


def largest(batches: Batches) -> int:
    """How many examples the largest batch has."""
    return max(stop - start for start, stop in batches)


def _batchings(settings: CkaSettings, n: int, networks: Sequence[Selection]) -> Iterator[Batches]:
    """The batches that there may be, the largest first. Their size is part of `minibatch`; for the
    others, their forward passes take at most half of the memory where that is possible, and what
    else they take may ask for smaller ones."""
    size = settings.batch_size
    if settings.estimator is Estimator.minibatch:
        yield _batches(settings, n, size)
        return
    size = min([size, *(_portion(network, settings.memory // 2) for network in networks)])
    smaller = (2**power for power in range(size.bit_length(), -1, -1))
    for one in [size, *(power for power in smaller if MINIMUM <= power < size)]:
        yield _batches(settings, n, one)


def _batches(settings: CkaSettings, n: int, size: int) -> Batches:
    """Batches of at most so many examples. Where they are no part of the estimator, they make equal
    groups to leave out."""
    if settings.estimator is Estimator.minibatch:
        return even_batches(n, size)
    return even_batches(n, min(size, -(-n // GROUPS)), multiple=GROUPS)


def _portion(network: Selection, memory: int) -> int:
    """How many examples a forward pass within `memory` bytes may have, one at least."""
    return network.footprint.batch_within(max(memory, network.footprint.of(1)))


def _takes_one_pass(comparisons: Sequence[Comparison], n: int, settings: CkaSettings) -> bool:
    """Whether `exact` fits into memory with one pass of each network."""
    exact = replace(settings, estimator=Estimator.exact)
    batches = next(_batchings(exact, n, networks_of(comparisons)))
    needed = _memory(exact, comparisons, batches, n, largest(batches)).total
    return needed <= settings.memory


def _by_the_cheaper(comparison: Comparison, n: int, pairs: Pairs) -> Comparison:
    """The comparison with those pairs in feature space that cost less there: each pair by itself
    or, where each layer is compared with each, all or none, since the Gram matrix of a layer serves
    all pairs that it is in."""
    widths, others = comparison.selection.widths, comparison.reference.widths
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
    settings: CkaSettings,
    batches: Batches,
    comparisons: Sequence[Comparison],
    group_size: int,
    processes: int,
) -> Plan | None:
    """The plan for groups of that many comparisons with the fewest blocks that fit into memory;
    None if nothing does."""
    groups, memory = divided(comparisons, group_size), settings.memory

    def plan_with(count: int) -> Plan:
        blocks = _blocks(count, len(batches))
        plan = Plan(settings, batches, blocks, groups, largest(batches))
        needed = _needed(plan)
        if needed.total > memory:
            least = _needed(replace(plan, portion=1))
            room = memory - least.total + least.passes
            portion = min(_portion(network, room) for network in networks_of(comparisons))
            plan = replace(plan, portion=portion)
            needed = _needed(plan)
        return replace(plan, memory=needed)

    counts = _block_counts(settings.estimator, len(batches), comparisons, processes)
    # The more blocks there are, the less each of them takes.
    fewest = bisect_left(counts, True, key=lambda count: plan_with(count).memory.total <= memory)
    return _merged(plan_with(counts[fewest])) if fewest < len(counts) else None


def _merged(plan: Plan) -> Plan:
    """The plan with as many batches in a forward pass as fit, up to the batch size that was asked
    for: few examples make small batches, for the standard error, whose passes cost more than the
    work in them."""
    most = min(plan.settings.batch_size // plan.batch_size, len(plan.batches))
    for count in range(most, 1, -1):
        merged = replace(plan, portion=min(count * plan.batch_size, plan.n))
        needed = _needed(merged)
        if needed.total <= plan.settings.memory:
            return replace(merged, memory=needed)
    return plan


def _needed(plan: Plan) -> Memory:
    """What the group of checkpoints takes that takes most."""
    how = plan.batches, plan.capacity, plan.portion
    each = (_memory(plan.settings, group, *how) for group in plan.groups)
    return max(each, key=TOTAL)


def _block_counts(
    estimator: Estimator, batches: int, comparisons: Sequence[Comparison], processes: int
) -> Sequence[int]:
    """Into how many blocks the batches may be divided."""
    has_tiles = any(one.pairs(Route.gram) for one in comparisons)
    if estimator is Estimator.minibatch or not has_tiles:
        return [0]
    step = 2 * processes if processes > 1 else 1  # two for each process: an early, a late one
    return range(min(step, batches), batches + 1, step)


def _blocks(count: int, batches: int) -> list[range]:
    return [range(batches * i // count, batches * (i + 1) // count) for i in range(count)]


def _memory(
    settings: CkaSettings,
    comparisons: Sequence[Comparison],
    batches: Batches,
    capacity: int,
    portion: int,
) -> Memory:
    """What is taken at most, if blocks have `capacity` examples, and a network is given `portion`
    examples at a time: fewer than a batch, one, or several of them."""
    batch, n = largest(batches), batches[-1][1]
    networks = networks_of(comparisons)
    tiled, featured = (_widths(comparisons, route) for route in Route)
    references = {one.reference for one in comparisons}
    of_others = (len(tiled[one]) for one in networks if one not in references)
    at_once = sum(len(tiled[one]) for one in references) + max(of_others, default=0)
    widths = [network.widths.values() for network in networks]
    # All of a pass or a batch, and once more one layer, whose parts are put together.
    kept = max(sum(own) + max(own) for own in widths) if portion != batch else 0
    merged = -(-portion // batch)
    always = Memory(
        weights=sum(network.weights for network in networks),
        passes=max(network.footprint.of(portion) for network in networks),
        kept=4 * max(batch, portion) * kept,
        grams=4 * at_once * batch**2,
        wide_grams=8 * at_once * batch**2,
        centered=4 * batch * sum(map(max, widths)),
    )
    if settings.estimator is Estimator.minibatch:
        if settings.kernel is Kernel.rbf:
            return always
        # A chunk, and as much again while it is looked at.
        chunks = (min(2 * CHUNK, max(own)) for own in widths)
        return replace(always, centered=4 * batch * sum(chunks))
    return replace(
        always,
        features=4 * (capacity * _total(tiled) + n * _total(featured)),
        row_sums=8 * n * (GROUPS + 1) * sum(map(len, [*tiled.values(), *featured.values()])),
        grams=4 * at_once * capacity * batch * merged,
    )


def _widths(comparisons: Sequence[Comparison], route: Route) -> dict[Selection, list[int]]:
    """The widths of the tensors of each network that are computed this way."""
    return {
        network: [network.widths[name] for name in names]
        for network, names in tensors_of(comparisons, route).items()
    }


def _total(widths: Mapping[Selection, Sequence[int]]) -> int:
    return sum(map(sum, widths.values()))
