"""The pass over the images: networks run, recorders record, sums add up. Read `measure` first."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from memtool.checkpoints import Network
from memtool.data import HostImages
from memtool.device import Processes, precision
from memtool.layers import observed
from memtool.models import warn_if_random
from memtool.progress import Advance, Progress
from memtool.similarity.feature_space import FeatureRecorder
from memtool.similarity.hsic import wide
from memtool.similarity.minibatch import MinibatchRecorder
from memtool.similarity.pairs import Comparison, Selection, TensorPair
from memtool.similarity.planning import Plan
from memtool.similarity.rbf import median_distance, sample
from memtool.similarity.recorder import Batch, PairSums, Recorder, Visit, add_up, features
from memtool.similarity.settings import CkaSettings, Estimator, Kernel
from memtool.similarity.tiles import TileRecorder


@dataclass
class Outcome:
    """What a pass finds of one network, by the names of its tensors.

    `values` are CKA of each pair with the reference, its standard error, and what CKA is in
    expectation when the examples of one are permuted; each is None where it is not a number. Those
    of the reference itself are empty.
    """

    selection: Selection
    uncalled: list[str]
    constant: set[Hashable] = field(default_factory=set)
    coincident: set[Hashable] = field(default_factory=set)  # with a median distance of 0
    values: dict[TensorPair, tuple[float | None, ...]] = field(default_factory=dict)


def measure(
    group: Sequence[Comparison],
    plan: Plan,
    reference: Selection,
    images: Tensor | HostImages,
    settings: CkaSettings,
    processes: Processes,
    progress: Progress,
) -> list[Outcome]:
    """Run the reference and the checkpoints of a group over the images, uint8 (n, c, h, w); what is
    found of the reference, then of each checkpoint.

    Of Gram matrices, only those of two networks are there at a time: the reference's of the present
    batch, and those of one checkpoint.
    """
    device, visits = images.device, plan.visits(processes)
    order = image_order(len(images), settings.seed).to(device)
    with torch.inference_mode(), precision(settings.precision, device):
        setting = _Setting(plan, settings, images, processes)
        ours = Participant.of_reference(reference, group, setting)
        others = [Participant.of_checkpoint(one, ours, setting) for one in group]
        with progress("comparing", len(visits) * (1 + len(others))) as advance:
            for visit in visits:
                batch = images[order[visit.start : visit.stop]]
                seen = ours.run(visit, batch, plan.portion)
                advance()
                for other in others:
                    other.add(other.run(visit, batch, plan.portion), seen)
                    advance()
        for network in (ours, *others):
            network.add_up(processes)
        with progress("CKA", sum(len(one.tensors) for one in group)) as advance:
            return [network.outcome(advance) for network in (ours, *others)]


def image_order(n: int, seed: int) -> Tensor:
    """The order in which n images come in batches."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class _Setting:
    """What the recorders of all networks have in common."""

    plan: Plan
    settings: CkaSettings
    images: Tensor | HostImages
    processes: Processes

    def gram_recorder(self, names: list[str], sigma: Tensor | None) -> Recorder:
        plan, device = self.plan, self.images.device
        if plan.estimator is Estimator.minibatch:
            return MinibatchRecorder(names, device, sigma)
        return TileRecorder(names, device, plan.batches, plan.estimator, plan.capacity, sigma)

    def feature_recorder(self, names: list[str]) -> Recorder:
        plan, mine = self.plan, self.plan.kept_in_feature_space(self.processes)
        return FeatureRecorder(names, self.images.device, plan.batches, plan.estimator, mine)

    def sigma(self, network: Network, selection: Selection, names: list[str]) -> Tensor | None:
        """Sigma of the rbf kernel for each tensor; None if the kernel is linear."""
        if self.settings.kernel is Kernel.linear:
            return None
        images = self.images[sample(len(self.images))]
        most = self.settings.memory // (4 * len(images))
        found: dict[str, Tensor] = {}
        for some in _portions(names, selection.widths, most):
            batches = images.split(self.plan.portion)
            found |= _median_distances(network, some, selection.batch_axes, batches)
        return self.settings.bandwidth * torch.stack([found[name] for name in names])


def _portions(names: Sequence[str], widths: dict[str, int], most: int) -> Iterator[list[str]]:
    """The names, in lists of those that have at most so many features together, or of one."""
    portion: list[str] = []
    for name in names:
        if portion and sum(widths[one] for one in [*portion, name]) > most:
            yield portion
            portion = []
        portion.append(name)
    yield portion


def _median_distances(
    network: Network, names: list[str], axes: dict[str, int], batches: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The median distance between the images at each layer."""
    kept: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str, activation: Tensor) -> None:
        kept[name].append(features(activation.movedim(axes[name], 0)).clone())

    with observed(network.model, names, keep):
        for batch in batches:
            network.run(batch)
    return {name: wide(median_distance(torch.cat(parts))) for name, parts in kept.items()}


@dataclass(frozen=True)
class Participant:
    """A network, what is recorded of it and, unless it is the reference, its sums with that.

    Both by how pairs of tensors are computed: False by Gram matrices, True in feature space.
    """

    selection: Selection
    network: Network
    recorders: dict[bool, Recorder]
    pairs: dict[bool, list[TensorPair]] = field(default_factory=dict)
    sums: dict[bool, PairSums] = field(default_factory=dict)

    @staticmethod
    def of_reference(
        selection: Selection, group: Sequence[Comparison], setting: _Setting
    ) -> "Participant":
        tensors = {
            way: list(dict.fromkeys(other for one in group for _, other in one.computed(way)))
            for way in (False, True)
        }
        return Participant._recorded(selection, tensors, setting)

    @staticmethod
    def of_checkpoint(
        comparison: Comparison, reference: "Participant", setting: _Setting
    ) -> "Participant":
        pairs = {way: comparison.computed(way) for way in (False, True)}
        tensors = {way: list(dict.fromkeys(ours for ours, _ in pairs[way])) for way in pairs}
        found = Participant._recorded(comparison.selection, tensors, setting)
        for way, recorder in found.recorders.items():
            other = reference.recorders[way]
            numbers = [(recorder.index[a], other.index[b]) for a, b in pairs[way]]
            found.sums[way] = recorder.sums_with(other, numbers)
        found.pairs.update(pairs)
        return found

    @staticmethod
    def _recorded(
        selection: Selection, tensors: dict[bool, list[str]], setting: _Setting
    ) -> "Participant":
        network = selection.checkpoint.network(setting.images.device)
        warn_if_random(lambda: network.run(setting.images[:2]), str(selection.checkpoint.path))
        network = network.fastest(setting.images[:2])
        recorders: dict[bool, Recorder] = {}
        if names := tensors[False]:
            sigma = setting.sigma(network, selection, names)
            recorders[False] = setting.gram_recorder(names, sigma)
        if names := tensors[True]:
            recorders[True] = setting.feature_recorder(names)
        return Participant(selection, network, recorders)

    def run(self, visit: Visit, images: Tensor, portion: int) -> dict[bool, Batch]:
        """Run the network on a batch, so many images at a time; what is recorded of it."""
        with ExitStack() as stack:
            batches = {
                way: stack.enter_context(recorder.batch(visit))
                for way, recorder in self.recorders.items()
            }

            def record(name: str, activation: Tensor) -> None:
                for way, batch in batches.items():
                    if name in self.recorders[way].index:
                        batch.record(name, activation)

            self._observe(images, portion, record)
        return batches

    def _observe(self, images: Tensor, portion: int, record: Callable[[str, Tensor], None]) -> None:
        """Call `record` with each layer and its activation, (n, ...), of n images: as soon as it
        appears, if that takes one pass, else with the parts of all passes put together."""
        names = {str(name) for recorder in self.recorders.values() for name in recorder.index}
        axes, is_whole = self.selection.batch_axes, len(images) <= portion
        parts: dict[str, list[Tensor]] = {}

        def see(name: str, activation: Tensor) -> None:
            activation = activation.movedim(axes[name], 0)
            if is_whole:
                record(name, activation)
            else:
                parts.setdefault(name, []).append(activation.clone())

        with observed(self.network.model, names, see):
            for some in images.split(portion):
                self.network.run(some)
        for name in list(parts):
            record(name, torch.cat(parts.pop(name)))

    def add(self, batches: dict[bool, Batch], reference: dict[bool, Batch]) -> None:
        for way, sums in self.sums.items():
            sums.add(batches[way], reference[way])

    def add_up(self, processes: Processes) -> None:
        states = [part.state for part in self.recorders.values()]
        for state in [*states, *(part.state for part in self.sums.values())]:
            add_up(state, processes.sum)

    def outcome(self, advance: Advance) -> Outcome:
        outcome = Outcome(self.selection, self.selection.uncalled(self.network.model))
        for recorder in self.recorders.values():
            outcome.constant |= _where(recorder, recorder.constant())
            if (sigma := getattr(recorder, "sigma", None)) is not None:
                outcome.coincident |= _where(recorder, sigma == 0)
        for way, sums in self.sums.items():
            hsic = sums.hsic(advance)
            numbers = (map(_finite, each.tolist()) for each in (*hsic.cka(), hsic.null()))
            outcome.values |= zip(self.pairs[way], zip(*numbers, strict=True), strict=True)
        return outcome


def _where(recorder: Recorder, condition: Tensor) -> set[Hashable]:
    """The layers for which a condition (layers,) holds."""
    return {layer for layer, i in recorder.index.items() if condition[i]}


def _finite(number: float) -> float | None:
    return number if isfinite(number) else None
