"""Damaged files of every kind and odd arguments, given to the commands.

    python tests/fuzz.py [--inputs 100000] [--seed 0] [--hours 0] [--jobs 2] [--only READER]
        [--keep FOLDER] [--guided]

Each input is a whole file, changed at random: bytes, or the JSON, cells, arrays or members in it;
or the arguments of a command, with odd values and further options. A command must end with exit
code 0, 1 or 2, and on failure with one short line that a terminal can show. Counted as failures are
tracebacks, other programs that were started, more than 1 GiB of memory beyond what the process had,
more than 20 seconds of a processor, and files left behind. An input follows from the seed, the
reader and its number alone: what failed is printed as one line that runs it again, and is kept in
--keep. With --hours, further seeds follow until the time is over. `test_fuzz.py` runs a few of
each, and all that once failed.

With --guided, atheris (`pip install atheris`; Linux) changes further those inputs that reached new
lines of memtool, beginning with the whole files and with those that once failed.
"""

import argparse
import functools
import io
import itertools
import json
import lzma
import multiprocessing
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

ROOM = 1 << 30  # bytes that a command may take beyond what the process had
SECONDS = 20  # of a processor
PATIENCE = 10  # times as long by the clock, on a machine that others use
LONGEST = 1000  # characters of what is told of a failure
LARGEST = 1_000_000  # bytes of a file that atheris makes

Content = bytes
Mutator = Callable[[random.Random, Content], Content]

# --- Mutators -------------------------------------------------------------------------------------

NUMBERS = [0, -1, 1, 2, 7, 99, 255, 256, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0]
ODD: list[Any] = [
    *NUMBERS,
    *(None, True, False, "", "x", "\ud800", "\x1b[31m", "\0", "a\nb", "../../etc/passwd"),
    *("1e400", "nan", "inf", "-1", "\u202e", "é" * 50, "a" * 20_000, "*" * 50, "%s{}"),
    *([], {}, [[]], [None], [1, "a"], {"": None}, [1] * 1000, [1e308, -1e308]),
]
TEXTS = ["NaN", "Infinity", "1e400", "-1e999", "[" * 2000, '{"a":' * 500, "0" * 5000, '"\\ud800"']


def bytes_changed(random: random.Random, content: Content) -> Content:
    """A few bytes overwritten, removed, doubled, or the end cut off."""
    changed = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 5, 20])):
        place = random.randrange(len(changed) + 1)
        # The beginning of a file is where its structure is.
        place = min(place, random.choice([16, 128, 2000, len(changed)]))
        length = random.choice([1, 1, 2, 4, 8, 64])
        change = random.randrange(5)
        if change == 0:
            changed[place : place + length] = random.randbytes(length)
        elif change == 1:
            del changed[place : place + length]
        elif change == 2:
            changed[place:place] = changed[place : place + length]
        elif change == 3:
            special = random.choice([b"\xff", b"\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"])
            changed[place : place + len(special)] = special
        else:
            del changed[place:]
    return bytes(changed)


def json_changed(random: random.Random, content: Content) -> Content:
    """JSON of which a few values are removed, renamed or replaced by odd ones."""
    value = json.loads(content)
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        value = _changed(random, value)
    text = json.dumps(value)
    if random.random() < 0.1:  # what json.dumps cannot write
        places = [place for place, letter in enumerate(text) if letter in "0123456789"]
        if places:
            place = random.choice(places)
            text = text[:place] + random.choice(TEXTS) + text[place + 1 :]
    return text.encode()


def _changed(random: random.Random, value: Any) -> Any:
    """A value with one of its parts, at any depth, changed."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(sorted(value))
        change = random.random()
        rest = {name: part for name, part in value.items() if name != key}
        if change < 0.15:
            return rest
        if change < 0.25:
            return {**rest, f"{key}{random.choice(['', 'x', chr(27)])}_": value[key]}
        return {**value, key: _changed(random, value[key])}
    if isinstance(value, list) and value and random.random() < 0.8:
        place = random.randrange(len(value))
        change = random.random()
        if change < 0.2:
            return value[:place] + value[place + 1 :]
        if change < 0.3:
            return value[:place] + value[place : place + 1] * random.choice([2, 50]) + value[place:]
        return [*value[:place], _changed(random, value[place]), *value[place + 1 :]]
    return random.choice(ODD)


def lines_changed(random: random.Random, content: Content) -> Content:
    """A table in which cells, columns or lines are odd."""
    rows = [line.split(",") for line in content.decode().split("\n")]
    for _ in range(random.choice([1, 1, 2, 4])):
        row = random.choice(rows)
        change = random.random()
        if change < 0.6:
            row[random.randrange(len(row))] = _as_cell(random.choice(ODD))
        elif change < 0.7:
            rows.insert(random.randrange(len(rows) + 1), list(row))
        elif change < 0.8:
            rows.remove(row)
            rows = rows or [[""]]
        elif change < 0.9:
            place = random.randrange(len(row))
            rows = [line[:place] + line[place : place + 1] + line[place:] for line in rows]
        else:
            del row[random.randrange(len(row))]
            row.append("")
    return "\n".join(map(",".join, rows)).encode("utf-8", "surrogatepass")


def _as_cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return '"' + text.replace('"', '""') + '"' if set(text) & set('",\n') else text


def settings_changed(random: random.Random, content: Content) -> Content:
    """A style file with other values, or other names."""
    lines = [line.split(": ") for line in content.decode().splitlines()]
    for _ in range(random.choice([1, 1, 2])):
        random.choice(lines)[random.randrange(2)] = _as_cell(random.choice(ODD))
    return "\n".join(map(": ".join, lines)).encode("utf-8", "surrogatepass")


def json_lines_changed(random: random.Random, content: Content) -> Content:
    lines = content.split(b"\n")
    place = random.randrange(len(lines))
    lines[place] = json_changed(random, lines[place]) if lines[place].strip() else b"[]"
    return b"\n".join(lines)


def safetensors_changed(random: random.Random, content: Content) -> Content:
    """A header, or the metadata of memtool's in it, changed; the lengths stay right."""
    size = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + size]), content[8 + size :]
    metadata = header.get("__metadata__", {})
    change = random.random()
    if "memtool" in metadata and change < 0.7:
        text = json_changed(random, metadata["memtool"].encode()).decode()
        header["__metadata__"] = {**metadata, "memtool": text}
    elif change < 0.8:
        shape = random.choice([[0], [1], [2**40], [10**9, 10**9], [-1], [1] * 2000])
        name = random.choice(sorted(header))
        header[name] = {"dtype": random.choice(["F32", "I64"]), "shape": shape}
        header[name]["data_offsets"] = random.choice([[0, 0], [0, 8], [8, 0], [0, 2**62]])
    encoded = json.dumps(header).encode()
    if change >= 0.8:
        encoded = json_changed(random, encoded)
    return struct.pack("<Q", len(encoded)) + encoded + rest


def arrays_changed(random: random.Random, content: Content) -> Content:
    """A label file or a file of arrays, one array of which is of another type, shape or value."""
    import numpy as np
    from safetensors.numpy import load, save

    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size]).get("__metadata__")
    arrays = load(content)
    name = random.choice(sorted(arrays))
    arrays[name] = _other_array(random, arrays[name])
    if arrays[name] is None:
        del arrays[name]
    return save({key: np.ascontiguousarray(value) for key, value in arrays.items()}, metadata)


def _other_array(random: random.Random, array: Any) -> Any:
    import numpy as np

    array = np.atleast_1d(array)
    shapes = [(), (0,), (1,), (0, 3, 8, 8), (len(array), 0), (1, 1, 1, 1, 1)]
    if array.size and (change := random.random()) < 0.3:
        changed = array.copy()
        changed.flat[random.randrange(array.size)] = random.choice([0, 1, 99, 120])
        return changed
    elif array.size and change < 0.6:
        with np.errstate(all="ignore"):
            return array.astype(random.choice(["f4", "f8", "i1", "u1", "i8", "?", "u8", "f2"]))
    return random.choice(
        [
            None,
            array[:-1],
            array[:0],
            array[None],
            np.full(array.shape, np.nan, "f4"),
            np.full(array.shape, -1, "i8"),
            np.full(array.shape, 2**62, "i8"),
            np.zeros(random.choice(shapes), random.choice(["f4", "u1", "i8"])),
        ]
    )


def archive_changed(random: random.Random, content: Content) -> Content:
    """A zip archive one member of which is changed, missing, or blown up."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = random.choice(sorted(members))
    change = random.randrange(5)
    if change == 0:
        del members[name]
    elif change == 1:
        members[f"../{name}"] = members.pop(name)
    elif change == 2:
        members[name] += bytes(random.choice([1, 10**6, 10**8]))
    else:
        members[name] = bytes_changed(random, members[name])
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return stream.getvalue()


def bomb(random: random.Random, content: Content) -> Content:
    """An array of zeros that is a thousand times as large as its file."""
    count = random.choice([10**8, 10**9])
    head = {"descr": "|u1", "fortran_order": False, "shape": (count // 3072, 3, 32, 32)}
    text = repr(head).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    magic = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("x_train.npy", "x_test.npy"):
            with archive.open(name, "w") as member:
                member.write(magic)
                for _ in range(0, count, 10**7):
                    member.write(bytes(10**7))
    return stream.getvalue()


bombs = functools.cache(lambda which: bomb(random.Random(which), b""))


WORDS = (
    *("", "0", "-1", "1", "2", "0.5", "-0.5", "150%", "1e400", "nan", "inf", "1" * 5000, "9" * 20),
    *("x", "*", "[a-", "(", "\\", "'", ",", "a,b", ",,", "block?", "block1,,fc", "%s", "{0}"),
    *("\x1b[31m", "\udcff", "\u202e", "a\nb", "é" * 300, "a" * 20_000, "-", "--help", "0,1"),
    *("/", ".", "..", "/dev/null", "no/such/file", "a.safetensors", "a.csv", "a.png", "clean.csv"),
    *("folder:", "folder:photos", "folder:no?x=1", "digits?", "digits?samples=0", "?", "a?b&c=d"),
    *("digits?image_size=99999", "digits?samples=1e9", "resnet18?width=0", "cnn?width=999999999"),
    *("torchvision:", "torchvision:no", "timm:no", "no.py:f", "no.json", "auto", "cuda:99", "meta"),
    *("all", "none", "last", "linear", "exact", "1GiB", "0GiB", "1XB", "1e30GiB", "1KiB"),
)
READ = ("clean.safetensors", "small.safetensors", "labels.safetensors", "train.csv", "cka.jsonl")
WRITES = ("-o", "--output", "--table", "--save")  # options that must not overwrite a whole file
LONG = ("--compile", "--epochs")  # what is left out, since it may rightly take long


@functools.cache
def _options_of(command: str) -> list[tuple[str, bool]]:
    """The options of a command, and whether each takes a value."""
    import typer

    from memtool.cli import app

    params = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    options = [param for param in params if param.param_type_name == "option"]
    return [(name, not param.is_flag) for param in options for name in param.opts]


def arguments_changed(random: random.Random, content: Content) -> Content:
    """Other values, further options; the arguments of a command, as a list in JSON."""
    words = json.loads(content)
    for _ in range(random.randint(1, 2)):
        place = random.randrange(1, len(words))
        option, has_value = random.choice(_options_of(words[0]))
        if random.random() < 0.2 and words[place - 1] not in (*WRITES, *LONG):
            words[place] = random.choice(WORDS)
        elif option not in LONG:
            values = WORDS if option in WRITES else (*WORDS, *READ)
            words += [option, random.choice(values)] if has_value else [option]
    return json.dumps(words).encode()


def rarely_bomb(random: random.Random, content: Content) -> Content:
    """An archive that is changed, or one out of two that take far more memory than their files."""
    return (
        bombs(random.randrange(2)) if random.random() < 0.002 else archive_changed(random, content)
    )


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"


def other_format(random: random.Random, content: Content) -> Content:
    """The image in another format, known or not, or none."""
    from PIL import Image

    starts = [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"%PDF-1.4\n",
        b"<svg/>",
        b"P6\n",
    ]
    if random.random() < 0.3:
        return random.choice(starts) + content
    stream = io.BytesIO()
    size = random.choice([(8, 8), (1, 1), (8, 9), (5000, 2), (0, 8)])
    mode = random.choice(["RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "F"])
    format = random.choice(
        ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "EPS", "ICO", "PDF"]
    )
    try:
        Image.new(mode, size).save(stream, format)
    except Exception:  # not every format has every mode
        return b"GIF89a" + content
    return bytes_changed(random, stream.getvalue()) if random.random() < 0.5 else stream.getvalue()


# --- Readers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """A kind of file: what one is called, how it is damaged, and the commands that read it.

    In the commands, FILE is the damaged file and OUT the beginning of the name of an output; all
    other names are of files that `prepare` makes. `whole` are the names of those to begin with.
    The command ARGUMENTS is the content of the file itself.
    """

    name: str
    file: str
    whole: Sequence[str]
    mutators: Sequence[Mutator]
    commands: Sequence[str]


TENSORS = [bytes_changed, safetensors_changed, safetensors_changed]
ARRAYS = [*TENSORS, arrays_changed]
TEXT = [bytes_changed, lines_changed, lines_changed]
JSON = [bytes_changed, json_changed, json_changed]
LINES = [bytes_changed, json_lines_changed]
ARCHIVE = [bytes_changed, archive_changed]

TRAIN = "train --model digits-cnn -o OUT.safetensors"
NOISE = "make-noisy FILE -r 50% -o OUT.safetensors"
PREPARED = "cka foreign/x.safetensors foreign/x.safetensors --data folder:photos --layers fc"
DOWNLOADED = "make-noisy mnist --data-dir data -r 50% -o OUT.safetensors"
MNIST = "data/MNIST/raw"
OTHERS = "make-noisy small.safetensors --from FILE -o OUT.safetensors"
PLOT = "plot FILE -o OUT.svg"
ARGUMENTS = "ARGUMENTS"  # those in the file
COMMANDS = {
    "make-noisy.words": "make-noisy small.safetensors -r 50% -o out.safetensors",
    "train.words": "train --model digits-cnn --data small.safetensors --epochs 1 "
    "-o out.safetensors",
    "cka.words": "cka clean.safetensors clean.safetensors",
    "stitch.words": "stitch clean.safetensors clean.safetensors --at block1 --epochs 0",
    "plot.words": "plot train.csv -o out.svg",
    "info.words": "info clean.safetensors",
    "layers.words": "info --layers clean.safetensors",
    "convert.words": "convert weights.pth --model digits-cnn?num_classes=4 -o out.safetensors",
    "report.words": "report done",
    "reproduce.words": "reproduce digits --ratios 0 -o done --dry-run",
}

READERS = [
    Reader(
        *("checkpoint", "x.safetensors", ["clean.safetensors", "stitched.safetensors"], TENSORS),
        ["info FILE", "info --layers FILE", "cka FILE clean.safetensors --layers block1,fc"],
    ),
    Reader(
        *("front", "x.safetensors", ["clean.safetensors"], TENSORS),
        ["stitch FILE clean.safetensors --at block1 --epochs 0"],
    ),
    Reader(
        *("labels", "x.safetensors", ["labels.safetensors"], ARRAYS),
        ["info FILE", f"{TRAIN} --labels FILE --epochs 1"],
    ),
    Reader(
        *("state", "OUT.state.safetensors", ["stopped.state.safetensors"], ARRAYS),
        [f"{TRAIN} --labels labels.safetensors --epochs 2 --resume"],
    ),
    Reader(
        *("finished", "OUT.safetensors", ["clean.safetensors"], TENSORS),
        [f"{TRAIN} --data small.safetensors --epochs 1 --resume"],
    ),
    Reader(
        *(
            "partial",
            "OUT.csv.partial",
            ["stopped.csv.partial"],
            [bytes_changed, json_lines_changed],
        ),
        ["stitch clean.safetensors clean.safetensors --at block1 --epochs 0 -o OUT.csv --resume"],
    ),
    Reader("table", "x.csv", ["cka.csv", "train.csv", "stitch.csv"], TEXT, [PLOT]),
    Reader("heatmap", "x.csv", ["pairs.csv"], TEXT, [PLOT]),
    Reader("lines", "x.jsonl", ["cka.jsonl"], LINES, [PLOT]),
    Reader(
        *("saved", "x.csv", ["stitch.csv"], TEXT),
        ["cka FILE stitched.safetensors --layers back.fc"],
    ),
    Reader(
        *("saved-lines", "x.jsonl", ["stitch.jsonl"], LINES),
        ["cka FILE stitched.safetensors --layers back.fc"],
    ),
    Reader(
        *("annotations", "tiny/val/val_annotations.txt", ["annotations.txt"], TEXT),
        ["make-noisy folder:tiny -r 50% -o OUT.safetensors"],
    ),
    Reader(
        *("image", "photos/train/a/x.png", ["image.png"], [bytes_changed, other_format]),
        ["make-noisy folder:photos -r 50% -o OUT.safetensors"],
    ),
    Reader(
        *("cache", "cache/images-*.safetensors", ["cache.safetensors"], ARRAYS),
        [f"{NOISE} --memory 100B".replace("FILE", "folder:photos")],
    ),
    Reader(
        "idx", f"{MNIST}/train-images-idx3-ubyte", ["images.idx"], [bytes_changed], [DOWNLOADED]
    ),
    Reader(
        *("idx-labels", f"{MNIST}/t10k-labels-idx1-ubyte", ["labels.idx"], [bytes_changed]),
        [DOWNLOADED],
    ),
    Reader("npz", "x.npz", ["small.npz"], [bytes_changed, rarely_bomb], [NOISE]),
    Reader("arrays", "x.safetensors", ["small.safetensors"], ARRAYS, [NOISE]),
    Reader("others", "x.csv", ["given.csv"], TEXT, [OTHERS]),
    Reader("others-pt", "x.pt", ["given.pt"], ARCHIVE, [OTHERS]),
    Reader("others-npy", "x.npy", ["given.npy"], [bytes_changed], [OTHERS]),
    Reader(
        *("pickle", "x.pth", ["weights.pth", "module.pth"], ARCHIVE),
        ["convert FILE --model digits-cnn?num_classes=4 -o OUT.safetensors"],
    ),
    Reader("config", "config.json", ["timm.json"], JSON, ["info --layers weights.safetensors"]),
    Reader(
        *("preparation", "foreign/config.json", ["pretrained.json"], JSON),
        [PREPARED],
    ),
    Reader(
        *("processor", "foreign/preprocessor_config.json", ["processor.json"], JSON),
        [PREPARED],
    ),
    Reader("index", "x.safetensors.index.json", ["two.json"], JSON, ["info FILE"]),
    Reader(
        *("model", "x.json", ["model.json", "stitched.json"], JSON),
        ["train --model FILE --data small.safetensors -o OUT.safetensors --dry-run"],
    ),
    Reader(
        *("matrix", "x.csv", ["matrix.csv"], TEXT),
        ["make-noisy small.safetensors -r 50% --matrix FILE -o OUT.safetensors"],
    ),
    Reader(
        "style",
        "x.mplstyle",
        ["x.style"],
        [bytes_changed, settings_changed],
        ["plot train.csv -o OUT.svg --style FILE"],
    ),
    Reader(
        *("choices", "done/reproduction.json", ["choices.json"], JSON),
        ["report done", "reproduce digits --ratios 0 -o done --dry-run"],
    ),
    Reader(
        *("steps", "done/steps.csv", ["steps.csv"], TEXT),
        ["report done", "reproduce digits --ratios 0 -o done --dry-run"],
    ),
    Reader("arguments", "x.words", list(COMMANDS), [arguments_changed], [ARGUMENTS]),
    Reader("tables", "drawn/tables/training-r0-s0.csv", ["train.csv"], TEXT, ["report drawn"]),
]


def prepare(folder: Path) -> None:
    """Make whole files of every kind, small ones, in `folder`."""
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    from memtool.models import ModelSpec, build
    from memtool.tensors import read_metadata
    from memtool.training import state

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (32, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(32) % 4
    arrays = {"train_images": images, "train_labels": labels}
    arrays |= {"test_images": images[::2].copy(), "test_labels": labels[::2].copy()}
    np.savez(folder / "small.npz", **arrays)
    save_file({name: torch.from_numpy(part) for name, part in arrays.items()}, "small.safetensors")
    np.save("given.npy", labels)
    torch.save({"worse": torch.from_numpy(labels)}, "given.pt")
    Path("given.csv").write_text("label\n" + "\n".join(map(str, labels)) + "\n")
    for name, command in COMMANDS.items():
        Path(name).write_text(json.dumps(command.split()))
    Path("matrix.csv").write_text("\n".join(",".join(map(str, row)) for row in np.eye(4)))
    for number in range(8):
        part = "test" if number >= 4 else "train"
        path = Path("photos") / part / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number, 0]).save(path)
    Image.fromarray(images[0, 0]).save("image.png")
    _tiny_imagenet(Path("photos"), Path("tiny"))
    _downloaded(images[:, 0], labels)
    commands = [
        "make-noisy folder:photos -r 50% --memory 100B -o photos.safetensors",
        "make-noisy small.safetensors -r 50% -o labels.safetensors",
        "train --model digits-cnn --data small.safetensors --epochs 1 -o clean.safetensors "
        "--table train.csv",
        "cka clean.safetensors clean.safetensors -o cka.csv",
        "cka clean.safetensors clean.safetensors -o cka.jsonl",
        "cka clean.safetensors clean.safetensors --pairs all -o pairs.csv",
        "stitch clean.safetensors clean.safetensors --at block1,block2 --control --epochs 0 "
        "--save stitched -o stitch.csv",
        "stitch clean.safetensors clean.safetensors --at block1 --epochs 0 --save stitched "
        "-o stitch.jsonl",
    ]
    for command in commands:
        code, told = run_command(command.split())
        assert code == 0, told
    shutil.copy(next(Path("cache").glob("*")), "cache.safetensors")
    shutil.copy(next(Path("stitched").glob("*.safetensors")), "stitched.safetensors")
    _stop_runs(state)
    _reproduce()
    model = build(ModelSpec.parse("digits-cnn?num_classes=4"))
    torch.save(model.state_dict(), "weights.pth")
    torch.save(model, "module.pth")
    config = {"architecture": "resnet18", "num_classes": 4}
    config["pretrained_cfg"] = {"input_size": [1, 8, 8], "mean": [0.5], "std": [0.2]}
    Path("timm.json").write_text(json.dumps(config))
    save_file({"fc.weight": torch.zeros(4, 512)}, "weights.safetensors")
    Path("foreign").mkdir()
    save_file(model.state_dict(), "foreign/x.safetensors")
    Path("pretrained.json").write_text(json.dumps({"pretrained_cfg": config["pretrained_cfg"]}))
    size = {"height": 8, "width": 8}
    processor = {"size": size, "crop_size": size, "crop_pct": 0.9, "resample": 2}
    processor |= {"image_mean": [0.5], "image_std": [0.2]}
    Path("processor.json").write_text(json.dumps(processor))
    save_file({"a": torch.zeros(1)}, "one-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(1)}, "one-00002-of-00002.safetensors")
    places = {"a": "one-00001-of-00002.safetensors", "b": "one-00002-of-00002.safetensors"}
    Path("two.json").write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": places}))
    for name, source in (("model", "clean"), ("stitched", "stitched")):
        spec = read_metadata(Path(f"{source}.safetensors"))["model"]
        Path(f"{name}.json").write_text(json.dumps(spec))


def _tiny_imagenet(photos: Path, folder: Path) -> None:
    """The same images as Tiny ImageNet has them: those of val in one folder, with a list."""
    lines = []
    for path in sorted(photos.rglob("*.png")):
        part, label = path.parent.parent.name, path.parent.name
        place = folder / (f"train/{label}/images" if part == "train" else "val/images")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
        if part == "test":
            lines.append(f"{path.name}\t{label}\t0\t0\t8\t8\n")
    Path("annotations.txt").write_text("".join(lines))
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))


def _downloaded(images: Any, labels: Any) -> None:
    """The files of MNIST, as it distributes them: type, number of axes, their lengths, numbers."""
    folder = Path(MNIST)
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
            content = header + array.astype("u1").tobytes()
            (folder / f"{part}-{name}-ubyte").write_bytes(content)
    shutil.copy(folder / "train-images-idx3-ubyte", "images.idx")
    shutil.copy(folder / "t10k-labels-idx1-ubyte", "labels.idx")


def _reproduce() -> None:
    """A folder of a reproduction in which there is next to nothing: a report is soon drawn."""
    from memtool.reproduction import RECIPES, Study, write_choices

    Path("done/tables").mkdir(parents=True)
    write_choices(Path("choices.json"), RECIPES[Study.digits].json())
    shutil.copy("train.csv", "done/tables/training-r0-s0.csv")
    step = "train r0-s0,memtool train,runs/r0-s0.safetensors,4.5,500000000,"
    Path("steps.csv").write_text(f"step,command,output,seconds,memory,warnings\n{step}\n")
    Path("x.style").write_text("lines.linewidth: 2\naxes.grid: True\nfont.family: serif\n")


def _stop_runs(state: Any) -> None:
    """Leave the files of a training and of a sweep that were stopped."""
    from memtool.stitching import sweep

    class Stopped(Exception):
        pass

    def stopping(function: Callable[..., Any]) -> Callable[..., Any]:
        def stopped(*arguments: Any) -> None:
            function(*arguments)
            raise Stopped

        return stopped

    training = f"{TRAIN} --labels labels.safetensors --epochs 2".replace("OUT", "stopped")
    sweeping = "stitch clean.safetensors clean.safetensors --at block1,block2 --epochs 0"
    for owner, method, command in (
        (state.State, "save", training),
        (sweep.Unfinished, "keep", f"{sweeping} -o stopped.csv"),
    ):
        function = getattr(owner, method)
        setattr(owner, method, stopping(function))
        try:
            run_command(command.split())
        except Stopped:
            pass
        finally:
            setattr(owner, method, function)


# --- Running --------------------------------------------------------------------------------------


class Hang(BaseException):
    """A command that takes too long."""


started: list[str] = []  # the programs that a command has started


def watch_programs() -> None:
    """Note every program that this process starts from here on."""
    events = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn")

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in events:
            started.append(f"{event} {arguments[:2]!r:.200}")

    sys.addaudithook(note)


def run_command(arguments: Sequence[str]) -> tuple[int, str]:
    """The exit code of `memtool ARGUMENTS` in this process, and what it wrote to stderr. Errors
    that memtool does not expect are raised."""
    from memtool.cli import app

    # As the console script sets its streams.
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in range(2)]
    code: Any = 0
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        try:
            app(list(arguments), prog_name="memtool")
        except SystemExit as done:
            code = done.code or 0
        streams[1].flush()
    return code, streams[1].buffer.getvalue().decode()  # type: ignore[attr-defined]


def peak_memory(since_now: bool = False) -> int:
    """The most bytes of resident memory since the last call with `since_now`, where the system can
    tell that."""
    try:
        if since_now:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@contextmanager
def limited() -> Iterator[None]:
    """Raise Hang in the block after SECONDS of a processor, or a multiple of that by the clock."""

    def stop(number: int, frame: Any) -> None:
        raise Hang

    timers = {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}
    before = {number: signal.signal(number, stop) for number in timers}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE * SECONDS)
    try:
        yield
    finally:
        for number, timer in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def damaged(reader: Reader, seed: int, number: int, folder: Path) -> tuple[Content, str]:
    """An input of a reader, and the command that reads it, which follow from seed and number."""
    chosen = random.Random(f"{seed} {reader.name} {number}")
    content = (folder / chosen.choice(reader.whole)).read_bytes()
    mutator = chosen.choice(reader.mutators)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        changed = mutator(chosen, content)
    return changed, chosen.choice(reader.commands)


def failure(reader: Reader, content: Content, command: str, folder: Path) -> str | None:
    """What is wrong with how a command takes a file; None if nothing is. `folder` is the working
    directory and has whole files of every kind; it is left as it was."""
    path = folder / reader.file.replace("OUT", "out")
    path = next(folder.glob(str(path.relative_to(folder))), path)
    whole = path.read_bytes() if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    before = _names(folder)
    started.clear()
    memory = peak_memory(since_now=True)
    words = command.replace("FILE", path.name).replace("OUT", "out").split()
    if command == ARGUMENTS:
        try:
            words = json.loads(content)
        except ValueError:
            return None
    try:
        with limited():
            code, told = run_command(words)
    except Hang:
        return f"took more than {SECONDS} seconds"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:200]} ({place.filename}:{place.lineno})"
    finally:
        left = _names(folder) - before
        for name in [path, *(folder / name for name in left)]:
            shutil.rmtree(name) if name.is_dir() else name.unlink(missing_ok=True)
        if whole is not None:
            path.write_bytes(whole)
    if started:
        return f"started {started[0]}"
    if (grown := peak_memory() - memory) > ROOM:
        return f"took {grown / 2**30:.1f} GiB"
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if code and any(Path(name).name.startswith(".") for name in left):
        return f"left {sorted(left)}"
    if code == 2:
        return _fault_of_line(told.strip().splitlines()[-1])
    return _fault_of(told) if code else None


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _fault_of(told: str) -> str | None:
    """What is wrong with what a command that failed has told."""
    errors = [line for line in told.splitlines() if line.startswith("memtool: error: ")]
    if len(errors) != 1:
        return f"told {len(errors)} errors: {told[-300:]!r}"
    if "no memory is left" in errors[0]:
        return f"asked for too much memory: {errors[0][:300]!r}"
    return _fault_of_line(errors[0])


def _fault_of_line(told: str) -> str | None:
    if len(told) > LONGEST:
        return f"told {len(told)} characters: {told[:100]!r}"
    return None if told.isprintable() else f"told what no terminal should get: {told[:200]!r}"


@contextmanager
def workplace() -> Iterator[Path]:
    """A temporary working directory with whole files of every kind."""
    with tempfile.TemporaryDirectory(prefix="memtool-fuzz-") as name:
        folder, before, environment = Path(name).resolve(), Path.cwd(), dict(os.environ)
        os.environ["MEMTOOL_CACHE"] = str(folder / "cache")
        os.chdir(folder)
        try:
            prepare(folder)
            yield folder
        finally:
            os.chdir(before)
            os.environ.clear()
            os.environ.update(environment)


def fuzz(task: tuple[Sequence[str], int, range, Path | None]) -> list[str]:
    """Run the inputs of these numbers for each reader; what failed, and how to run it again."""
    names, seed, numbers, keep = task
    failed: list[str] = []
    watch_programs()
    with workplace() as folder:
        for reader in (reader for reader in READERS if reader.name in names):
            for number in numbers:
                content, command = damaged(reader, seed, number, folder)
                if found := failure(reader, content, command, folder):
                    again = f"--only {reader.name} --seed {seed} --first {number} --inputs 1"
                    failed.append(f"{again}: {command}: {found}")
                    print(failed[-1], flush=True)
                    _keep(keep, reader, f"{seed}-{number}", content)
    return failed


def _keep(folder: Path | None, reader: Reader, name: str, content: Content) -> None:
    if folder:
        file = folder / reader.name / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def explore(name: str, seed: int, inputs: int, keep: Path | None, room: str, failed: Any) -> None:
    """Run inputs that atheris chooses for a reader; each kind of failure is put into the queue
    `failed` once. libFuzzer ends this process, so whoever started it removes the folder `room`."""
    import atheris

    reader = next(reader for reader in READERS if reader.name == name)
    numbers, seen = itertools.count(), set()

    def change(content: Content, longest: int, number: int) -> Content:
        chosen = random.Random(number)
        try:
            if chosen.random() < 0.7 or ARGUMENTS in reader.commands:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return chosen.choice(reader.mutators)(chosen, content)[:longest]
        except Exception:  # it wants a file that is still one of its kind
            if ARGUMENTS in reader.commands:
                return content  # other bytes might name any file as an output
        return bytes(atheris.Mutate(content, longest))

    def run(content: Content) -> None:
        number = next(numbers)
        command = random.Random(content).choice(reader.commands)
        found = failure(reader, content, command, folder)
        if found and found not in seen:
            seen.add(found)
            failed.put(f"{name}, guided, seed {seed}, {number}: {command}: {found}")
            _keep(keep, reader, f"guided-{seed}-{number}", content)

    tempfile.tempdir = room
    corpus = Path(room) / "corpus"
    corpus.mkdir()
    for kept in (Path(__file__).resolve().parent / "corpus" / name).glob("*.xz"):
        (corpus / kept.stem).write_bytes(lzma.decompress(kept.read_bytes()))
    limits = ["-timeout=0", "-rss_limit_mb=0", f"-max_len={LARGEST}"]  # `failure` has others
    options = [f"-runs={inputs}", f"-seed={seed}", "-verbosity=0", *limits]
    with atheris.instrument_imports(include=["memtool"]), workplace() as folder:
        for whole in reader.whole:
            shutil.copy(folder / whole, corpus)
        watch_programs()
        atheris.Setup(["fuzz.py", *options, str(corpus)], run, custom_mutator=change)
        atheris.Fuzz()


def explored(name: str, seed: int, inputs: int, keep: Path | None) -> list[str]:
    """What failed of the inputs that atheris chose for a reader, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    failed = context.SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="memtool-fuzz-") as room:
        process = context.Process(target=explore, args=(name, seed, inputs, keep, room, failed))
        process.start()
        process.join()
    lines = []
    while not failed.empty():
        lines.append(failed.get())
    if process.exitcode:
        lines.append(f"{name}, guided, seed {seed}: the fuzzer ended with {process.exitcode}")
    print("".join(f"{line}\n" for line in lines), end="", flush=True)
    return lines


def seeds(first: int, hours: float) -> Iterator[int]:
    """`first`, and those that follow it, until so many hours are over."""
    end = time.monotonic() + 3600 * hours
    yield first
    for seed in itertools.count(first + 1):
        if time.monotonic() >= end:
            return
        yield seed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hours", type=float, default=0, help="to go on with further seeds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=[reader.name for reader in READERS])
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that fail")
    parser.add_argument("--guided", action="store_true", help="by the lines that inputs reach")
    given = parser.parse_args(arguments)
    failures = [run_seed(given, seed) for seed in seeds(given.seed, given.hours)]
    return 1 if any(failures) else 0


def run_seed(given: argparse.Namespace, seed: int) -> int:
    """Run all inputs that were asked for, with one seed; how many failed."""
    names = [given.only] if given.only else [reader.name for reader in READERS]
    each = -(-given.inputs // len(names))
    keep = given.keep.resolve() if given.keep else None
    last = given.first + each
    step = max(1, min(500, -(-each // given.jobs)))
    tasks = [
        (names, seed, range(start, min(start + step, last)), keep)
        for start in range(given.first, last, step)
    ]
    begin = time.monotonic()
    if given.guided:
        with ThreadPool(given.jobs) as pool:
            run = functools.partial(explored, seed=seed, inputs=each, keep=keep)
            failed = [one for found in pool.imap_unordered(run, names) for one in found]
    else:
        with multiprocessing.get_context("spawn").Pool(given.jobs, maxtasksperchild=1) as pool:
            failed = [one for found in pool.imap_unordered(fuzz, tasks) for one in found]
    print(
        f"{each * len(names)} inputs, {len(names)} readers, seed {seed}: "
        f"{len(failed)} failures in {time.monotonic() - begin:.0f} s",
        flush=True,
    )
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
