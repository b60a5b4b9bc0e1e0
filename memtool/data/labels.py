"""Label files: given and true labels of a training split, in safetensors.

`given` and `true` (int64, (n,)), and `mislabelled` (bool, (n,)), where they differ.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memtool import MemtoolError
from memtool.tensors import Metadata, encoded, opened, read_metadata, replacing_safetensors

if TYPE_CHECKING:
    from memtool.data.datasets import Dataset


@dataclass(frozen=True)
class LabelFile:
    """Given and true labels of a data set's training split, int64 (n,).

    The metadata names the data set (`data`) and how the given labels were drawn (`noise`: ratio,
    kind, seed).
    """

    given: NDArray[np.int64]
    true: NDArray[np.int64]
    metadata: Metadata

    @property
    def mislabelled(self) -> NDArray[np.bool_]:
        """Where the given label is not the true one, (n,)."""
        return np.not_equal(self.given, self.true)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the given labels."""
        return hashlib.sha256(np.ascontiguousarray(self.given).data).hexdigest()

    @staticmethod
    def true_labels(dataset: "Dataset") -> "LabelFile":
        """The labels of `dataset` as they are: noise ratio 0."""
        true = dataset.train.labels
        noise = {"ratio": 0.0, "kind": None, "seed": None}
        return LabelFile(true, true, {"data": dataset.metadata(), "noise": noise})

    def save(self, path: Path) -> None:
        from safetensors.numpy import save_file

        arrays = {"given": self.given, "true": self.true, "mislabelled": self.mislabelled}
        with replacing_safetensors(path) as temporary:
            save_file(arrays, temporary, encoded("labels", self.metadata))

    @staticmethod
    def load(path: Path) -> "LabelFile":
        """Raises MemtoolError if `path` is not a label file."""
        metadata = read_metadata(path, "labels")
        with opened(path, "numpy") as file:
            given, true = file.get_tensor("given"), file.get_tensor("true")
        return LabelFile(given, true, metadata)

    def check(self, path: Path, dataset: "Dataset") -> None:
        """Raise MemtoolError unless these labels were made for `dataset`."""
        made_for = self.metadata["data"]
        if made_for["fingerprint"] != dataset.fingerprint or len(self.given) != len(dataset.train):
            raise MemtoolError(
                f"{path}: its labels were made for another data set: {made_for['name']!r} "
                f"({made_for['train']} images), not {dataset.name!r} ({len(dataset.train)})"
            )
