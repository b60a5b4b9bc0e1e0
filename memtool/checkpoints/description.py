"""Descriptions of files and of the layers of checkpoints, as rows of tables."""

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from memtool import MemtoolError
from memtool.checkpoints.checkpoint import Checkpoint, recorded_model, trace_all
from memtool.checkpoints.provenance import NOT_STITCHED, Provenance
from memtool.metadata import declared
from memtool.models import ModelSpec
from memtool.tables import FileRow, LayerRow
from memtool.tensors import Metadata, Stored, files_of, find_metadata, stored_tensors

logger = logging.getLogger("memtool")

# The names of tensors that normalization layers and swin keep beside their parameters.
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "relative_coords_table")
TYPES = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "C": "complex"}


def file_rows(paths: Sequence[Path], model: ModelSpec | None) -> Iterator[FileRow]:
    """One row per file, from its header.

    A checkpoint that memtool did not write is of `model` if it is given, and recognized otherwise;
    where that is impossible, a note says why. Raises MemtoolError for a file that is not a
    safetensors file, and for one whose metadata are broken.
    """
    for path in paths:
        metadata = None if model else find_metadata(path)
        if metadata is None:
            yield _foreign_row(path, model)
        elif "model" in declared(metadata):
            yield _row(path, metadata, recorded_model(path, metadata), "metadata")
        else:
            yield _row(path, metadata, None, None)


def _foreign_row(path: Path, model: ModelSpec | None) -> FileRow:
    """The row of a checkpoint without metadata, or of another model than they say."""
    try:
        checkpoint = Checkpoint.open(path, model)
    except MemtoolError as error:
        if model:
            raise
        row = _row(path, {"kind": "safetensors"}, None, None)  # raises for the index of no files
        logger.info(str(error))
        return row
    metadata = {"kind": "checkpoint", **checkpoint.metadata}
    return _row(path, metadata, checkpoint.spec, checkpoint.known_by)


def _row(
    path: Path, metadata: Metadata, model: ModelSpec | None, model_from: str | None
) -> FileRow:
    known = declared(metadata)
    training, data = known.get("training", {}), known.get("data", {})
    noise, metrics = known.get("noise", {}), known.get("metrics", {})
    stored, origin = stored_tensors(path), Provenance.of(training)
    front, back = origin.front or NOT_STITCHED, origin.back or NOT_STITCHED
    return {
        "file": str(path),
        "kind": metadata["kind"],
        "model": str(model) if model else None,
        "model_from": model_from,
        "parameters": _count_parameters(stored),
        "tensors": len(stored),
        "types": " ".join(map(_type, sorted({tensor.dtype for tensor in stored.values()}))),
        "bytes": sum(file.stat().st_size for file in files_of(path)),
        "data": data.get("name"),
        "train": data.get("train"),
        "test": data.get("test"),
        "classes": len(data["classes"]) if "classes" in data else None,
        "image_shape": _joined(data.get("image_shape", known.get("image_shape")), "x"),
        "mean": _joined(data.get("mean"), " "),
        "std": _joined(data.get("std"), " "),
        "fingerprint": data.get("fingerprint"),
        "epoch": origin.epoch,
        "steps": training.get("steps"),
        "noise_ratio": noise.get("ratio") if noise else origin.noise_ratio,
        "noise_kind": noise.get("kind") if noise else origin.noise_kind,
        "noise_seed": noise.get("seed") if noise else origin.noise_seed,
        "front_noise_ratio": front.noise_ratio,
        "back_noise_ratio": back.noise_ratio,
        "seed": noise.get("seed") if noise else origin.seed,
        "order_seed": origin.order_seed,
        "loss": metrics.get("loss"),
        "given_accuracy": metrics.get("given_accuracy"),
        "true_accuracy": metrics.get("true_accuracy"),
        "mislabelled_accuracy": metrics.get("mislabelled_accuracy"),
        "test_accuracy": metrics.get("test_accuracy"),
        "computed_by": _listed(known.get("computed_by", {})),
    }


def _count_parameters(stored: Mapping[str, Stored]) -> int:
    """How many floating-point numbers the tensors hold, buffers left out."""
    return sum(
        math.prod(tensor.shape)
        for name, tensor in stored.items()
        if "F" in tensor.dtype and not name.endswith(BUFFERS)
    )


def _type(dtype: str) -> str:
    """A type of safetensors as PyTorch names it.

    >>> _type("F32"), _type("U8"), _type("F8_E4M3"), _type("BOOL")
    ('float32', 'uint8', 'float8_e4m3fn', 'bool')
    """
    found = re.fullmatch(r"([A-Z]+)(\d.*)", dtype)
    name = TYPES.get(found[1], found[1]) + found[2] if found else dtype
    return name.lower() + "fn" * name.endswith("E4M3")


def _joined(values: Sequence[Any] | None, separator: str) -> str | None:
    return separator.join(map(str, values)) if values else None


def _listed(values: Mapping[str, Any]) -> str | None:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or None


def layer_rows(checkpoints: Sequence[Checkpoint], image_size: int | None) -> Iterator[LayerRow]:
    """One row per layer of each checkpoint's model, in order of execution, for images of the shape
    that is on record or of `image_size` pixels in height and width. Raises MemtoolError as
    `trace_all` does."""
    for checkpoint, trace in zip(checkpoints, trace_all(checkpoints, image_size), strict=True):
        for layer in trace.layers:
            yield {
                "checkpoint": str(checkpoint.path),
                "layer": layer.name,
                "type": layer.type,
                "shape": "x".join(map(str, layer.shape)),
                "cut": layer.is_cut,
                "same_as": layer.same_as if layer.same_as != layer.name else None,
            }
