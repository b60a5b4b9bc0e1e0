"""The metadata of memtool's files, each field declared once: its type, its meaning, and whether a
file must have it.

`check` refuses what is not as declared, and `memtool-formats(5)` is written from the same
declarations. A field that is not declared is ignored: a later memtool may have added it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from memtool.errors import MemtoolError, shortened
from memtool.tables import TrainingRow, columns
from memtool.tables.rows import NOISE_RATIO
from memtool.tables.schema import LARGEST

MAX_IMAGE = 10_000  # height or width in pixels
MAX_FEATURES = 500_000  # of a vector; their means and deviations are metadata

Fields = Mapping[str, "Field"]


@dataclass(frozen=True)
class Type:
    """What a value has to be: in words, and as a test.

    `fields` are those of an object, or of each object in a list, of which `elements` is "[]".
    """

    words: str
    holds: Callable[[Any], bool]
    fields: Fields = field(default_factory=dict)
    elements: str = ""


@dataclass(frozen=True)
class Field:
    """What a field means, with its unit or range; a file without a `required` one is refused."""

    type: Type
    meaning: str
    required: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of file: what it is for, which tensors it holds, and the fields of its metadata."""

    meaning: str
    tensors: str
    fields: Fields


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_whole(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int)


def _is_image_shape(value: Any) -> bool:
    if not SIZES.holds(value) or len(value) not in (1, 3) or min(value) < 1:
        return False
    return bool(max(value) <= (MAX_IMAGE if len(value) == 3 else MAX_FEATURES))


def _object(fields: Fields) -> Type:
    return Type("an object", lambda value: isinstance(value, dict), fields)


def _list_of(type_: Type, words: str) -> Type:
    return Type(
        f"a list of {words}",
        lambda value: isinstance(value, list) and all(map(type_.holds, value)),
        type_.fields,
        "[]",
    )


def _or_null(type_: Type) -> Type:
    return replace(
        type_,
        words=f"{type_.words} or null",
        holds=lambda value: value is None or type_.holds(value),
    )


def _requiring(fields: Fields, *names: str) -> Fields:
    """The same fields, those of these names required."""
    return {name: replace(one, required=name in names) for name, one in fields.items()}


TEXT = Type("text", lambda value: isinstance(value, str))
WHOLE = Type("a whole number", _is_whole)
NUMBER = Type("a number", _is_number)
TRUTH = Type("true or false", lambda value: isinstance(value, bool))
ANY_OBJECT = _object({})
TEXTS = _list_of(TEXT, "texts")
SIZES = _list_of(WHOLE, "whole numbers")
NUMBERS = _list_of(NUMBER, "numbers")
MATRIX = _list_of(NUMBERS, "lists of numbers")
POSITIVE = Type("a whole number from 1 on", lambda value: _is_whole(value) and value >= 1)
BITS = Type("a whole number from 8 to 16", lambda value: _is_whole(value) and 8 <= value <= 16)
COUNT = Type("a whole number from 0 on", lambda value: _is_whole(value) and value >= 0)
STD = Type("a list of numbers other than 0", lambda value: NUMBERS.holds(value) and 0 not in value)
IMAGE_SHAPE = Type(
    f"a list of 3 sizes up to {MAX_IMAGE} or of 1 up to {MAX_FEATURES}", _is_image_shape
)

# What the wing `models` reads, which checks the rest of it.
MODEL: Fields = {
    "name": Field(TEXT, "architecture, as in digits-cnn or torchvision:resnet18"),
    "options": Field(
        ANY_OBJECT,
        "options that it is built with, by name; of a stitched model, the specs of its front and "
        "its back, the layers where they meet, and the stitching layer",
    ),
    "sha256": Field(TEXT, "SHA-256 of the FILE.py that makes the model, if one does"),
}
PREPROCESSING: Fields = {
    "image_size": Field(WHOLE, "height and width of the images, in pixels"),
    "crop_pct": Field(
        NUMBER, "images are resized to image_size divided by this, then cropped to image_size"
    ),
    "crop_mode": Field(TEXT, "what is resized: center, squash or border"),
    "interpolation": Field(TEXT, "filter by which images are resized"),
}
DATASET: Fields = {
    "name": Field(TEXT, "data set, as it was named on the command line"),
    "train": Field(COUNT, "number of training images"),
    "test": Field(COUNT, "number of test images"),
    "image_shape": Field(
        IMAGE_SHAPE, "channels, height and width of the images, or features of the vectors"
    ),
    "classes": Field(TEXTS, "names of the classes, in the order of their numbers"),
    "mean": Field(NUMBERS, "mean of each channel by which images are normalized, in units of 255"),
    "std": Field(STD, "standard deviation, likewise"),
    "fingerprint": Field(TEXT, "SHA-256 of the images and labels"),
    "bits": Field(
        BITS, "bits per value of image files that have more than 8, by which they became 8"
    ),
}
DATA: Fields = {
    **DATASET,
    "preprocessing": Field(
        _object(PREPROCESSING),
        "how the configuration of a network that memtool did not train has images prepared",
    ),
}
SOURCE: Fields = {
    "file": Field(TEXT, "name of the file"),
    "key": Field(_or_null(TEXT), "key or column in it; null if it holds nothing else"),
    "sha256": Field(TEXT, "SHA-256 of the file"),
}
NOISE: Fields = {
    "ratio": Field(_or_null(NUMBER), NOISE_RATIO),
    "kind": Field(
        _or_null(TEXT),
        "what they were redrawn to, even at a ratio of 0: uniform, symmetric, pairflip, matrix or "
        "given; null without a label file",
    ),
    "seed": Field(
        _or_null(WHOLE), "seed of the noise; null without a label file, and for given labels"
    ),
    "matrix": Field(MATRIX, "transition matrix of the kind matrix: a row per true class"),
    "source": Field(_object(SOURCE), "where labels of the kind given are from"),
}
END = "of a stitched model, the section training of the checkpoint of its"
TRAINING: dict[str, Field] = {
    "epoch": Field(_or_null(COUNT), "epochs trained so far"),
    "epochs": Field(COUNT, "epochs of the whole run"),
    "steps": Field(COUNT, "updates of the weights so far"),
    "seed": Field(_or_null(WHOLE), "seed of the initial weights and of the order of batches"),
    "order_seed": Field(_or_null(WHOLE), "seed of the order of batches where it is another"),
    "batch_size": Field(POSITIVE, "images per update"),
    "optimizer": Field(TEXT, "what updates the weights: adamw, adam or sgd"),
    "learning_rate": Field(NUMBER, "peak of the schedule"),
    "weight_decay": Field(
        NUMBER, "decay of the weights, decoupled for adamw, an L2 penalty for the others"
    ),
    "decay_norm": Field(TRUTH, "whether weights of normalization layers decay too"),
    "schedule": Field(TEXT, "how the learning rate falls"),
    "warmup": Field(NUMBER, "fraction of the steps in which it rises, in [0, 1]"),
    "clip_norm": Field(_or_null(NUMBER), "largest norm of the gradient; null for any"),
    "augment": Field(TEXT, "how training images are varied: none or crop-flip"),
    "precision": Field(TEXT, "type of the numbers that layers compute in"),
    "compile": Field(TRUTH, "whether torch.compile made the kernels"),
    "sync_batch_norm": Field(TRUTH, "whether processes share the statistics of batch norm"),
    "processes": Field(POSITIVE, "processes that shared the work"),
    "evaluate_every": Field(POSITIVE, "epochs from one evaluation to the next"),
    "saved_epochs": Field(SIZES, "epochs of which checkpoints are kept"),
    "labels": Field(TEXT, "SHA-256 of the labels that it was trained on"),
    **{f"noise_{name}": one for name, one in NOISE.items()},
    "init": Field(TEXT, "how a stitching layer began: its weights before training"),
}
TRAINING |= {end: Field(_object(TRAINING), f"{END} {end}") for end in ("front", "back")}
_HINTS = get_type_hints(TrainingRow)
METRICS: Fields = {
    name: Field(
        _or_null(NUMBER) if NoneType in get_args(_HINTS[name]) else NUMBER,
        column.meaning.replace("empty", "null"),
    )
    for name, column in columns(TrainingRow).items()
    if name.endswith(("loss", "accuracy"))
}
EPOCH_METRICS = {"epoch": Field(POSITIVE, "epochs trained so far"), **METRICS}
HISTORY = _list_of(_object(_requiring(EPOCH_METRICS, *EPOCH_METRICS)), "objects")
COMPUTED_BY = Type(
    "an object of texts and whole numbers",
    lambda value: (
        isinstance(value, dict)
        and all(isinstance(part, str) or _is_whole(part) for part in value.values())
    ),
    {
        "memtool": Field(TEXT, "version of memtool"),
        "torch": Field(TEXT, "version of PyTorch"),
        "numpy": Field(TEXT, "version of NumPy"),
        "threads": Field(WHOLE, "threads of the process"),
        "device": Field(TEXT, "what computed: its kind and its model"),
    },
)

# Of every kind; `memtool.tensors` checks them before all others.
HEADER: Fields = {
    "format": Field(WHOLE, "version of the format; a later one is refused", True),
    "kind": Field(TEXT, "which of the kinds below the file is", True),
}
KINDS: Mapping[str, Kind] = {
    "checkpoint": Kind(
        "a network, trained, stitched or converted",
        "the weights under the keys of the model's state_dict",
        {
            "model": Field(_object(MODEL), "spec of the model", True),
            "data": Field(_object(DATA), "what it was trained on; empty if not known", True),
            "training": Field(_object(TRAINING), "how it was trained; empty if not known", True),
            "metrics": Field(
                _object(METRICS), "what it has learned; empty before the first evaluation"
            ),
            "history": Field(HISTORY, "the metrics of each epoch that was evaluated"),
            "computed_by": Field(COMPUTED_BY, "what the last digits of the weights depend on"),
            "image_shape": Field(
                IMAGE_SHAPE, "shape of the images that a converted network is usually given"
            ),
        },
    ),
    "labels": Kind(
        "the labels of a training split, in part mislabelled",
        "given and true, int64 (n,); mislabelled, bool (n,), which says where they differ",
        {
            "data": Field(
                _object(_requiring(DATASET, "name", "train", "classes", "fingerprint")),
                "the data set that they are for",
                True,
            ),
            "noise": Field(
                _object(_requiring(NOISE, "ratio", "kind", "seed")), "how they were made", True
            ),
        },
    ),
    "state": Kind(
        "an unfinished run after its latest epoch, from which train --resume goes on",
        "model.KEY, the weights; optimizer.INDEX.NAME, what the optimizer keeps per parameter",
        {
            "settings": Field(
                _object(
                    {
                        "model": Field(_object(MODEL), "spec of the model, as in a checkpoint"),
                        "data": Field(_object(DATA), "what it is trained on, as in a checkpoint"),
                        "training": Field(
                            _object(TRAINING),
                            "how it is trained, as in a checkpoint, but for epoch and steps",
                        ),
                    }
                ),
                "what a run must have in common with this one to go on from it",
                True,
            ),
            "epoch": Field(COUNT, "epochs trained so far", True),
            "history": Field(
                HISTORY, "the metrics of each evaluated epoch, as in a checkpoint", True
            ),
        },
    ),
    "cache": Kind(
        "the decoded images of a data set, in MEMTOOL_CACHE; made again if it is refused",
        "images, uint8 (n, channels, height, width); checksums, uint32 (n,), CRC-32 of each",
        {
            "data": Field(
                _object(
                    {
                        **{
                            name: DATASET[name]
                            for name in ("name", "mean", "std", "fingerprint", "bits")
                        },
                        "notes": Field(TEXTS, "what decoding had to tell"),
                    }
                ),
                "the data set",
                True,
            )
        },
    ),
}


def check(path: Path, kind: str, metadata: Mapping[str, Any]) -> None:
    """Raise MemtoolError, which names the file, the field and the value, unless the metadata are
    as `KINDS` declares them; those of a kind that it does not have may be anything."""
    if kind in KINDS:
        for problem in _problems(metadata, KINDS[kind].fields, ""):
            raise MemtoolError(f"{path}: its memtool metadata has {problem}")


def declared(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The sections that are declared for this kind of file; others are not checked."""
    kind = KINDS.get(metadata["kind"])
    return {name: metadata[name] for name in (kind.fields if kind else ()) if name in metadata}


def places(fields: Fields, told: list[Fields], section: str = "") -> Iterator[tuple[str, Field]]:
    """The fields and those within them by their places, as in `data.name` and `history[].loss`.

    Those within a field are left out if they are in `told`, to which they are added otherwise.
    """
    told.append(fields)
    for name, one in fields.items():
        place = f"{section}{name}"
        yield place, one
        if not any(one.type.fields is known for known in told):
            yield from places(one.type.fields, told, f"{place}{one.type.elements}.")


def _problems(values: Mapping[str, Any], fields: Fields, section: str) -> Iterator[str]:
    """Whatever is not as declared, in words, in the order of the declarations."""
    place = f" in {section!r}" if section else ""
    for name, one in fields.items():
        if name not in values:
            if one.required:
                yield f"no {name!r}{place}"
            continue
        value, type_ = values[name], one.type
        inner = f"{section}.{name}" if section else name
        for where, part in _objects(inner, value, type_):
            yield from _problems(part, type_.fields, where)
        if not type_.holds(value):
            said = shortened(json.dumps(value))
            yield f"no sensible {name!r}{place}: {said} is not {type_.words}"


def _objects(place: str, value: Any, type_: Type) -> list[tuple[str, dict[str, Any]]]:
    """The object that a value of this type is, or those that it lists, by their places."""
    parts = [(place, value)]
    if type_.elements:
        listed = value if isinstance(value, list) else []
        parts = [(f"{place}[{index}]", part) for index, part in enumerate(listed)]
    return [(where, part) for where, part in parts if isinstance(part, dict)]
