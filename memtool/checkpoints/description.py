"""What files are, in rows."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from memtool import MemtoolError
from memtool.checkpoints.checkpoint import Checkpoint, traced_all
from memtool.models.spec import ModelSpec
from memtool.tensors import Stored, find_metadata, stored_tensors

logger = logging.getLogger(__name__)

Row = dict[str, Any]

# What normalization layers and swin keep beside their parameters.
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "relative_coords_table")
TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"}


def files(paths: Sequence[Path], model: ModelSpec | None) -> Iterator[Row]:
    """One row a file, from its header; raises MemtoolError for what is no safetensors file.

    A file that memtool did not write is recognized where it can be, else a note says why not.
    """
    for path in paths:
        metadata, known_by = find_metadata(path), "metadata"
        if metadata is None or model:
            metadata, known_by = _foreign(path, model)
        training, data = metadata.get("training", {}), metadata.get("data", {})
        noise, metrics = metadata.get("noise", {}), metadata.get("metrics", {})
        yield {
            "file": str(path),
            "kind": metadata["kind"],
            "model": str(ModelSpec.from_json(metadata["model"])) if "model" in metadata else None,
            "model_from": known_by if "model" in metadata else None,
            **_sizes(stored_tensors(path)),
            "bytes": path.stat().st_size,
            "data": data.get("name"),
            "train": data.get("train"),
            "test": data.get("test"),
            "classes": len(data["classes"]) if "classes" in data else None,
            "image_shape": _joined(data.get("image_shape", metadata.get("image_shape")), "x"),
            "mean": _joined(data.get("mean"), " "),
            "std": _joined(data.get("std"), " "),
            "fingerprint": data.get("fingerprint"),
            "epoch": training.get("epoch"),
            "steps": training.get("steps"),
            "noise_ratio": training.get("noise_ratio", noise.get("ratio")),
            "noise_kind": training.get("noise_kind", noise.get("kind")),
            "seed": training.get("seed", noise.get("seed")),
            "loss": metrics.get("loss"),
            "given_accuracy": metrics.get("given_accuracy"),
            "true_accuracy": metrics.get("true_accuracy"),
            "mislabelled_accuracy": metrics.get("mislabelled_accuracy"),
            "test_accuracy": metrics.get("test_accuracy"),
        }


def _foreign(path: Path, model: ModelSpec | None) -> tuple[dict[str, Any], str]:
    """What can be known of a checkpoint without metadata, or of another model than those say."""
    try:
        checkpoint = Checkpoint.open(path, model)
    except MemtoolError as error:
        if model:
            raise
        logger.info(str(error))
        return {"kind": "safetensors"}, ""
    return {"kind": "checkpoint", **checkpoint.metadata}, checkpoint.known_by


def _sizes(stored: Mapping[str, Stored]) -> Row:
    """How much a file holds. Parameters are the floating-point numbers but those of buffers."""
    parameters = [
        math.prod(tensor.shape)
        for name, tensor in stored.items()
        if "F" in tensor.dtype and not name.endswith(BUFFERS)
    ]
    types = sorted({tensor.dtype for tensor in stored.values()})
    return {
        "parameters": sum(parameters),
        "tensors": len(stored),
        "types": " ".join(TYPES.get(type_, type_.lower().replace("i", "int")) for type_ in types),
    }


def _joined(values: Sequence[Any] | None, separator: str) -> str | None:
    return separator.join(map(str, values)) if values else None


def layers(checkpoints: Sequence[Checkpoint], image_size: int | None) -> Iterator[Row]:
    """One row a layer of each checkpoint, in order of execution."""
    for checkpoint, found in zip(checkpoints, traced_all(checkpoints, image_size), strict=True):
        for layer in found:
            yield {
                "checkpoint": str(checkpoint.path),
                "layer": layer.name,
                "type": layer.type,
                "shape": "x".join(map(str, layer.shape)),
                "cut": layer.is_cut,
                "same_as": layer.same_as if layer.same_as != layer.name else None,
            }
