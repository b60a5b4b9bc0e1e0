"""The files that memtool writes: tensors and metadata, in the format of safetensors.

The metadata are sorted JSON under one key, `memtool`. There is only one key because safetensors
writes several keys in random order, and equal runs are to give equal bytes. The JSON says the
`format` and the `kind` of the file, and has the sections of that kind, which `memtool.metadata`
declares.
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
from memtool.contents import conversion, described, is_pickle
from memtool.errors import last_line, shortened
from memtool.files import check_name, replacing
from memtool.metadata import check
from memtool.shards import check_shard, is_index, shards_of

if TYPE_CHECKING:
    import torch

FORMAT = 1
METADATA_KEY = "memtool"
# Far more than any file needs (the largest is a transition matrix of 1,000 classes), and still
# harmless to read.
MAX_METADATA = 32 * 2**20  # characters
MAX_CONTAINERS = 100_000
MAX_DEPTH = 100

Metadata = dict[str, Any]
Shape = tuple[int, ...]


@contextmanager
def opened(path: Path, framework: str) -> Iterator[Any]:
    """Open a safetensors file; within the block, every error in reading it is a MemtoolError that
    names it.

    `framework` says what its tensors become: "pt" or "numpy".
    """
    check_name(path)
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except FileNotFoundError as error:
        raise MemtoolError(f"{path}: no such file") from error
    except (OSError, MemoryError, SafetensorError) as error:
        if told := described(path):
            raise MemtoolError(f"{path}: is {told}") from error
        if isinstance(error, SafetensorError):
            raise MemtoolError(
                f"{path}: not a safetensors file, or damaged ({last_line(error)})"
            ) from error
        raise MemtoolError(f"{path}: cannot be read ({error})") from error


@contextmanager
def replacing_safetensors(path: Path) -> Iterator[Path]:
    """`replacing`, for a file that safetensors writes, whose own exception (for a full disk, say)
    is turned into an OSError."""
    check_name(path)
    with replacing(path) as temporary:
        try:
            yield temporary
        except SafetensorError as error:
            raise OSError(str(error)) from error


def encoded(kind: str, metadata: Metadata) -> dict[str, str]:
    """The metadata of a file of this kind as safetensors takes them.

    >>> encoded("labels", {"noise": {"ratio": 0.25}})
    {'memtool': '{"format": 1, "kind": "labels", "noise": {"ratio": 0.25}}'}
    """
    content = {"format": FORMAT, "kind": kind, **metadata}
    return {METADATA_KEY: json.dumps(content, sort_keys=True, allow_nan=False)}


def read_metadata(path: Path, kind: str | None = None) -> Metadata:
    """The metadata of a memtool file; only its header is read.

    Raises MemtoolError if the file has none or has broken ones, if it is of a later format, if it
    is of another kind than `kind`, and if they are not as `memtool.metadata` declares them.
    """
    metadata = find_metadata(path, kind)
    if metadata is None:
        raise MemtoolError(f"{path}: has no memtool metadata; memtool did not write it")
    return metadata


def find_metadata(path: Path, kind: str | None = None) -> Metadata | None:
    """As `read_metadata`, but None for a safetensors file that memtool did not write, and for the
    index of several."""
    if is_index(path):
        return None
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
            f"{path}: is of format {shortened(written, 20)}, this memtool reads up to {FORMAT}; "
            "update it (python -m pip install --upgrade memtool)"
        )
    if kind and found != kind:
        unfinished = "; a stopped run's, which train --resume continues" if found == "state" else ""
        raise MemtoolError(f"{path}: is a {found:.40} file, not a {kind} file{unfinished}")
    check(path, found, metadata)
    return metadata


def _decoded(path: Path, text: str) -> Metadata:
    """The JSON object in `text`, if its size and depth are harmless and its numbers are finite."""
    if len(text) > MAX_METADATA or text.count("[") + text.count("{") > MAX_CONTAINERS:
        raise MemtoolError(f"{path}: its memtool metadata is absurdly large ({len(text)} bytes)")
    try:
        metadata = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise MemtoolError(
            f"{path}: its memtool metadata cannot be read ({last_line(error)})"
        ) from error
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
    """Write tensors and metadata, the whole file or nothing.

    The tensors may be on any device; those that share memory are written separately.
    """
    from safetensors.torch import save_file

    separate: dict[str, torch.Tensor] = {}
    memories = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        memory = own.untyped_storage().data_ptr()
        separate[name] = own.clone() if memory in memories else own
        memories.add(memory)
    with replacing_safetensors(path) as temporary:
        save_file(separate, temporary, encoded(kind, metadata))


def check_kept(path: Path, kind: str, metadata: Metadata) -> None:
    """Raise MemtoolError if a file with these metadata could not be written, or not be read
    again."""
    try:
        text = json.dumps(metadata, allow_nan=False)
    except ValueError as error:
        raise MemtoolError(f"{path}: its settings hold a number that is not finite") from error
    check(path, kind, _decoded(path, text))


def find_replaced(path: Path, kind: str, source: Path | None = None) -> Metadata | None:
    """The metadata of the file that would be replaced if one of this kind was written to `path`;
    None if there is none.

    Raises MemtoolError if that is a file of another kind, one that memtool did not write, or the
    `source` from which the new one is made: nobody could tell from the name that it would be lost.
    """
    if not path.exists():
        return None
    if source is not None and source.exists() and path.samefile(source):
        raise MemtoolError(f"{path}: is what is read; choose another -o")
    try:
        return read_metadata(path, kind)
    except MemtoolError as error:
        raise MemtoolError(
            f"{error}; it is not replaced: remove or move it, or choose another -o"
        ) from error


def files_of(path: Path) -> list[Path]:
    """The safetensors files that are read for `path`: itself, or the shards that an index lists.

    Raises MemtoolError as `shards_of` does.
    """
    return list(shards_of(path)) if is_index(path) else [path]


def load_tensors(path: Path) -> "dict[str, torch.Tensor]":
    """All tensors of a file, or of the shards that an index lists, on the CPU."""
    tensors: dict[str, torch.Tensor] = {}
    for file in files_of(path):
        with opened(file, "pt") as content:
            tensors |= {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    return tensors


@dataclass(frozen=True)
class Stored:
    """A tensor as a file's header describes it: its shape, and its type as safetensors names it
    (F32, I64, ...)."""

    shape: Shape
    dtype: str


def stored_tensors(path: Path) -> dict[str, Stored]:
    """The shapes and types of a file's tensors, by name; only its header is read.

    Those of an index are the tensors of its shards. Raises MemtoolError if these are not as it
    says.
    """
    if not is_index(path):
        return _stored_in(path)
    check_no_pickle(path)
    tensors: dict[str, Stored] = {}
    for shard, names in shards_of(path).items():
        found = _stored_in(shard)
        check_shard(path, shard, names, list(found))
        tensors |= found
    return tensors


def is_pickled(path: Path) -> bool:
    """Whether a file, or what an index lists, is a pickle."""
    return any(map(is_pickle, shards_of(path))) if is_index(path) else is_pickle(path)


def check_no_pickle(path: Path, model: str | None = None) -> None:
    """Raise MemtoolError if a file, or what an index lists, is a pickle, with the command that
    makes a checkpoint of it, of the `model` that was typed, if any."""
    if is_pickled(path):
        what, them = ("lists pickles", "them") if is_index(path) else ("is a pickle", "it")
        raise MemtoolError(
            f"{path}: {what} of PyTorch's; make a checkpoint of {them}: {conversion(path, model)}"
        )


def _stored_in(path: Path) -> dict[str, Stored]:
    with opened(path, "numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {
            name: Stored(tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()
        }


def shared_tensors(path: Path) -> dict[str, str]:
    """The names that a tensor of the file also has in the model, and the one that it has in the
    file: `safetensors.torch.save_model` keeps one of several and records the others."""
    recorded: dict[str, str] = {}
    names: set[str] = set()
    for part in files_of(path):
        with opened(part, "numpy") as file:
            recorded |= file.metadata() or {}
            names |= set(file.keys())
    return {other: name for other, name in recorded.items() if name in names and other not in names}
