"""What a file is that turned out not to be what was expected, by its first bytes, and the way out.

Files are called .safetensors or .npz that are pointers of Git LFS, the login page of a web site,
half a download, or weights of another framework. `described` tells them apart for error messages;
nothing is read but the beginning of a file and the table of contents of an archive.
"""

import errno
import fnmatch
import json
import os
import re
import shlex
import string
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from memtool import MemtoolError
from memtool.errors import some, told_size
from memtool.paths import is_special

START = 1024  # bytes that are looked at
MAX_RATIO = 100  # an archive that unpacks to more than so many times its size is a trap
HARMLESS = 64 * 2**20  # bytes; so much may come out of any archive
PORTION = 2**20  # bytes that are read at a time
MAX_TEXT = 32 * 2**20  # bytes; far more than any description needs
MAX_HEADER = 100_000_000  # bytes; safetensors itself reads no larger one

AGAIN = "download or copy it again"
OTHER = "name another file"
TABLE = "memtool plot draws those of memtool, and make-noisy --from takes labels from one"
# Ways out where weights are expected, not data.
PYTORCH = "memtool reads networks of PyTorch: copy the weights to one and save its state_dict()"
CONVERT = "make a checkpoint of it: {convert}"

# How files begin, what they are then, and the way out.
MAGICS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (of Keras or h5py, say)", PYTORCH),
    (b"GGUF", "a GGUF file (of llama.cpp, say)", PYTORCH),
    (b"MATLAB 5.0", "a MATLAB file", PYTORCH),
    (b"\x93NUMPY", "a NumPy array", OTHER),
    (b"PAR1", "a Parquet file", OTHER),
    (b"ARROW1", "an Arrow file", OTHER),
    (b"SQLite format 3\0", "an SQLite database", OTHER),
    (b"\x89PNG\r\n\x1a\n", "a PNG image", OTHER),
    (b"\xff\xd8\xff", "a JPEG image", OTHER),
    (b"%PDF", "a PDF document", OTHER),
    (b"\x7fELF", "a program", OTHER),
    (b"\x28\xb5\x2f\xfd", "a file compressed by zstd", "unpack it: zstd -d {path}"),
    (b"\xfd7zXZ\0", "a file compressed by xz", "unpack it: xz -d {path}"),
    (b"BZh", "a file compressed by bzip2", "unpack it: bunzip2 {path}"),
    (b"\x78\x9c", "a file compressed by zlib", OTHER),
    (b"\x04\x22\x4d\x18", "a file compressed by lz4", "unpack it: lz4 -d {path}"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it: 7z x {path}"),
    (b"Rar!", "a RAR archive", "unpack it: unrar x {path}"),
)
# Files by which folders are known, likewise.
FOLDERS = (
    ("saved_model.pb", "a folder of TensorFlow's (SavedModel)", PYTORCH),
    (
        "*.distcp",
        "a distributed checkpoint of PyTorch's",
        "join it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} all.pth",
    ),
    (
        "zero_to_fp32.py",
        "a checkpoint of DeepSpeed's",
        "join it: python {path}/zero_to_fp32.py {path} all.pth",
    ),
    ("data.pkl", "a file of torch.save that was unpacked", "pack it: zip -0 -r {path}.pth {path}"),
)


@dataclass(frozen=True)
class Content:
    """What a file is, with its article, and the way out, in which {path} is the file and {convert}
    the command that makes a checkpoint of it."""

    what: str
    way_out: str


PICKLE = Content("a pickle of PyTorch's", CONVERT)


def described(path: Path, weights: bool = True) -> str | None:
    """What the file or folder at `path` is, and the way out, in words that follow "is"; None if
    that is not known, or it cannot be read.

    `weights` says that weights were expected; else the ways out that are about them are left out.
    """
    content = _recognized(path)
    if content is None:
        return None
    if not weights and content.way_out in (PYTORCH, CONVERT):
        return content.what
    way_out = content.way_out.replace("'{path}'", repr(str(path)))  # in Python; else for a shell
    for name, text in (("{path}", shlex.quote(str(path))), ("{convert}", conversion(path))):
        way_out = way_out.replace(name, text)
    return f"{content.what}; {way_out}"


def conversion(path: Path, model: str | None = None) -> str:
    """The command, for a shell, that makes a checkpoint beside a pickle, or an index of pickles, of
    the `model` that was typed, if any; under a name that is not taken, as by a pickle that is
    called .safetensors itself."""
    stem = os.path.splitext(str(path).removesuffix(".index.json"))[0]
    ending = ".converted.safetensors" if os.path.lexists(f"{stem}.safetensors") else ".safetensors"
    typed = ["--model", model] if model else []
    return shlex.join(["memtool", "convert", str(path), *typed, "-o", stem + ending])


def is_pickle(path: Path) -> bool:
    """Whether a file is one that `torch.save` or `pickle.dump` wrote, by its first bytes and by
    what is in it if it is a zip archive."""
    return _recognized(path) is PICKLE


def check_regular(path: Path) -> None:
    """Raise MemtoolError for a pipe or a device, which might keep a command waiting for ever."""
    if is_special(path):
        raise MemtoolError(f"{path}: is a pipe or a device; write what it gives to a file first")


def check_unpacked(archive: zipfile.ZipFile, size: int) -> None:
    """Raise ValueError if an archive, a file of `size` bytes, says that it unpacks to absurdly
    much; nothing is unpacked."""
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > max(HARMLESS, MAX_RATIO * size):
        raise ValueError(
            f"it unpacks to absurdly much, {unpacked:,} bytes out of {size:,}; if that is right, "
            "save it without compression"
        )


def limited(file: IO[bytes], most: int) -> bytes:
    """All that a file holds. Raises OSError, as the system does, if that is more than `most` bytes;
    no more are read, even if the file never ends (`/dev/zero`)."""
    size = 0
    with suppress(OSError, AttributeError):  # what stands for stdin may have no number
        size = os.fstat(file.fileno()).st_size
    parts: list[bytes] = []
    read = 0
    while max(size, read) <= most and (part := file.read(PORTION)):  # no room for all is made
        parts.append(part)
        read += len(part)
    if max(size, read) > most:
        raise OSError(errno.EFBIG, f"it is larger than {told_size(most)}")
    return b"".join(parts)


def read_text(path: Path) -> str:
    """A text file of at most MAX_TEXT bytes. Raises OSError if it is larger, and MemtoolError for a
    pipe or a device."""
    check_regular(path)
    with open(path, "rb") as file:
        return limited(file, MAX_TEXT).decode("utf-8-sig")


def read_json(path: Path, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The JSON in a file, read as by `read_text`; ValueError for anything else, however it is
    broken. `pairs` is json's `object_pairs_hook`."""
    try:
        return json.loads(read_text(path), object_pairs_hook=pairs)
    except RecursionError as error:
        raise ValueError("it is nested absurdly deep") from error


def _recognized(path: Path) -> Content | None:
    try:
        if path.is_dir():
            return _folder(path)
        if not path.is_file():  # reading from a pipe would take from it
            return None
        with open(path, "rb") as file:
            start = file.read(START)
        if _is_safetensors(start):
            return _cut_short(start, path)
        for recognize in (_by_magic, _archive, _pickle, _protobuf, _text, _short):
            if content := recognize(start, path):
                return content
    except OSError:
        pass
    return None


def _by_magic(start: bytes, path: Path) -> Content | None:
    """Files that begin with a number of their own, and those that begin with nothing."""
    if not start.strip(b"\0"):
        zeros = "a file of zeros, as unfinished downloads leave them"
        return Content(zeros if start else "an empty file", AGAIN)
    if start[4:8] == b"TFL3":
        return Content("a TensorFlow Lite model", PYTORCH)
    if start.startswith(b"\x1f\x8b"):
        is_tar = ".tar" in path.suffixes or path.suffix == ".tgz"
        return Content(
            "a file compressed by gzip", f"unpack it: {'tar -xf' if is_tar else 'gunzip'} {{path}}"
        )
    if re.match(rb"([\x81-\x8f]|\xde..)[\xa1-\xbf][ -~]", start):
        return Content("a MessagePack file (of Flax, say)", PYTORCH)
    if _ends_with_table(path):
        return Content("the index of a TensorFlow checkpoint", PYTORCH)
    known = ((what, way_out) for magic, what, way_out in MAGICS if start.startswith(magic))
    return next((Content(*found) for found in known), None)


def _ends_with_table(path: Path) -> bool:
    """Whether a file ends as the sorted tables of TensorFlow do."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 8))
        return file.read() == b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"


# --- Archives -------------------------------------------------------------------------------------


def _archive(start: bytes, path: Path) -> Content | None:
    if start.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                return _zip(archive.namelist())
        except Exception:  # zipfile raises a dozen kinds for broken files
            return Content("a zip archive (as torch.save writes) that is cut short", AGAIN)
    return _tar(path) if start[257:262] == b"ustar" else None


def _zip(names: list[str]) -> Content:
    files = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in files and any("/code/" in f"/{name}" for name in names):
        return Content(
            "a TorchScript archive",
            "save its weights where it comes from: "
            "safetensors.torch.save_model(torch.jit.load('{path}'), 'weights.safetensors')",
        )
    if "data.pkl" in files:
        return PICKLE
    if files & {"archive_format", "serialized_exported_program.json"}:
        return Content(
            "a program of torch.export",
            "save its weights where it comes from: "
            "torch.save(torch.export.load('{path}').state_dict, 'weights.pth')",
        )
    if "model.weights.h5" in files:
        return Content("a Keras archive", PYTORCH)
    if all(name.endswith(".npy") for name in names):
        return Content(f"a NumPy archive of {_escaped(names)}", OTHER)
    return Content(f"a zip archive of {_escaped(names)}", "unpack it: unzip {path}")


def _tar(path: Path) -> Content:
    names = []
    with suppress(Exception), tarfile.open(path, "r:") as archive:
        names = [member.name for member, _ in zip(archive, range(4), strict=False)]
    if {"storages", "tensors", "pickle", "sys_info"} & set(names):
        return Content(
            "a tar archive as PyTorch wrote before 0.1.10", "load it in PyTorch and save it again"
        )
    return Content(f"a tar archive of {_escaped(names)}", "unpack it: tar -xf {path}")


def _escaped(names: list[str]) -> str:
    """A few of the names in an archive, which may hold anything."""
    return some([repr(name)[1:-1][:60] for name in names[:4]])


# --- Files without a number of their own ----------------------------------------------------------


def _is_safetensors(start: bytes) -> bool:
    """Whether a file begins as safetensors do: the length of a header in JSON, then that."""
    return start[8:9] == b"{" and 0 < int.from_bytes(start[:8], "little") <= MAX_HEADER


def _cut_short(start: bytes, path: Path) -> Content | None:
    """A safetensors file that ends before the last of its tensors; None if it does not."""
    header, size = int.from_bytes(start[:8], "little"), path.stat().st_size
    with open(path, "rb") as file:
        file.seek(8)
        ends = re.findall(
            rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d{1,18})\s*\]', file.read(header)
        )
    whole = 8 + header + max(map(int, ends), default=0)
    if size >= whole:
        return None
    least = "at least " if size < 8 + header else ""
    return Content(
        f"a safetensors file that is cut short ({size:,} bytes of {least}{whole:,})", AGAIN
    )


def _pickle(start: bytes, path: Path) -> Content | None:
    """Pickles of protocols 2 to 5, and of 0 and 1 where they begin with a dict or a class."""
    later = re.match(rb"\x80[\x02-\x05]", start)
    return PICKLE if later or re.match(rb"\(dp\d|}q[\x00-\x02]|c[a-z_.]+\n\w+\n", start) else None


def _protobuf(start: bytes, path: Path) -> Content | None:
    """ONNX and TensorFlow's graphs: first a version, then one of the fields that may follow it."""
    if path.suffix == ".pb" or re.match(rb"\x08[\x01\x02]\x12", start):
        return Content("a graph of TensorFlow", PYTORCH)
    if path.suffix == ".onnx" or re.match(rb"\x08[\x03-\x20][\x12\x1a\x22\x28\x32\x3a\x42]", start):
        return Content("an ONNX model", PYTORCH)
    return None


def _text(start: bytes, path: Path) -> Content | None:
    text = _decoded(start).strip()
    if not text or not all(char.isprintable() or char in string.whitespace for char in text):
        return None
    for recognize in (_pointer, _page, _table):
        if content := recognize(text, path):
            return content
    kind = "JSON" if re.match(r'\{\s*("|\}|$)|\[\s*[\]\[{"\d-]', text) else "text"
    beginning = " ".join(text[:200].split())[:60]
    return Content(f"{kind} that begins with {beginning!r}", f"{OTHER}, or {AGAIN}")


def _short(start: bytes, path: Path) -> Content | None:
    """A file with less than the number by which safetensors begin."""
    return Content(f"a file of {len(start)} bytes, cut short", AGAIN) if len(start) < 9 else None


def _decoded(start: bytes) -> str:
    """The text that bytes of UTF-8 (or 16, if they say so) begin with, whose last character may be
    cut; empty if they are none."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return start[: len(start) // 2 * 2].decode("utf-16", "ignore")
    for end in range(len(start), max(0, len(start) - 4), -1):
        with suppress(UnicodeDecodeError):
            return start[:end].decode("utf-8-sig")
    return ""


def _pointer(text: str, path: Path) -> Content | None:
    if not text.startswith("version https://git-lfs.github.com/spec/"):
        return None
    size = re.search(r"^size (\d{1,15})$", text, re.MULTILINE)
    stands_for = f"a file of {int(size[1]):,} bytes" if size else "a file"
    return Content(f"a Git LFS pointer, which stands for {stands_for}", "fetch that: git lfs pull")


def _page(text: str, path: Path) -> Content | None:
    if re.match(
        r"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<(!doctype html|html|head)\b", text, re.I | re.S
    ):
        title = re.search(r"<title[^>]*>\s*(.{1,60}?)\s*<", text, re.I | re.S)
        told = f" ({' '.join(title[1].split())!r})" if title else ""
        return Content(
            f"a web page{told}",
            "open its address in a browser: the download may want a login, or another link",
        )
    if text.startswith("<?xml"):
        told = " ".join(re.sub(r"<[^>]*>", " ", text).split())[:60]
        return Content(f"XML ({told!r})", AGAIN)
    return None


def _table(text: str, path: Path) -> Content | None:
    """CSV whose first line, of which the end may not have been read, has three names or more."""
    header = text.partition("\n")[0].strip()
    if not re.fullmatch(r"\w+([,;\t])\w+(\1\w*)+", header):
        return None
    names = re.findall(r"\w+", header)
    return Content(f"a table with the columns {some(names)}", TABLE)


# --- Folders --------------------------------------------------------------------------------------


def _folder(path: Path) -> Content:
    """What a folder of weights is, or which file in it may be meant."""
    names = sorted(entry.name for entry in path.iterdir())
    for pattern, what, way_out in FOLDERS:
        if fnmatch.filter(names, pattern):
            return Content(what, way_out)
    for suffix in (".safetensors.index.json", ".safetensors", ".bin", ".pth", ".pt"):
        if found := [name for name in names if name.endswith(suffix)]:
            files = " or ".join(str(path / name) for name in found[:3])
            return Content("a folder", f"name a file in it: {files}{', ...' * (len(found) > 3)}")
    return Content("a folder", "name a file")
