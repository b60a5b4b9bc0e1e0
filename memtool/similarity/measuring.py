"""The pass over the images: networks run, recorders record, sums add up. Read `measure` first."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from memtool.checkpoints import Network
from memtool.data import HostImages
from memtool.device import Processes, precision
from memtool.layers import Misplaced, evenly_spaced, misplaced, observed
from memtool.models import foreign_code
from memtool.progress import Advance, Progress
from memtool.similarity.feature_space import FeatureRecorder
from memtool.similarity.hsic import wide
from memtool.similarity.minibatch import MinibatchRecorder
from memtool.similarity.pairs import Comparison, Selection, TensorPair, networks_of, tensors_of
from memtool.similarity.planning import Plan
from memtool.similarity.rbf import median_distance, sample
from memtool.similarity.recorder import Batch, PairSums, Recorder, Visit, add_up, features
from memtool.similarity.settings import Estimator, Kernel, Route
from memtool.similarity.tiles import TileRecorder


@dataclass
class Outcome:
    """What a pass finds of one network, by the names of its tensors."""

    selection: Selection
    unaligned: set[Hashable] = field(default_factory=set)
    mixed: set[str] = field(default_factory=set)  # what depends on the other images of a batch
    constant: set[Hashable] = field(default_factory=set)
    coincident: set[Hashable] = field(default_factory=set)  # with a median distance of 0

    @property
    def explained(self) -> set[Hashable]:
        """The tensors with which it is known why there is no CKA."""
        return self.unaligned | self.constant | self.coincident


class Value(NamedTuple):
    """CKA, its standard error, and what CKA is in expectation when the examples of one layer are
    permuted; each is None where it is not a number."""

    cka: float | None
    error: float | None
    null: float | None


Values = dict[TensorPair, Value]


@dataclass(frozen=True)
class Measured:
    """What a pass finds of all its networks, and the values of each comparison, in their order."""

    networks: dict[Selection, Outcome]
    values: list[Values]


TRIED = 64  # images, to find whether the rows of activations are theirs

Seen = dict[Route, Batch]  # of one network


def measure(group: Sequence[Comparison], setting: "Setting", progress: Progress) -> Measured:
    """Run the networks of a group over the images, each once however many comparisons it takes part
    in.

    Of Gram matrices, only those of the batches in the present forward pass are there: of the
    references, and of one checkpoint at a time.
    """
    plan, images, processes = setting.plan, setting.images, setting.processes
    device, stretches = images.device, plan.stretches(processes)
    order = image_order(len(images), plan.settings.seed).to(device)
    with torch.no_grad(), precision(plan.settings.precision, device):
        networks = participants(group, setting)
        comparing = [Comparing.of(one, networks) for one in group]
        with progress("comparing", len(stretches) * len(networks)) as advance:

            def run(stretch: Sequence[Visit], some: Tensor, network: Selection) -> list[Seen]:
                advance()
                return networks[network].run(stretch, some, plan.portion)

            for stretch in stretches:
                some = images[order[stretch[0].start : stretch[-1].stop]]
                _add_stretch(comparing, partial(run, stretch, some))
        for network in networks.values():
            network.add_up(processes)
        for one in comparing:
            one.add_up(processes)
        with progress("CKA", sum(len(one.tensors) for one in group)) as advance:
            outcomes = {network: part.outcome() for network, part in networks.items()}
            return Measured(outcomes, [one.values(advance) for one in comparing])


def _add_stretch(
    comparing: Sequence["Comparing"], run: Callable[[Selection], Sequence[Seen]]
) -> None:
    """Run all networks on some batches, and add to the sums of their comparisons."""
    references = dict.fromkeys(one.comparison.reference for one in comparing)
    seen = {reference: run(reference) for reference in references}
    for checkpoint, its_own in groupby(comparing, lambda one: one.comparison.selection):
        # In a call of its own: what is seen of one checkpoint is gone before the next one runs.
        _add(its_own, seen.get(checkpoint) or run(checkpoint), seen)


def _add(
    comparing: Iterable["Comparing"],
    mine: Sequence[Seen],
    theirs: Mapping[Selection, Sequence[Seen]],
) -> None:
    for one in comparing:
        for seen in zip(mine, theirs[one.comparison.reference], strict=True):
            one.add(*seen)


def image_order(n: int, seed: int) -> Tensor:
    """The order in which n images come in batches."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Setting:
    """What the recorders of all networks have in common: the images, uint8 (n, c, h, w), and how
    they are run; and what was found of networks that take part in several groups."""

    plan: Plan
    images: Tensor | HostImages
    processes: Processes
    formats: dict[str, torch.memory_format | None] = field(default_factory=dict)
    tried: dict[Selection, Misplaced] = field(default_factory=dict)

    def prepared(self, selection: Selection) -> tuple[Network, Misplaced]:
        """The network with its weights, in the memory format that suits it, which is tried with one
        of the networks that are equal but for these; and the tensors whose rows are not those of
        the images. For those each network is tried: by its weights one may sort images that another
        one leaves as they come. Warns, once, if results depend on chance."""
        checkpoint, few = selection.checkpoint, self.images[:3]
        network, model = checkpoint.network(self.images.device), str(checkpoint.spec)
        if selection not in self.tried:
            checkpoint.warn_of_other_influences(network, few)
        if model not in self.formats:
            self.formats[model] = network.fastest(few).memory_format
        network = network.laid_out(self.formats[model])
        if selection not in self.tried:
            places = evenly_spaced(len(self.images), min(TRIED, self.plan.portion) + 1)
            images, axes = self.images[places], selection.batch_axes
            self.tried[selection] = misplaced(network.model, network.run, axes, images)
        return network, self.tried[selection]

    def gram_recorder(self, names: list[str], sigmas: Mapping[str, Tensor] | None) -> Recorder:
        """With the rbf kernel, tensors that have no sigma are unaligned."""
        plan, device = self.plan, self.images.device
        sigma, without = None, set[str]()
        if sigmas is not None:
            one, without = wide(torch.ones((), device=device)), set(names) - sigmas.keys()
            sigma = torch.stack([sigmas.get(name, one) for name in names])
        recorder: Recorder
        if plan.estimator is Estimator.minibatch:
            recorder = MinibatchRecorder(names, device, sigma)
        else:
            tiles = plan.batches, plan.estimator, plan.capacity
            recorder = TileRecorder(names, device, *tiles, sigma)
        recorder.mark_unaligned(without)
        return recorder

    def feature_recorder(self, names: list[str]) -> Recorder:
        plan, mine = self.plan, self.plan.kept_in_feature_space(self.processes)
        return FeatureRecorder(names, self.images.device, plan.batches, plan.estimator, mine)

    def sigmas(
        self, network: Network, selection: Selection, names: list[str]
    ) -> dict[str, Tensor] | None:
        """Sigma of the rbf kernel for each tensor that gives one row for each image of the sample,
        which runs as the batches do, several or one at a time; None if the kernel is linear."""
        plan, settings = self.plan, self.plan.settings
        if settings.kernel is Kernel.linear:
            return None
        images = self.images[sample(len(self.images))]
        most = settings.memory // (4 * len(images))
        found: dict[str, Tensor] = {}
        for size in sorted({plan.portion, min(plan.portion, plan.batch_size)}, reverse=True):
            missing = [name for name in names if name not in found]
            for some in _portions(missing, selection.widths, most):
                found |= _median_distances(network, some, selection, images.split(size))
        return {name: settings.bandwidth * distance for name, distance in found.items()}


def _portions(names: Sequence[str], widths: dict[str, int], most: int) -> Iterator[list[str]]:
    """The names, in lists of those that have at most so many features together, or of one."""
    portion: list[str] = []
    for name in names:
        if portion and sum(widths[one] for one in [*portion, name]) > most:
            yield portion
            portion = []
        portion.append(name)
    if portion:
        yield portion


def _median_distances(
    network: Network, names: list[str], selection: Selection, batches: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The median distance between the images at each layer that gives one row for each."""
    kept: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str, activation: Tensor) -> None:
        if (rows := selection.rows(name, activation, len(batch))) is not None:
            kept[name].append(features(rows).clone())

    with observed(network.model, names, keep):
        for batch in batches:
            network.run(batch)
    return {
        name: median_distance(torch.cat(parts))
        for name, parts in kept.items()
        if len(parts) == len(batches)
    }


@dataclass
class Participant:
    """A network, and what is recorded of its tensors, by the routes of the pairs that they are in.
    A tensor may be in pairs of both. If it `merges`, several batches share a forward pass; of the
    `absent` layers that is known to give no rows, and that each batch by itself gives none."""

    selection: Selection
    network: Network
    recorders: dict[Route, Recorder]
    mixed: set[str]
    merges: bool = True
    absent: set[str] = field(default_factory=set)

    @staticmethod
    def of(
        selection: Selection, tensors: Mapping[Route, list[str]], setting: Setting
    ) -> "Participant":
        """The network with its weights, ready to record these tensors."""
        recorders: dict[Route, Recorder] = {}
        with foreign_code(selection.checkpoint.told):
            network, (another_order, mixed, _) = setting.prepared(selection)
            if names := tensors[Route.gram]:
                sigmas = setting.sigmas(network, selection, names)
                recorders[Route.gram] = setting.gram_recorder(names, sigmas)
        if names := tensors[Route.covariance]:
            recorders[Route.covariance] = setting.feature_recorder(names)
        for recorder in recorders.values():
            recorder.mark_unaligned(another_order)
        return Participant(selection, network, recorders, mixed)

    def run(self, stretch: Sequence[Visit], images: Tensor, portion: int) -> list[Seen]:
        """Run the network on the images of some batches, so many images at a time; what is recorded
        of each batch. That of one batch, in one pass, is recorded as it appears."""
        if len(stretch) == 1 and len(images) <= portion:
            with self._recording(stretch[0]) as seen:
                left = self._names

                def record(name: str, rows: Tensor) -> None:
                    left.remove(name)
                    self._record(seen, name, rows)

                self._observe(images, record)
                for name in left:
                    self._record(seen, name, self._nothing(name, images.device))
            return [seen]
        activations = self._together(stretch, images, portion)
        if activations is None:
            parts = images.split([visit.size for visit in stretch])
            each = zip(stretch, parts, strict=True)
            return [seen for visit, some in each for seen in self.run([visit], some, portion)]
        recorded, start = [], stretch[0].start
        for visit in stretch:
            with self._recording(visit) as seen:
                for name, rows in activations.items():
                    self._record(seen, name, rows[visit.start - start : visit.stop - start])
            recorded.append(seen)
        return recorded

    def _together(
        self, stretch: Sequence[Visit], images: Tensor, portion: int
    ) -> dict[str, Tensor] | None:
        """The activations of all layers for the images of some batches; None if these have to run
        one by one, as a layer sees no more than so many images at a time."""
        if len(stretch) > 1 and not self.merges:
            return None
        activations = self._activations(images, portion)
        if len(stretch) > 1 and (missing := self._missing(activations)):
            alone = self._activations(images[: stretch[0].size], portion)
            self.absent |= missing & self._missing(alone)
            self.merges = missing <= self.absent
        return activations if self.merges or len(stretch) == 1 else None

    def _missing(self, activations: Mapping[str, Tensor]) -> set[str]:
        """The layers without activations, but for those that have none of any batch."""
        return {name for name, rows in activations.items() if not len(rows)} - self.absent

    @contextmanager
    def _recording(self, visit: Visit) -> Iterator[Seen]:
        with ExitStack() as stack:
            yield {
                route: stack.enter_context(recorder.batch(visit))
                for route, recorder in self.recorders.items()
            }

    def _record(self, seen: Seen, name: str, rows: Tensor) -> None:
        for route, batch in seen.items():
            if name in self.recorders[route].index:
                batch.record(name, rows)

    @property
    def _names(self) -> list[str]:
        """What is recorded, in the same order in all processes."""
        every = (str(name) for recorder in self.recorders.values() for name in recorder.index)
        return list(dict.fromkeys(every))

    def _activations(self, images: Tensor, portion: int) -> dict[str, Tensor]:
        """The activations of all layers, (n, ...), of n images, put together of passes; without a
        row where they do not have the shape of their images' activations."""
        parts: dict[str, list[Tensor]] = {name: [] for name in self._names}
        for some in images.split(portion):
            self._observe(some, lambda name, rows: parts[name].append(rows.clone()))
        found = {}
        for name in list(parts):
            rows = parts.pop(name) or [self._nothing(name, images.device)]
            whole = rows[0] if len(rows) == 1 else torch.cat(rows)
            found[name] = whole if len(whole) == len(images) else whole[:0]
        return found

    def _nothing(self, name: str, device: torch.device) -> Tensor:
        """The activation of a layer for no images."""
        return torch.zeros(0, self.selection.widths[name], device=device)

    def _observe(self, images: Tensor, record: Callable[[str, Tensor], None]) -> None:
        """Run the network and call `record` with each layer and its activation, (n, ...) of n
        images, as soon as it appears."""

        def see(name: str, activation: Tensor) -> None:
            if (rows := self.selection.rows(name, activation, len(images))) is not None:
                record(name, rows)

        with foreign_code(self.selection.checkpoint.told):
            with observed(self.network.model, self._names, see):
                self.network.run(images)

    def add_up(self, processes: Processes) -> None:
        for recorder in self.recorders.values():
            add_up(recorder.state, processes.sum)

    def outcome(self) -> Outcome:
        outcome = Outcome(self.selection, mixed=self.mixed)
        for recorder in self.recorders.values():
            outcome.unaligned |= _where(recorder, recorder.unaligned())
            outcome.constant |= _where(recorder, recorder.constant())
            outcome.coincident |= _where(recorder, recorder.coincident())
        return outcome


def participants(group: Sequence[Comparison], setting: Setting) -> dict[Selection, Participant]:
    """Each network of a group, with recorders for all that its comparisons take from it."""
    tensors = {route: tensors_of(group, route) for route in Route}
    return {
        network: Participant.of(
            network, {route: tensors[route][network] for route in tensors}, setting
        )
        for network in networks_of(group)
    }


@dataclass(frozen=True)
class Comparing:
    """A comparison under way: the sums of its pairs of tensors, by their routes."""

    comparison: Comparison
    sums: dict[Route, PairSums]

    @staticmethod
    def of(comparison: Comparison, networks: Mapping[Selection, Participant]) -> "Comparing":
        mine = networks[comparison.selection].recorders
        theirs = networks[comparison.reference].recorders
        sums = {}
        for route in Route:
            if pairs := comparison.pairs(route):
                x, y = mine[route], theirs[route]
                sums[route] = x.sums_with(y, [(x.index[a], y.index[b]) for a, b in pairs])
        return Comparing(comparison, sums)

    def add(self, batches: Seen, reference: Seen) -> None:
        for route, sums in self.sums.items():
            sums.add(batches[route], reference[route])

    def add_up(self, processes: Processes) -> None:
        for sums in self.sums.values():
            add_up(sums.state, processes.sum)

    def values(self, advance: Advance) -> Values:
        values: Values = {}
        for route, sums in self.sums.items():
            hsic, pairs = sums.hsic(advance), self.comparison.pairs(route)
            numbers = (map(_finite, each.tolist()) for each in (*hsic.cka(), hsic.null()))
            values |= zip(pairs, map(Value._make, zip(*numbers, strict=True)), strict=True)
        return values


def _where(recorder: Recorder, condition: Tensor) -> set[Hashable]:
    """The layers for which a condition (layers,) holds."""
    return {layer for layer, i in recorder.index.items() if condition[i]}


def _finite(number: float) -> float | None:
    return number if isfinite(number) else None
