"""What files are, in rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from memtool.checkpoint import Checkpoint, read_metadata, tensor_sizes
from memtool.models import ModelSpec

Row = dict[str, Any]


def files(paths: Sequence[Path]) -> Iterator[Row]:
    """One row a file, from its header; raises MemtoolError for what memtool did not write."""
    for path in paths:
        metadata = read_metadata(path)
        training = metadata.get("training", {})
        noise = metadata.get("noise", {})
        data = metadata.get("data", {})
        sizes = tensor_sizes(path)
        row: Row = {
            "file": str(path),
            "kind": metadata["kind"],
            "model": str(ModelSpec.from_json(metadata["model"])) if "model" in metadata else None,
            "data": data.get("name"),
            "train": data.get("train"),
            "test": data.get("test"),
            "classes": len(data["classes"]) if "classes" in data else None,
            "epoch": training.get("epoch"),
            "steps": training.get("steps"),
            "noise_ratio": training.get("noise_ratio", noise.get("ratio")),
            "noise_kind": training.get("noise_kind", noise.get("kind")),
            "seed": training.get("seed", noise.get("seed")),
            "tensors": len(sizes),
            "elements": sum(sizes.values()),
            "bytes": path.stat().st_size,
        }
        yield {**row, **metadata.get("metrics", {})}


def layers(paths: Sequence[Path]) -> Iterator[Row]:
    """One row a layer of each checkpoint, in order of execution."""
    from memtool.comparison import traced_all

    checkpoints = [Checkpoint.open(path) for path in paths]
    for checkpoint, found in zip(checkpoints, traced_all(checkpoints), strict=True):
        for layer in found:
            yield {
                "checkpoint": str(checkpoint.path),
                "layer": layer.name,
                "type": layer.type,
                "shape": "x".join(map(str, layer.shape)),
                "cut": layer.is_cut,
                "same_as": layer.same_as if layer.same_as != layer.name else None,
            }
