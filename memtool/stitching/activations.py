"""The networks of a sweep, with the activations at their cuts kept as far as memory allows.

Forward passes come in batches as large as memory allows, too. Networks in eval mode give an image
the same whatever the batch is, but for the rounding of float32, and so do all sums over batches.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from memtool import MemtoolError
from memtool.checkpoints import Checkpoint, Network, footprints
from memtool.data import Dataset, HostImages, on_device
from memtool.layers import Back, Footprint, Layer, axes_in_memory, footprint, is_small, run_to
from memtool.models import StitchedModel, StitchingLayer, foreign_code


@dataclass(frozen=True)
class Share:
    """What one of the two networks of a stitching may take of the memory: `kept` bytes for
    activations, the rest for forward passes of `batch` examples."""

    kept: int
    batch: int


def memory_shares(memory: int, networks: Sequence[Checkpoint], examples: int) -> dict[Path, Share]:
    """The shares of `memory` bytes, by the networks' paths, if so many examples go through them.

    A network gets half of it, and half of that is for passes, or more if a single example takes
    more. Raises MemtoolError if half the memory is not enough for a single example.
    """
    half, shares = memory // 2, {}
    for network, its in zip(networks, footprints(networks), strict=True):
        passes = max(half // 2, min(half, its.of(1)))
        what = f"{network.path}: a forward pass, of one of two networks,"
        batch = min(examples, its.batch_within(passes, what))
        shares[network.path] = Share(half - its.of(batch), batch)
    return shares


def step_footprint(
    ends: tuple[Checkpoint, Checkpoint],
    cut: tuple[Layer, Layer],
    made: Callable[[], StitchingLayer],
) -> Footprint | None:
    """What a training step of the stitching layer that is `made` takes in memory between two
    networks; None if these are not small, and do not run on the meta device."""
    with torch.random.fork_rng(devices=[]), suppress(Exception):  # what needs real tensors
        with torch.device("meta"):  # a map may be large
            layer = made()
        shape, weights = ends[0].image_shape, sum(one.numel() for one in layer.parameters())
        if is_small(weights, shape) and all(end.is_small(shape) for end in ends):
            layer, front, back = made(), *(end.model() for end in ends)
            example = ends[0].example()
        else:
            example = None  # none is looked at
            front, back = (end.skeleton().eval().requires_grad_(False) for end in ends)
        model = StitchedModel(front, back, layer.train(), *(one.name for one in cut))
        return footprint(model, shape, gradients=True, example=example)
    return None


@dataclass(frozen=True)
class Examples:
    """The images of both splits for one device, uint8 (n, c, h, w), with their true labels, int64
    (n,), of so many `classes`; the first `train` of them are the training split. `name` is that of
    the data set."""

    images: Tensor | HostImages
    labels: Tensor
    train: int
    classes: int
    name: str

    @staticmethod
    def of(dataset: Dataset, device: torch.device) -> "Examples":
        splits = dataset.train, dataset.test
        return Examples(
            on_device(splits, device),
            torch.cat([torch.from_numpy(split.labels) for split in splits]).to(device),
            len(dataset.train),
            len(dataset.classes),
            dataset.name,
        )

    @cached_property
    def train_indices(self) -> Tensor:
        return torch.arange(self.train, device=self.labels.device)

    @cached_property
    def test_indices(self) -> Tensor:
        return torch.arange(self.train, len(self.labels), device=self.labels.device)

    @property
    def train_labels(self) -> Tensor:
        return self.labels[: self.train]

    @property
    def test_labels(self) -> Tensor:
        return self.labels[self.train :]


class CachedNetwork:
    """A network with its activations at the cuts.

    One forward pass over all images gives the activations at all `layers`; those that fit into its
    `share` of the memory are kept. The others are computed again, batch by batch, when they
    are asked for: these are first of all the layers near the input, which are large and soon
    computed.
    """

    def __init__(
        self, checkpoint: Checkpoint, layers: Sequence[Layer], examples: Examples, share: Share
    ) -> None:
        self.checkpoint, self.examples, self.batch = checkpoint, examples, share.batch
        network = checkpoint.network(examples.images.device)
        self._backs: dict[str, Back] = {}
        with foreign_code(checkpoint.told):
            self.network: Network = network.fastest(examples.images[:2])
            self._kept = self._computed(fitting(layers, len(examples.images), share.kept))

    @torch.no_grad()
    def _computed(self, layers: Sequence[Layer]) -> dict[str, Tensor]:
        images, names = self.examples.images, [layer.name for layer in layers]
        kept: dict[str, Tensor] = {}
        for start in range(0, len(images) if names else 0, self.batch):
            batch = slice(start, start + self.batch)
            for name, activation in self._run_to(names, images[batch]).items():
                if name not in kept:
                    kept[name] = _room(len(images), activation)
                kept[name][batch] = activation
        return kept

    def _run_to(self, layers: Sequence[str], images: Tensor) -> dict[str, Tensor]:
        """Raises MemtoolError for a layer that does not see all images of a batch at once."""
        found = run_to(self.network.model, layers, self.network.normalized(images))
        for layer, activation in found.items():
            if len(activation) != len(images):
                raise MemtoolError(
                    f"{self.checkpoint.path}: layer {layer!r} gives {len(activation)} rows for "
                    f"{len(images)} images, so that nothing can be stitched there; take other cuts "
                    "(--at)"
                )
        return found

    @torch.no_grad()
    def activation(self, layer: str, indices: Tensor) -> Tensor:
        """The activation at `layer` of the examples at `indices`."""
        if layer in self._kept:
            return self._kept[layer][indices]
        return self._run_to([layer], self.examples.images[indices])[layer]

    def training_batches(self, layer: str, batch: int) -> Iterator[Tensor]:
        """The activation at `layer` of all training images, so many at a time."""
        for indices in self.examples.train_indices.split(batch):
            yield self.activation(layer, indices)

    def logits_from(self, layer: str, activation: Tensor) -> Tensor:
        """The logits that the network gives with this activation at `layer`."""
        if layer not in self._backs:
            self._backs[layer] = Back(self.network.model, layer)
        # Of the images only their number matters, if anything.
        images = self._first_image.expand(len(activation), *self._first_image.shape[1:])
        return self.network.logits_in(self._backs[layer](activation, images))

    @cached_property
    def _first_image(self) -> Tensor:
        return self.network.normalized(self.examples.images[:1])

    @cached_property
    @torch.no_grad()
    def predictions(self) -> Tensor:
        """The class that the network gives each test image, (n,)."""
        batches = self.examples.test_indices.split(self.batch)
        return torch.cat([self.network(self.examples.images[one]).argmax(1) for one in batches])

    @cached_property
    def accuracy(self) -> float | None:
        """The test accuracy of the network; None if it does not tell the classes of the data set
        apart."""
        if self.network.width(self.examples.images[:2]) != self.examples.classes:
            return None
        return agreement(self.predictions, self.examples.test_labels)


def _room(examples: int, activation: Tensor) -> Tensor:
    """Room for the activations of so many examples, with their axes in the order in memory that
    those of `activation` have: the kernels that follow round differently otherwise."""
    size, order = (examples, *activation.shape[1:]), axes_in_memory(activation)
    return torch.empty_permuted(size, order, dtype=activation.dtype, device=activation.device)


def agreement(predictions: Tensor, others: Tensor) -> float:
    """The part of the examples, in [0, 1], for which both are the same class; (n,) each, n > 0."""
    return (predictions == others).cpu().double().mean().item()


def fitting(layers: Sequence[Layer], examples: int, memory: int) -> list[Layer]:
    """Those of the layers, the last ones first, whose activations fit into `memory` bytes
    together.

    >>> a, b = Layer("a", "", (100,), True, "a"), Layer("b", "", (40,), True, "b")
    >>> [layer.name for layer in fitting([a, b], examples=10, memory=4 * 10 * 100)]
    ['b']
    """
    result = []
    for layer in reversed(layers):
        size = layer.dtype.itemsize * examples * math.prod(layer.shape)
        if size <= memory:
            memory -= size
            result.append(layer)
    return result
