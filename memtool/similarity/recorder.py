"""What CKA takes from the networks: the classes that every producer of HSIC builds on.

A `Recorder` belongs to one network and lasts for the run. For each visit to a batch of images it
opens a `Batch`, which takes in the activations of all layers while the network runs:

    with recorder.batch(visit) as batch:
        with observed(model, layers, batch.record):
            model(images[visit.start : visit.stop])

When the block ends, the recorder has added to its state what concerns this network alone. What
concerns a network and the reference is added up by `PairSums`, from the batches of both:

    sums = recorder.sums_with(reference_recorder, pairs)
    sums.add(batch, reference_batch)

Where several processes share the visits, `add_up` then sums the states over the processes. At last
`sums.hsic()` gives the table.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from memtool import MemtoolError
from memtool.progress import Advance, unseen
from memtool.similarity.hsic import GROUPS, Hsic, PairProducts, permuted_hsic, wide
from memtool.similarity.settings import Estimator

# How far from its mean, in units of its precision, rounding may leave a feature that is constant.
ROUNDING = 32
FEW = 64  # features that are looked at before all others


@dataclass(frozen=True)
class Visit:
    """A batch, images `start` to `stop`, that all networks see in one pass over the images.

    A pass is made for a block of batches: their features are kept until it ends, so that those of
    each later batch can be multiplied with them.
    """

    batch: int
    start: int
    stop: int
    block: range

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def group(self) -> int:
        """The group of batches that the standard error leaves out together."""
        return self.batch % GROUPS

    @property
    def in_block(self) -> bool:
        return self.batch in self.block

    def follows(self, other: "Visit") -> bool:
        """Whether this is the next one, in the same pass."""
        return self.start == other.stop and self.block == other.block


class Recorder(ABC):
    """What is taken from the layers of one network over a run.

    `state` is what processes add up. Its entry `varying` is 0 for a layer none of whose features
    varies, and more for any other layer; `unaligned` is 0 for a layer whose rows are those of the
    images, and more for any other. `scales`, by layer, are what its features are multiplied
    by, as the first batch asks in which they differ from their mean: no CKA depends on that, but
    squares might overflow or vanish. Those of far larger features in a later batch still overflow,
    as looking at each batch would wait for the device. Each process has its own; `state` is in the
    `unit` of a scale, which is 1 unless features are float64 beyond all float32.
    `sigma`, (layers,), is that of the rbf kernel, None if the kernel is linear.
    """

    sigma: Tensor | None = None

    def __init__(self, layers: Sequence[Hashable], device: torch.device) -> None:
        self.index = {layer: i for i, layer in enumerate(layers)}
        self.device = device
        self.state = {name: self.zeros(len(layers)) for name in ("varying", "unaligned")}
        self.scales: dict[int, float] = {}
        self._factors: Tensor | None = None  # of `in_units`, as long as no other scale is set
        self._channels_last: dict[int, bool] = {}
        self._scratch: dict[torch.dtype, Tensor] = {}

    def zeros(self, *shape: int) -> Tensor:
        """Zeros of the type that sums are in."""
        return wide(torch.zeros(shape, device=self.device))

    @contextmanager
    def batch(self, visit: Visit) -> Iterator["Batch"]:
        """Within the block, the network is to run on a batch and its activations to be recorded.

        Raises MemtoolError if the network calls one of the layers for some batches only.
        """
        batch = self._opened(visit)
        yield batch
        for layer, i in self.index.items():
            if i not in batch.seen:
                raise MemtoolError(f"layer {layer!r} is not called for every batch of images")
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            batch.finish()

    @abstractmethod
    def _opened(self, visit: Visit) -> "Batch": ...

    @abstractmethod
    def sums_with(self, other: "Recorder", pairs: Sequence[tuple[int, int]]) -> "PairSums":
        """The sums for pairs of layers, given by number, of this network and of another one; the
        other recorder is of the same class."""

    def constant(self) -> Tensor:
        """Which layers give all examples the same features, (layers,) bool."""
        return self.state["varying"] == 0

    def unaligned(self) -> Tensor:
        """Which layers do not give one row for each image, in the order of the images, (layers,)
        bool."""
        return self.state["unaligned"] > 0

    def coincident(self) -> Tensor:
        """Which layers give half of the pairs of examples the same features, so that there is no
        rbf kernel, (layers,) bool."""
        return torch.zeros_like(self.constant()) if self.sigma is None else self.sigma == 0

    def mark_unaligned(self, layers: Set[Hashable]) -> None:
        """Those of the layers that it records are `unaligned`, as was found otherwise."""
        for layer in layers & self.index.keys():
            self.state["unaligned"][self.index[layer]] += 1

    @property
    def most(self) -> float:
        """What CKA can be at most: anything for estimators without bias."""
        return math.inf

    def features(self, i: int, activation: Tensor) -> Tensor:
        """The activation of layer i as `features`, their order being the same in all batches."""
        last = self._channels_last.setdefault(i, has_channels_last(activation))
        return features(activation, last)

    def judge(self, i: int, centered: Tensor, mean: Tensor) -> None:
        """Add to `varying` if one of the features of layer i varies: (n, p), relative to their mean
        (p,)."""
        varying = self.state["varying"][i]
        # Once is enough where a look at a value does not wait for the device.
        if self.device.type != "cpu" or not varying:
            varying += varies(centered, mean)

    def set_scale(self, i: int, centered: Iterable[Tensor]) -> None:
        """Set the scale of layer i, unless it is set, by the features of a batch relative to their
        mean, in parts. Zeros tell nothing."""
        if i not in self.scales and (largest := magnitude(centered)):
            self.scales[i], self._factors = scale_of(largest), None

    def to_scale(self, i: int, centered: Tensor) -> Tensor:
        """The features of layer i relative to their mean, multiplied in place by its scale. Those
        of a batch that differ by no more than rounding count as well: whether the layer is constant
        is known after all batches."""
        return scaled(centered, self.scale(i))

    def scale(self, i: int) -> float:
        return self.scales.get(i, 1.0)

    def in_units(self, entries: Tensor) -> Tensor:
        """Entries (layers, ...) of linear Gram matrices to scale, float64, changed in place so that
        they are in the units of the scales."""
        if set(self.scales.values()) <= {1}:
            return entries
        if self._factors is None:  # made once, as the device is waited for
            scales = [self.scale(i) for i in range(len(entries))]
            self._factors = entries.new_tensor([unit(scale) / scale for scale in scales]).square_()
        entries *= self._factors.view(-1, *[1] * (entries.ndim - 1))
        return entries

    def centered(self, x: Tensor, mean: Tensor) -> Tensor:
        """x - mean, (n, p), in memory that the next call uses again: fresh pages cost as much as
        the subtraction does."""
        scratch = self._scratch.get(mean.dtype)
        if scratch is None or scratch.numel() < x.numel():
            scratch = self._scratch[mean.dtype] = mean.new_empty(x.numel())
        return torch.sub(x, mean, out=scratch[: x.numel()].view(x.shape))


class OffsetRecorder(Recorder):
    """A recorder of all examples, whose features are taken relative to an origin among those of the
    first batch that is visited, so that an offset costs no digits. Every process must visit that
    batch first."""

    def __init__(
        self,
        layers: Sequence[Hashable],
        device: torch.device,
        batches: Sequence[tuple[int, int]],
        estimator: Estimator,
    ) -> None:
        """`batches` are the (start, stop) of all batches of the run."""
        super().__init__(layers, device)
        self.batches, self.estimator = batches, estimator
        self._origin: dict[int, Tensor] = {}

    @property
    def n(self) -> int:
        return self.batches[-1][1]

    @property
    def most(self) -> float:
        return 1 if self.estimator is Estimator.exact else super().most

    @abstractmethod
    def traces(self) -> Tensor:
        """tr Kc of each layer, (layers,), once the state is that of all examples."""

    def relative(self, i: int, x: Tensor) -> Tensor:
        """Features x (n, p) of layer i relative to the origin, in memory that the next call uses
        again; they are judged."""
        if i not in self._origin:
            distances = torch.linalg.vector_norm(self.centered(x, mean_of(x)), dim=1)
            # Of the nearer half: one example far away would move the mean away from all others.
            self._origin[i] = mean_of(x[distances.argsort()[: (len(x) + 1) // 2]])
        x = self.centered(x, self._origin[i])
        self.judge(i, x, self._origin[i])
        return x


class Batch(ABC):
    """The activations of one network's layers for one batch, as they appear."""

    def __init__(self, recorder: Recorder, visit: Visit) -> None:
        self.recorder, self.visit = recorder, visit
        self.seen: set[int] = set()

    def record(self, layer: Hashable, activation: Tensor) -> None:
        """Take in the activation (size, ...) of a layer. One with another number of rows than the
        batch has images makes the layer `unaligned`: then there is nothing that it can be compared
        with."""
        i = self.recorder.index[layer]
        if len(activation) != self.visit.size:
            self.recorder.state["unaligned"][i] += 1
            activation = activation.new_zeros(self.visit.size, *activation.shape[1:])
        with torch.no_grad(), torch.autocast(activation.device.type, enabled=False):
            self._record(i, self.recorder.features(i, activation))
        self.seen.add(i)

    @abstractmethod
    def _record(self, i: int, x: Tensor) -> None:
        """Take in the features x (size, p) of layer i, which may change afterwards."""

    @abstractmethod
    def finish(self) -> None:
        """Add to the recorder's state what concerns the network alone."""


class PairSums(ABC):
    """Sums for pairs of layers, one of each of two networks; `state` is what processes add up."""

    state: dict[str, Tensor]

    def __init__(self, x: Recorder, y: Recorder, pairs: Sequence[tuple[int, int]]) -> None:
        self.x, self.y, self.products = x, y, PairProducts(pairs, x.device)
        self.pairs = pairs

    @abstractmethod
    def add(self, x: Batch, y: Batch) -> None:
        """Take in a batch that both networks have seen."""

    @abstractmethod
    def hsic(self, advance: Advance = unseen) -> Hsic:
        """HSIC of all pairs, in their order; that of a constant, unaligned or coincident layer with
        itself is NaN.

        `advance` is told of each pair that is done.
        """

    @abstractmethod
    def permuted(self) -> Tensor:
        """HSIC of all pairs, (pairs,), in expectation when the examples of one layer are permuted
        (see `hsic`)."""

    def table(self, xy: Tensor, xx: Tensor, yy: Tensor) -> Hsic:
        """The table from HSIC of the pairs, (replicates, pairs), and from that of the layers of
        either network with themselves, (replicates, layers)."""
        xx, yy = (
            own.masked_fill(
                recorder.constant() | recorder.unaligned() | recorder.coincident(), math.nan
            )
            for own, recorder in ((xx, self.x), (yy, self.y))
        )
        rows, columns = self.products.rows, self.products.columns
        return Hsic(xy, xx[:, rows], yy[:, columns], self.permuted(), self.x.most)


class OffsetSums(PairSums):
    """Sums whose recorders are of all examples, and whose HSIC is a formula of S, D and T."""

    x: OffsetRecorder
    y: OffsetRecorder

    def permuted(self) -> Tensor:
        rows, columns = self.products.rows, self.products.columns
        traces = self.x.traces()[rows] * self.y.traces()[columns]
        return permuted_hsic(self.x.estimator, traces, self.x.n)


def add_up(state: dict[str, Tensor], add: Callable[[Tensor], Tensor]) -> None:
    """Sum a state over processes; `add` does so with one tensor, in place."""
    for tensor in state.values():
        add(tensor)


def has_channels_last(activation: Tensor) -> bool:
    """Whether an activation (n, c, h, w) lies in memory with its channels last."""
    return (
        activation.ndim == 4
        and not activation.is_contiguous()
        and activation.is_contiguous(memory_format=torch.channels_last)
    )


def features(activation: Tensor, channels_last: bool = False) -> Tensor:
    """Activations (n, ...) as features (n, p), of a floating-point type.

    Copies nothing if the activation is contiguous or, with `channels_last`, lies so in memory: the
    order of the features is not that of (c, h, w) then, and no Gram matrix depends on it.
    """
    if activation.is_quantized:
        activation = activation.dequantize()
    if activation.is_complex():
        activation = torch.view_as_real(activation.resolve_conj())
    if not activation.is_floating_point() and activation.itemsize >= 4:
        # Whole numbers that float32 may not tell apart.
        activation = wide(activation)
    if not activation.is_floating_point() or activation.itemsize == 1:  # no sums are of float8
        activation = activation.float()
    if channels_last and activation.ndim == 4:
        activation = activation.permute(0, 2, 3, 1)
    return activation.reshape(len(activation), math.prod(activation.shape[1:]))


def type_of_mean(x: Tensor) -> torch.dtype:
    """What the mean of features x, and they relative to it, are in: float32 or better."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def mean_of(x: Tensor) -> Tensor:
    """The mean (p,) of features (n, p) over the examples, which lies between the smallest and the
    largest value of each: rounding, or a sum beyond the type, would leave of a constant feature
    such as a mask of -1e9 more than others vary by."""
    mean = x.mean(0, dtype=type_of_mean(x))
    return mean.clamp(x.amin(0), x.amax(0)) if len(x) else mean


def magnitude(parts: Iterable[Tensor]) -> float:
    """The largest absolute value of some numbers, in parts: 0 if all are 0, or there are none, and
    otherwise at least the smallest normal number of their type, as the scale is to be of it."""
    largest = 0.0
    for part in parts:
        if part.numel():
            extremes = torch.stack(part.aminmax())  # abs() would take as much memory again
            if value := float(extremes.abs().max()):
                largest = max(value, largest, torch.finfo(part.dtype).tiny)
    return largest


def scale_of(magnitude: float) -> float:
    """The power of two that brings the largest of some numbers to about 1e-9 if they are small, to
    about 1 if they are large; 1 where it is between 1e-9 and 1e9 anyhow, 0 or not finite.

    The squares of numbers below 1e-19, or above 1e19, are no float32. Small ones leave room above,
    as larger ones may come later.

    >>> scale_of(3.0), scale_of(1e-30) == 2**69
    (1.0, True)
    """
    if not 0 < magnitude < math.inf or 1e-9 < magnitude < 1e9:
        return 1.0
    room = 30 if magnitude < 1 else 0
    return math.ldexp(1, -room - math.frexp(magnitude)[1])


def unit(scale: float) -> float:
    """The power of two nearest to a scale of those 2^400 apart, in which fourth powers of what has
    that scale are float64.

    >>> unit(1.0), unit(2.0**150), unit(2.0**-600) == 2.0**-800
    (1.0, 1.0, True)
    """
    return math.ldexp(1, 400 * round(math.log2(scale) / 400))


def scaled(x: Tensor, scale: float) -> Tensor:
    """x times a scale, in place."""
    return x if scale == 1 else x.mul_(scale)


def varies(centered: Tensor, mean: Tensor) -> Tensor:
    """Whether any of the features varies by more than rounding can make of a constant: a bool of
    dimension 0, from (n, p) features relative to their mean (p,)."""
    tolerance = mean.abs() * (ROUNDING * torch.finfo(mean.dtype).eps)
    if centered.device.type == "cpu" and centered.shape[1] > FEW:
        few = _exceeds(centered[:, :FEW], tolerance[:FEW])
        return few if few else _exceeds(centered[:, FEW:], tolerance[FEW:])
    return _exceeds(centered, tolerance)  # looking at a value would wait for the device


def _exceeds(centered: Tensor, tolerance: Tensor) -> Tensor:
    return ~(centered.abs() <= tolerance).all()  # NaN is no constant
