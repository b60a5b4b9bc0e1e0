"""Checkpoints: which model the tensors of a file are, and the network with its weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from memtool import MemtoolError
from memtool.checkpoints.recognition import Identity, identify, misfits
from memtool.errors import one_line
from memtool.models.building import Shape, at_most, build, skeleton
from memtool.models.sources import fitted, image_shape
from memtool.models.spec import ModelSpec
from memtool.tensors import Metadata, find_metadata, load_tensors, stored_tensors

if TYPE_CHECKING:
    import torch
    from torch import nn

    from memtool.data.datasets import Dataset
    from memtool.layers import Layer

SMALL_IMAGE, SMALL_MODEL = 64 * 64, 2**25  # pixels, weights


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file's header says: cheap to open, so that all can be checked before any
    work.

    `metadata` is the file's own, or what is known of a file that memtool did not write; its `data`
    may be empty. `names` maps the model's tensors to those of the file. `known_by` says how the
    model is known.
    """

    path: Path
    metadata: Metadata
    spec: ModelSpec
    names: Mapping[str, str]
    shapes: Mapping[str, Shape]
    known_by: str = "metadata"

    @staticmethod
    def open(path: Path, model: ModelSpec | None = None, trust: bool = False) -> "Checkpoint":
        """The checkpoint at `path`, of the `model` if one was typed; runs no code that was not.

        With `trust`, the code that the metadata names may run, if it is the very file recorded.
        Raises MemtoolError if `path` is no checkpoint, or if it is not clear of what model.
        """
        metadata = find_metadata(path, "checkpoint")
        shapes = {name: tensor.shape for name, tensor in stored_tensors(path).items()}
        if metadata is None:
            return Checkpoint.of(path, shapes, identify(path, shapes, model))
        if model:
            data = metadata["data"]
            if "image_shape" in data and "classes" in data:
                model = fitted(model, tuple(data["image_shape"]), len(data["classes"]))
            found = identify(path, shapes, model)
            known = {**metadata, "model": found.spec.json()}
            return replace(Checkpoint.of(path, shapes, found), metadata=known)
        spec = replace(ModelSpec.from_json(metadata["model"]), trusted=trust)
        return Checkpoint(path, metadata, spec, {name: name for name in shapes}, shapes)

    @staticmethod
    def of(path: Path, shapes: Mapping[str, Shape], found: Identity) -> "Checkpoint":
        """A checkpoint that memtool did not write."""
        hints = dict(found.hints)
        size = {"image_shape": hints.pop("image_shape")} if "image_shape" in hints else {}
        metadata = {"model": found.spec.json(), "data": hints, "training": {}, **size}
        return Checkpoint(path, metadata, found.spec, found.names, shapes, found.known_by)

    @property
    def data(self) -> Metadata:
        """What the network was trained on; may be empty, or have no more than `mean` and `std`."""
        return dict(self.metadata["data"])

    @property
    def training(self) -> Metadata:
        return dict(self.metadata["training"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images on record, else of those that the model is
        usually given."""
        known = self.data.get("image_shape") or self.metadata.get("image_shape")
        channels, height, width = known or image_shape(self.spec)
        return channels, height, width

    def on(self, dataset: "Dataset") -> "Checkpoint":
        """This checkpoint, taken to be trained on `dataset` if nothing says on what it was.

        A mean and a standard deviation on record stay.
        """
        if "fingerprint" in self.data:
            return self
        return replace(self, metadata={**self.metadata, "data": dataset.metadata() | self.data})

    def skeleton(self) -> "nn.Module":
        """The model without weights; raises MemtoolError unless the file's tensors are its own."""
        try:
            model = skeleton(self.spec, at_most(self.spec, self.shapes))
        except MemtoolError as error:
            raise MemtoolError(f"{self.path}: {error}") from error
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        found = {name: self.shapes[key] for name, key in self.names.items()}
        if problems := misfits(wanted, found):
            raise MemtoolError(
                f"{self.path}: its tensors do not fit the model {self.spec}: {problems}"
            )
        return model

    def model(self) -> "nn.Module":
        """The model with its weights, in float32 and eval mode, on the CPU. Raises MemtoolError."""
        import torch

        model = self.skeleton()
        tensors = self.tensors()
        load_weights(model, tensors, self.path)
        if _is_incomplete(model):
            with torch.random.fork_rng(devices=[]):
                model = build(self.spec)
            load_weights(model, tensors, self.path)
        return model.eval().requires_grad_(False)

    def tensors(self) -> "dict[str, torch.Tensor]":
        """The weights by their names in the model."""
        stored = load_tensors(self.path)
        return {name: stored[key] for name, key in self.names.items()}

    def network(self, device: "torch.device") -> "Network":
        """The model with its weights, in eval mode on `device`.

        Raises MemtoolError naming the first tensors that are missing, left over or misshapen.
        """
        if not {"mean", "std"} <= self.data.keys():
            raise MemtoolError(
                f"{self.path}: does not say how its images are normalized; name a data set (--data)"
            )
        return Network(self.model().to(device), self.data["mean"], self.data["std"])

    def traced(self, image_shape: tuple[int, int, int]) -> "list[Layer]":
        """The layers of the model, for images of that shape. Raises MemtoolError if it does not
        take such images.

        On the meta device where the model allows it, which computes nothing; but with weights if
        images and model are small: the meta device takes a second of imports.
        """
        import torch

        from memtool.layers import trace

        def on_meta() -> "list[Layer]":
            return trace(self.skeleton().to("meta"), torch.zeros(2, *image_shape, device="meta"))

        def with_weights() -> "list[Layer]":
            return trace(self.model(), torch.zeros(2, *image_shape))

        weights = sum(prod(shape) for shape in self.shapes.values())
        small = prod(image_shape[1:]) <= SMALL_IMAGE and weights <= SMALL_MODEL
        if not small:
            try:
                return on_meta()
            except Exception:  # whatever a model does that only real tensors can
                pass
        try:
            return with_weights()
        except MemtoolError:
            raise
        except Exception as error:
            raise MemtoolError(
                f"{self.path}: its model {self.spec} does not take images of (channels, height, "
                f"width) = {image_shape}: {one_line(error)}"
            ) from error


def traced_all(
    checkpoints: Sequence[Checkpoint], image_size: int | None = None
) -> "list[list[Layer]]":
    """The layers of each checkpoint's model; no weights are loaded, and equal models traced once.

    Raises MemtoolError for a checkpoint whose tensors are not those of its model.
    """
    known: dict[str, list[Layer]] = {}
    result = []
    for checkpoint in checkpoints:
        shape = checkpoint.image_shape
        if image_size:
            shape = (shape[0], image_size, image_size)
        tensors = {name: checkpoint.shapes[key] for name, key in checkpoint.names.items()}
        key = repr((checkpoint.spec, shape, sorted(tensors.items())))
        if key not in known:
            known[key] = checkpoint.traced(shape)
        result.append(known[key])
    return result


def load_weights(model: "nn.Module", tensors: "dict[str, torch.Tensor]", path: Path) -> None:
    """Make `tensors` the weights of `model`, in the model's types: all of them and nothing else, or
    raise MemtoolError.

    Tensors of the right type are taken as they are, not copied. Counts of batches may be missing,
    as they are in old files.
    """
    expected = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if problems := misfits({key: tuple(value.shape) for key, value in expected.items()}, shapes):
        raise MemtoolError(f"{path}: its tensors do not fit the model: {problems}")
    for key, tensor in tensors.items():
        if _kind(tensor) != _kind(expected[key]):
            raise MemtoolError(
                f"{path}: its tensor {key} is of type {tensor.dtype}, the model's is of "
                f"{expected[key].dtype}"
            )
    weights = {key: tensor.to(expected[key].dtype) for key, tensor in tensors.items()}
    model.load_state_dict({**expected, **weights}, assign=True)


def _kind(tensor: "torch.Tensor") -> tuple[bool, bool]:
    """What conversion keeps: floating point, complex, or neither."""
    return tensor.is_floating_point(), tensor.is_complex()


def _is_incomplete(model: "nn.Module") -> bool:
    """Whether a skeleton with weights has tensors without, which the weights do not hold: what a
    module computes of its parameters as it is built."""
    import torch

    return any(
        isinstance(value, torch.Tensor) and value.is_meta
        for module in model.modules()
        for values in (module._parameters, module._buffers, vars(module))
        for value in values.values()
    )


@dataclass(frozen=True)
class Network:
    """A model in eval mode with the statistics that its images are normalized by, and the memory
    format that it takes them in; None is that of the images."""

    model: "nn.Module"
    mean: list[float]
    std: list[float]
    memory_format: "torch.memory_format | None" = None

    def fastest(self, images: "torch.Tensor") -> "Network":
        """The same network in the memory format that suits it best, found with two of `images`.

        On a CPU that is channels last, in which a forward pass takes 0.5 to 1.1 times as long, in
        the mean 0.85; but not of a model that cannot do with it, as one that calls `view` on what
        a convolution gave.
        """
        import torch

        if images.device.type != "cpu":
            return self
        channels_last = replace(self, memory_format=torch.channels_last)
        try:
            channels_last(images[:2])
        except RuntimeError:
            return self
        return channels_last

    def normalized(self, images: "torch.Tensor") -> "torch.Tensor":
        """uint8 (n, c, h, w) to the float32 that the model takes."""
        from memtool.data.datasets import normalize

        result = normalize(images, self.mean, self.std)
        return result.contiguous(memory_format=self.memory_format) if self.memory_format else result

    def __call__(self, images: "torch.Tensor") -> "torch.Tensor":
        """Logits, (n, classes), of uint8 images."""
        logits: torch.Tensor = self.model(self.normalized(images))
        return logits
