"""Checkpoints and label files: the only reader and writer of safetensors.

A checkpoint holds its tensors under plain `state_dict` keys; a label file holds `given` and
`true` (int64, (n,)) and `mislabelled` (bool, (n,)). Either has one metadata key, `memtool`, with
sorted JSON: one key, because safetensors writes several in random order. Equal runs give equal
bytes.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from memtool import MemtoolError
from memtool.files import replacing
from memtool.models import ModelSpec, build

if TYPE_CHECKING:
    import torch
    from torch import nn

    from memtool.data import Dataset

FORMAT = 1
METADATA_KEY = "memtool"

Metadata = dict[str, Any]


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    """A safetensors file, with errors that name it."""
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except FileNotFoundError as error:
        raise MemtoolError(f"{path}: no such file") from error
    except OSError as error:
        raise MemtoolError(f"{path}: cannot be read ({error})") from error
    except SafetensorError as error:
        raise MemtoolError(f"{path}: not a safetensors file, or cut short ({error})") from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """`replacing`, for safetensors to write to: it has an exception of its own for a full disk."""
    with replacing(path) as temporary:
        try:
            yield temporary
        except SafetensorError as error:
            raise OSError(str(error)) from error


def _encoded(kind: str, metadata: Metadata) -> dict[str, str]:
    content = {"format": FORMAT, "kind": kind, **metadata}
    return {METADATA_KEY: json.dumps(content, sort_keys=True, allow_nan=False)}


def read_metadata(path: Path, kind: str | None = None) -> Metadata:
    """The metadata of a memtool file, from its header alone.

    Raises MemtoolError if there is none, if it is of a later format, or not of `kind`.
    """
    with _opened(path, "numpy") as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
    if text is None:
        raise MemtoolError(f"{path}: has no memtool metadata; memtool did not write it")
    try:
        metadata = json.loads(text)
        found, written = metadata["kind"], int(metadata["format"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise MemtoolError(f"{path}: its memtool metadata cannot be read") from error
    if written > FORMAT:
        raise MemtoolError(
            f"{path}: is of format {written}, this memtool reads up to {FORMAT}; "
            "update it (python -m pip install --upgrade memtool)"
        )
    if kind and found != kind:
        raise MemtoolError(f"{path}: is a {found} file, not a {kind} file")
    return dict(metadata)


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


def tensor_sizes(path: Path) -> dict[str, int]:
    """How many elements each tensor of a file has, from its header."""
    with _opened(path, "numpy") as file:
        return {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file's header: cheap to open, so that all can be checked before any work."""

    path: Path
    metadata: Metadata

    @staticmethod
    def open(path: Path) -> "Checkpoint":
        """Raises MemtoolError if `path` is not a checkpoint that memtool wrote."""
        metadata = read_metadata(path, "checkpoint")
        for section in ("model", "data", "training"):
            if not isinstance(metadata.get(section), dict):
                raise MemtoolError(f"{path}: its memtool metadata has no {section!r}")
        return Checkpoint(path, metadata)

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec.from_json(self.metadata["model"])

    @property
    def data(self) -> Metadata:
        return dict(self.metadata["data"])

    @property
    def training(self) -> Metadata:
        return dict(self.metadata["training"])

    def network(self, device: "torch.device") -> "Network":
        """The model with its weights, in eval mode on `device`.

        Raises MemtoolError naming the first tensors that are missing, left over or misshapen.
        """
        model = build(self.spec)
        load_weights(model, load_tensors(self.path), self.path)
        model.eval().requires_grad_(False).to(device)
        return Network(model, self.data["mean"], self.data["std"])


def load_weights(model: "nn.Module", tensors: "dict[str, torch.Tensor]", path: Path) -> None:
    """Copy `tensors` into `model`: all of them and nothing else, or raise MemtoolError."""
    expected = model.state_dict()
    problems = {
        "missing": [key for key in expected if key not in tensors],
        "unexpected": [key for key in tensors if key not in expected],
        "of another shape": [
            f"{key} {tuple(tensors[key].shape)} for {tuple(expected[key].shape)}"
            for key in expected
            if key in tensors and tensors[key].shape != expected[key].shape
        ],
    }
    told = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in problems.items()
        if keys
    ]
    if told:
        raise MemtoolError(f"{path}: its tensors do not fit the model: {'; '.join(told)}")
    model.load_state_dict(tensors)


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
        for section in ("data", "noise"):
            if not isinstance(metadata.get(section), dict):
                raise MemtoolError(f"{path}: its memtool metadata has no {section!r}")
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
