"""Checkpoints and label files: the only reader and writer of safetensors.

A checkpoint holds its tensors under plain `state_dict` keys; a label file holds `given` and
`true` (int64, (n,)) and `mislabelled` (bool, (n,)). Either has one metadata key, `memtool`, with
sorted JSON: one key, because safetensors writes several in random order. Equal runs give equal
bytes.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from memtool import MemtoolError
from memtool.files import replacing
from memtool.models import (
    ModelSpec,
    Shape,
    at_most,
    build,
    fitted,
    image_shape,
    one_line,
    skeleton,
)
from memtool.recognition import Identity, identify, misfits

if TYPE_CHECKING:
    import torch
    from torch import nn

    from memtool.data import Dataset
    from memtool.layers import Layer

FORMAT = 1
METADATA_KEY = "memtool"
SMALL_IMAGE, SMALL_MODEL = 64 * 64, 2**25  # pixels, weights
# Far beyond what any file needs (a transition matrix of 1,000 classes), and harmless to read.
MAX_METADATA = 32 * 2**20  # characters
MAX_CONTAINERS = 100_000
MAX_DEPTH = 100
MAX_IMAGE = 10_000  # pixels a side

Metadata = dict[str, Any]


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    """A safetensors file, with errors that name it."""
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except FileNotFoundError as error:
        raise MemtoolError(f"{path}: no such file") from error
    except (OSError, MemoryError) as error:
        raise MemtoolError(f"{path}: cannot be read ({error})") from error
    except SafetensorError as error:
        if is_pickle(path):
            raise MemtoolError(
                f"{path}: is a pickle of PyTorch's, not a safetensors file; make one of it: "
                f"memtool convert {path} -o {path.with_suffix('.safetensors')}"
            ) from error
        raise MemtoolError(f"{path}: not a safetensors file, or cut short ({error})") from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """`replacing`, for safetensors to write to: it has an exception of its own for a full disk."""
    with replacing(path) as temporary:
        try:
            yield temporary
        except SafetensorError as error:
            raise OSError(str(error)) from error


def is_pickle(path: Path) -> bool:
    """Whether a file begins as those of torch.save do: as a zip, a pickle or a tar archive."""
    with open(path, "rb") as file:
        start = file.read(512)
    return start[257:262] == b"ustar" or start.startswith(
        (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    )


def _encoded(kind: str, metadata: Metadata) -> dict[str, str]:
    content = {"format": FORMAT, "kind": kind, **metadata}
    return {METADATA_KEY: json.dumps(content, sort_keys=True, allow_nan=False)}


def read_metadata(path: Path, kind: str | None = None) -> Metadata:
    """The metadata of a memtool file, from its header alone.

    Raises MemtoolError if there is none, if it is of a later format, or not of `kind`.
    """
    metadata = find_metadata(path, kind)
    if metadata is None:
        raise MemtoolError(f"{path}: has no memtool metadata; memtool did not write it")
    return metadata


def find_metadata(path: Path, kind: str | None = None) -> Metadata | None:
    """As `read_metadata`, but None if there is none."""
    with _opened(path, "numpy") as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
    if text is None:
        return None
    metadata = _decoded(path, text)
    found, written = metadata.get("kind"), metadata.get("format")
    if not isinstance(found, str) or not isinstance(written, int):
        raise MemtoolError(f"{path}: its memtool metadata names no kind or no format")
    if written > FORMAT:
        raise MemtoolError(
            f"{path}: is of format {written:.10g}, this memtool reads up to {FORMAT}; "
            "update it (python -m pip install --upgrade memtool)"
        )
    if kind and found != kind:
        raise MemtoolError(f"{path}: is a {found:.40} file, not a {kind} file")
    _check(path, metadata)
    return metadata


def _decoded(path: Path, text: str) -> Metadata:
    """JSON, of a size and depth that is harmless, without numbers that are not finite."""
    if len(text) > MAX_METADATA or text.count("[") + text.count("{") > MAX_CONTAINERS:
        raise MemtoolError(f"{path}: its memtool metadata is absurdly large ({len(text)} bytes)")
    try:
        metadata = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise MemtoolError(f"{path}: its memtool metadata cannot be read ({error})") from error
    level, depth = [metadata], 0
    while level := [part for value in level for part in _parts(value)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise MemtoolError(f"{path}: its memtool metadata is nested absurdly deep")
    if not isinstance(metadata, dict):
        raise MemtoolError(f"{path}: its memtool metadata is no object")
    return metadata


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is no finite number")
    return number


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def save_tensors(
    path: Path, kind: str, tensors: "Mapping[str, torch.Tensor]", metadata: Metadata
) -> None:
    """Write tensors and metadata whole or not at all; from any device, shared tensors apart."""
    from safetensors.torch import save_file

    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with _replacing(path) as temporary:
        save_file(copies, temporary, _encoded(kind, metadata))


def load_tensors(path: Path) -> "dict[str, torch.Tensor]":
    """All tensors of a file, on the CPU."""
    with _opened(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@dataclass(frozen=True)
class Stored:
    """What a file's header says of a tensor: its shape, and its type as safetensors names it."""

    shape: Shape
    dtype: str


def stored_tensors(path: Path) -> dict[str, Stored]:
    """What the tensors of a file are, from its header."""
    with _opened(path, "numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {
            name: Stored(tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()
        }


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file's header says: cheap to open, so that all can be checked before any
    work.

    `metadata` is the file's own, or what is known of a file that memtool did not write; its `data`
    may be empty. `names` maps the model's tensors to those of the file. `known_by` says how the
    model is known, `notes` what was assumed, for the user to read.
    """

    path: Path
    metadata: Metadata
    spec: ModelSpec
    names: Mapping[str, str]
    shapes: Mapping[str, Shape]
    known_by: str = "metadata"
    notes: tuple[str, ...] = ()

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
        return Checkpoint(
            path, metadata, found.spec, found.names, shapes, found.known_by, found.notes
        )

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

        weights = sum(math.prod(shape) for shape in self.shapes.values())
        small = math.prod(image_shape[1:]) <= SMALL_IMAGE and weights <= SMALL_MODEL
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


SECTIONS = {"checkpoint": ("model", "data", "training"), "labels": ("data", "noise")}


def _check(path: Path, metadata: Metadata) -> None:
    """Raise MemtoolError unless metadata are as memtool writes them, as far as it reads them."""
    for section in SECTIONS.get(metadata["kind"], ()):
        if not isinstance(metadata.get(section), dict):
            raise MemtoolError(f"{path}: its memtool metadata has no {section!r}")
    if "model" in metadata:
        try:
            ModelSpec.from_json(metadata["model"])
        except MemtoolError as error:
            raise MemtoolError(f"{path}: its 'model' is {error}") from error
    data, training, noise = (metadata.get(name, {}) for name in ("data", "training", "noise"))
    sizes = [section["image_shape"] for section in (data, metadata) if "image_shape" in section]
    sensible = {
        "mean": _are(data.get("mean", []), int | float),
        "std": _are(data.get("std", []), int | float) and 0 not in data.get("std", []),
        "classes": _are(data.get("classes", []), str),
        "name": isinstance(data.get("name", ""), str),
        "fingerprint": isinstance(data.get("fingerprint", ""), str),
        "image_shape": all(
            _are(size, int) and len(size) == 3 and 0 < min(size) <= max(size) <= MAX_IMAGE
            for size in sizes
        ),
        "epoch": isinstance(training.get("epoch"), int | None),
        "seed": isinstance(training.get("seed", noise.get("seed")), int | None),
        "noise_ratio": isinstance(
            training.get("noise_ratio", noise.get("ratio")), int | float | None
        ),
        "metrics": isinstance(metadata.get("metrics", {}), dict),
    }
    for name, ok in sensible.items():
        if not ok:
            raise MemtoolError(f"{path}: its memtool metadata has no sensible {name!r}")


def _are(values: Any, type_: Any) -> bool:
    """Whether `values` is a list of that type."""
    return isinstance(values, list) and all(isinstance(value, type_) for value in values)


@dataclass(frozen=True)
class Network:
    """A model in eval mode with the statistics that its images are normalized by."""

    model: "nn.Module"
    mean: list[float]
    std: list[float]

    def normalized(self, images: "torch.Tensor") -> "torch.Tensor":
        """uint8 (n, c, h, w) to the float32 that the model takes."""
        from memtool.data import normalize

        return normalize(images, self.mean, self.std)

    def __call__(self, images: "torch.Tensor") -> "torch.Tensor":
        """Logits, (n, classes), of uint8 images."""
        logits: torch.Tensor = self.model(self.normalized(images))
        return logits


@dataclass(frozen=True)
class LabelFile:
    """Given and true labels of a data set's training split, int64 (n,).

    The metadata names the data set (`data`) and how the given labels were drawn (`noise`: ratio,
    kind, seed).
    """

    given: NDArray[np.int64]
    true: NDArray[np.int64]
    metadata: Metadata

    @property
    def mislabelled(self) -> NDArray[np.bool_]:
        """Where the given label is not the true one, (n,)."""
        return np.not_equal(self.given, self.true)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the given labels."""
        return hashlib.sha256(np.ascontiguousarray(self.given).data).hexdigest()

    @staticmethod
    def true_labels(dataset: "Dataset") -> "LabelFile":
        """The labels of `dataset` as they are: noise ratio 0."""
        true = dataset.train.labels
        noise = {"ratio": 0.0, "kind": None, "seed": None}
        return LabelFile(true, true, {"data": dataset.metadata(), "noise": noise})

    def save(self, path: Path) -> None:
        from safetensors.numpy import save_file

        arrays = {"given": self.given, "true": self.true, "mislabelled": self.mislabelled}
        with _replacing(path) as temporary:
            save_file(arrays, temporary, _encoded("labels", self.metadata))

    @staticmethod
    def load(path: Path) -> "LabelFile":
        """Raises MemtoolError if `path` is not a label file."""
        metadata = read_metadata(path, "labels")
        with _opened(path, "numpy") as file:
            given, true = file.get_tensor("given"), file.get_tensor("true")
        return LabelFile(given, true, metadata)

    def check(self, path: Path, dataset: "Dataset") -> None:
        """Raise MemtoolError unless these labels were made for `dataset`."""
        made_for = self.metadata["data"]
        if made_for["fingerprint"] != dataset.fingerprint or len(self.given) != len(dataset.train):
            raise MemtoolError(
                f"{path}: its labels were made for another data set: {made_for['name']!r} "
                f"({made_for['train']} images), not {dataset.name!r} ({len(dataset.train)})"
            )
