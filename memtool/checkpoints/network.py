"""A network with its weights, ready to classify images, and the loading of weights into a model."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memtool import MemtoolError
from memtool.checkpoints.names import UNCOUNTED, misfits, tied_names
from memtool.data import normalize
from memtool.errors import told_names
from memtool.models import described, logits_of, shapes_of, takes_channels_last, unsaved

logger = logging.getLogger("memtool")


@dataclass(frozen=True)
class Network:
    """A model in eval mode, with the statistics by which its images are normalized.

    `mean` and `std` have one number per channel, in units of 255. `classes` is how many classes it
    tells apart, None if that is not known. `memory_format` is the one in which the model is given
    its images, None for that which they have.

    >>> network = Network(nn.Flatten(), mean=[0.5], std=[0.25])
    >>> network(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
    tensor([[-2.,  2.]])
    """

    model: nn.Module
    mean: list[float]
    std: list[float]
    classes: int | None = None
    memory_format: torch.memory_format | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """The logits, float32 (n, classes), of uint8 images (n, channels, height, width), which
        are on the device of the model.

        Raises MemtoolError if the model returns none (see `models.logits_of`), and for images that
        are no whole numbers.
        """
        return self.logits_in(self.run(images))

    def run(self, images: Tensor) -> Any:
        """Whatever the model returns for uint8 images."""
        return self.model(self.normalized(images))

    def logits_in(self, result: Any) -> Tensor:
        """The logits in what the model returned: those of `classes`, if there are such, else any.
        Raises MemtoolError if there are none."""
        for classes in (self.classes, None):
            if (logits := logits_of(result, classes)) is not None:
                return logits
        raise MemtoolError(
            f"{type(self.model).__name__} returns {described(result)}, in which there are no logits"
        )

    @torch.no_grad()
    def width(self, images: Tensor) -> int:
        """How many logits the network gives. Raises MemtoolError if it gives none."""
        return self(images[:2]).shape[1]

    def normalized(self, images: Tensor) -> Tensor:
        """uint8 images (n, channels, height, width) as the float32 that the model takes."""
        result = normalize(torch.as_tensor(images), self.mean, self.std)
        return result.contiguous(memory_format=self.memory_format) if self.memory_format else result

    def fastest(self, images: Tensor) -> "Network":
        """The same network in the memory format that suits it best, tried with two of `images`.

        On a CPU that is channels last, with which a forward pass takes 0.5 to 1.1 times as long,
        0.85 in the mean. A model that does not work with it, or gives other results, because it
        looks at strides or calls `view` on the output of a convolution, say, keeps the format of
        the images.
        """
        if images.device.type != "cpu":
            return self
        suits = takes_channels_last(self.model, self.normalized(images[:2]))
        return self.laid_out(torch.channels_last if suits else None)

    def laid_out(self, memory_format: torch.memory_format | None) -> "Network":
        """The same network with its weights, and the images that its model is given, in that format
        in memory; None is the usual one."""
        self.model.to(memory_format=memory_format or torch.contiguous_format)
        return replace(self, memory_format=memory_format)


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load `tensors`, by their names in the model, into `model`, converted to its types.

    Tensors that have the right type are taken as they are, not copied. Raises MemtoolError, which
    names `path`, unless they are all the tensors of the model and no others, of types that can be
    converted; counts of batches may be missing, as they are in old files, or left aside, since an
    average of them, or one in half precision, need be no count.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if problems := misfits(shapes_of(model), shapes):
        raise MemtoolError(f"{path}: its tensors do not fit the model: {problems}")
    expected, weights = model.state_dict(), dict[str, Tensor]()
    for name, tensor in tensors.items():
        if (converted := _converted(tensor, expected[name])) is not None:
            weights[name] = converted
        elif not name.endswith(UNCOUNTED):
            dtype = expected[name].dtype
            raise MemtoolError(
                f"{path}: its tensor {name} is of type {tensor.dtype}, the model's is of {dtype}, "
                "and its numbers may have changed when it was converted; take it from the "
                f"original, where it is of {dtype}"
            )
    _check_shared(tied_names(model), weights, path)
    # In place: this dict also carries the versions of the modules' layouts, which mnasnet needs.
    expected.update(weights)
    model.load_state_dict(expected, assign=True)
    _warn_if_not_finite(weights, path)


def _check_shared(
    tied: Mapping[str, Sequence[str]], tensors: Mapping[str, Tensor], path: Path
) -> None:
    """Raise MemtoolError if a tensor that the model has under several names has several values."""
    for name, others in tied.items():
        for other in others:
            both = [tensors[one] for one in (name, other) if one in tensors]  # but for counts
            if len(both) == 2 and not torch.equal(*both):
                raise MemtoolError(
                    f"{path}: {name} and {other} are one tensor in the model, two that differ here"
                )


def _warn_if_not_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    floats = {name: value for name, value in weights.items() if value.is_floating_point()}
    if names := [name for name, value in floats.items() if not value.isfinite().all()]:
        logger.warning(
            f"{path}: not all numbers in {told_names(names)} are finite; nor are activations that "
            "depend on them"
        )


def _converted(tensor: Tensor, own: Tensor) -> Tensor | None:
    """A tensor in the type of the model's `own`, None if its numbers are not sure to be the same
    then: floating point is taken for such, complex numbers for such, and real numbers for any other
    type that has them all, as the indices are of a model that was converted to half precision as a
    whole. If they may have been rounded then, they have to be the model's own, rounded, which are
    given instead."""
    if own.is_floating_point() or own.is_complex():
        found, wanted = ((one.is_floating_point(), one.is_complex()) for one in (tensor, own))
        return tensor.to(own.dtype) if found == wanted else None
    if tensor.is_complex():
        return None
    numbers = tensor
    if tensor.is_floating_point():
        numbers = tensor.double()
        if not own.is_meta and torch.equal(own.to(tensor.dtype).double(), numbers):
            return own
        exact_below = 2 / torch.finfo(tensor.dtype).eps  # which itself may be the next one, rounded
        if not bool((numbers.abs() < exact_below).all()):
            return None
    converted = tensor.to(own.dtype)
    return converted if torch.equal(converted.to(numbers.dtype), numbers) else None


def is_incomplete(model: nn.Module) -> bool:
    """Whether a skeleton still has tensors without values after its weights were loaded: what a
    module computed of its parameters while it was built."""
    registered = [*model.parameters(), *model.buffers()]
    return any(tensor.is_meta for tensor in (*registered, *(one for _, one in unsaved(model))))
