"""Tensors and metadata in safetensors files: the only reader and writer of them.

The metadata are sorted JSON under one key, `memtool`. There is only one key because safetensors
writes several keys in random order, and equal runs are to give equal bytes. The JSON says the
`format`, the `kind` of the file (checkpoint, labels or state), and has the sections of that kind.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from memtool import MemtoolError
from memtool.contents import described, is_pickle
from memtool.errors import last_line, shortened
from memtool.files import check_name, replacing
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
MAX_IMAGE = 10_000  # height or width in pixels
MAX_FEATURES = 500_000  # of a vector; their means and deviations are metadata
LARGEST = 1e30  # mean or standard deviation

Metadata = dict[str, Any]
Shape = tuple[int, ...]


def _is(*types: type) -> Callable[[Any], bool]:
    """A test for values of these types."""
    return lambda value: isinstance(value, types)


def _is_list_of(*types: type) -> Callable[[Any], bool]:
    """A test for lists whose elements are all of these types."""
    return lambda value: isinstance(value, list) and all(isinstance(part, types) for part in value)


def _is_dict_of(*types: type) -> Callable[[Any], bool]:
    """A test for dicts whose values are all of these types."""
    return lambda value: isinstance(value, dict) and _is_list_of(*types)([*value.values()])


def _is_mean(value: Any) -> bool:
    """Whether they are numbers that float32 can hold, in the units of pixels, too."""
    return _is_list_of(int, float)(value) and all(abs(number) < LARGEST for number in value)


def _is_std(value: Any) -> bool:
    return _is_mean(value) and 0 not in value


def _is_image_shape(value: Any) -> bool:
    if not _is_list_of(int)(value) or len(value) not in (1, 3) or min(value) < 1:
        return False
    return bool(max(value) <= (MAX_IMAGE if len(value) == 3 else MAX_FEATURES))


def _is_training(value: Any) -> bool:
    """Whether the fields of what stands in place of `training` are sensible."""
    return isinstance(value, dict) and all(
        is_sensible(value[key])
        for key, (places, is_sensible) in FIELDS.items()
        if f"training.{key}" in places and key in value
    )


# The sections that a file must have, by its kind.
SECTIONS = {
    "checkpoint": ("model", "data", "training"),
    "labels": ("data", "noise"),
    "state": ("settings",),
}
# The fields that memtool reads: the places where each may stand, and what it must be wherever it
# does. What `model` holds is checked by the wing `checkpoints`, which knows models.
FIELDS: Mapping[str, tuple[Sequence[str], Callable[[Any], bool]]] = {
    "data": (["data"], _is(dict)),
    "training": (["training"], _is(dict)),
    "noise": (["noise"], _is(dict)),
    "metrics": (["metrics"], _is(dict)),
    "computed_by": (["computed_by"], _is_dict_of(int, str)),
    "name": (["data.name"], _is(str)),
    "fingerprint": (["data.fingerprint"], _is(str)),
    "classes": (["data.classes"], _is_list_of(str)),
    "mean": (["data.mean"], _is_mean),
    "std": (["data.std"], _is_std),
    "preprocessing": (["data.preprocessing"], _is_dict_of(int, float, str)),
    "image_shape": (["data.image_shape", "image_shape"], _is_image_shape),
    "epoch": (["training.epoch", "epoch"], _is(int, NoneType)),
    "history": (["history"], lambda value: isinstance(value, list) and all(map(_is(dict), value))),
    "seed": (["training.seed", "noise.seed"], _is(int, NoneType)),
    "order_seed": (["training.order_seed"], _is(int, NoneType)),
    "noise_ratio": (["training.noise_ratio", "noise.ratio"], _is(int, float, NoneType)),
    "noise_kind": (["training.noise_kind", "noise.kind"], _is(str, NoneType)),
    "noise_seed": (["training.noise_seed"], _is(int, NoneType)),
    "front": (["training.front"], _is_training),
    "back": (["training.back"], _is_training),
}


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

    Raises MemtoolError if the file has none or has broken ones, if it is of a later format, and if
    it is of another kind than `kind`.
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
        raise MemtoolError(f"{path}: is a {found:.40} file, not a {kind} file")
    _check(path, metadata)
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
        own = tensor.detach().cpu().contiguous()
        memory = own.untyped_storage().data_ptr()
        separate[name] = own.clone() if memory in memories else own
        memories.add(memory)
    with replacing_safetensors(path) as temporary:
        save_file(separate, temporary, encoded(kind, metadata))


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
    tensors: dict[str, Stored] = {}
    for shard, names in shards_of(path).items():
        if is_pickle(shard):
            target = path.with_name(f"{path.name.partition('.')[0]}.safetensors")
            raise MemtoolError(
                f"{path}: lists pickles of PyTorch's; make a checkpoint of them: "
                f"memtool convert {path} -o {target}"
            )
        found = _stored_in(shard)
        check_shard(path, shard, names, list(found))
        tensors |= found
    return tensors


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


def _check(path: Path, metadata: Metadata) -> None:
    """Raise MemtoolError unless the metadata have the sections of their kind, and every field that
    memtool reads is of the right type."""
    for section in SECTIONS.get(metadata["kind"], ()):
        if not isinstance(metadata.get(section), dict):
            raise MemtoolError(f"{path}: its memtool metadata has no {section!r}")
    for name, (places, is_sensible) in FIELDS.items():
        for place in places:
            section, _, key = place.rpartition(".")
            fields = metadata.get(section, {}) if section else metadata
            if key in fields and not is_sensible(fields[key]):
                raise MemtoolError(f"{path}: its memtool metadata has no sensible {name!r}")
