"""Tensors and metadata in safetensors files: the only reader and writer of them.

Metadata are one key, `memtool`, with sorted JSON: one key, because safetensors writes several in
random order. Equal runs give equal bytes.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from memtool import MemtoolError
from memtool.files import replacing
from memtool.models.building import Shape
from memtool.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch

FORMAT = 1
METADATA_KEY = "memtool"
# What each kind of file has to say.
SECTIONS = {"checkpoint": ("model", "data", "training"), "labels": ("data", "noise")}
# Far beyond what any file needs (a transition matrix of 1,000 classes), and harmless to read.
MAX_METADATA = 32 * 2**20  # characters
MAX_CONTAINERS = 100_000
MAX_DEPTH = 100
MAX_IMAGE = 10_000  # pixels a side

Metadata = dict[str, Any]


@contextmanager
def opened(path: Path, framework: str) -> Iterator[Any]:
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
def replacing_safetensors(path: Path) -> Iterator[Path]:
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


def encoded(kind: str, metadata: Metadata) -> dict[str, str]:
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
    with opened(path, "numpy") as file:
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
    with replacing_safetensors(path) as temporary:
        save_file(copies, temporary, encoded(kind, metadata))


def load_tensors(path: Path) -> "dict[str, torch.Tensor]":
    """All tensors of a file, on the CPU."""
    with opened(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@dataclass(frozen=True)
class Stored:
    """What a file's header says of a tensor: its shape, and its type as safetensors names it."""

    shape: Shape
    dtype: str


def stored_tensors(path: Path) -> dict[str, Stored]:
    """What the tensors of a file are, from its header."""
    with opened(path, "numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {
            name: Stored(tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()
        }


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
