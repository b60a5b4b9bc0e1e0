"""Weights in several files, shards, of which an index (`model.safetensors.index.json`) says which
has which tensors; transformers and accelerate write them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memtool import MemtoolError
from memtool.contents import described, read_json
from memtool.errors import shortened, some

MAX_NAME = 255  # bytes, in most file systems
PART = re.compile(r"(?P<stem>.+)-(?P<part>\d+)-of-(?P<parts>\d+)(?P<suffix>\.\w+)")


def is_index(path: Path) -> bool:
    """Whether a file is an index of shards, by its name."""
    return path.name.endswith(".index.json")


def shards_of(path: Path) -> dict[Path, list[str]]:
    """The files that an index lists, and the names of the tensors in each.

    They are beside the index, whatever it says. Raises MemtoolError if it cannot be read, names
    files elsewhere or the same tensor twice, and if some of the files are not there.
    """
    shards: dict[Path, list[str]] = {}
    for name, file in _weight_map(path).items():
        if not _is_name(file):
            raise MemtoolError(
                f"{path}: says that {shortened(repr(name))} is in {shortened(repr(file))}, which "
                "is no file beside it"
            )
        shards.setdefault(path.with_name(file), []).append(name)
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise MemtoolError(
            f"{path}: {len(missing)} of its {len(shards)} files {_are(missing)} missing "
            f"({some(missing)}); put them beside it"
        )
    return shards


def _is_name(text: str) -> bool:
    """Whether a text may be the name of a file in a folder."""
    letters = re.fullmatch(r"[^/\\\0\ud800-\udfff]+", text)
    return bool(letters) and len(text.encode()) <= MAX_NAME and text not in (".", "..")


def _weight_map(path: Path) -> dict[str, str]:
    """The name of the file for each name of a tensor."""
    try:
        match read_json(path, _unique):
            case {"weight_map": dict(files)} if files and all(
                isinstance(file, str) for file in files.values()
            ):
                return files
        raise ValueError("it has no weight_map from tensors to files")
    except FileNotFoundError as error:
        raise MemtoolError(f"{path}: no such file") from error
    except OSError as error:
        raise MemtoolError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        told = described(path)
        if told and not told.startswith("JSON"):
            raise MemtoolError(f"{path}: is {told}") from error
        raise MemtoolError(f"{path}: not an index of shards ({error})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, each of whose keys stands there once."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"it has {key!r} twice")
        content[key] = value
    return content


def check_shard(index: Path, shard: Path, listed: Sequence[str], found: Sequence[str]) -> None:
    """Raise MemtoolError unless the tensors in a shard are those that the index lists for it."""
    if missing := sorted(set(listed) - set(found)):
        raise MemtoolError(
            f"{shard}: has not the tensors that {index.name} says it has ({some(missing)})"
        )
    if more := sorted(set(found) - set(listed)):
        raise MemtoolError(
            f"{shard}: has tensors that are in another file or in none for {index.name} "
            f"({some(more)})"
        )


def check_whole(path: Path) -> None:
    """Raise MemtoolError if a file is, by its name, one of several shards: their index is wanted.

    >>> check_whole(Path("model-00001-of-00001.safetensors"))
    """
    found = PART.fullmatch(path.name)
    if found is None or int(found["parts"]) < 2:
        return
    part, parts = int(found["part"]), int(found["parts"])
    index = path.with_name(f"{found['stem']}{found['suffix']}.index.json")
    width = len(found["part"])
    others = [
        f"{found['stem']}-{number:0{width}}-of-{found['parts']}{found['suffix']}"
        for number in range(1, min(parts, 1000) + 1)
    ]
    missing = [name for name in others if not path.with_name(name).is_file()]
    missing += [] if index.is_file() else [index.name]
    way_out = f"; put {some(missing)} beside it, and" if missing else ";"
    raise MemtoolError(f"{path}: is part {part} of {parts}{way_out} name {index}")


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
