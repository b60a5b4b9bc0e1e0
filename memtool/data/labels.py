"""Label files: the given and the true labels of a training split, in safetensors.

`given` and `true` are int64 (n,); `mislabelled`, bool (n,), says where they differ.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memtool import MemtoolError, specs
from memtool.data.datasets import Dataset
from memtool.data.label_sources import OF_OTHERS, given_labels, split_source
from memtool.data.listing import Labels
from memtool.data.noise import Matrix, NoiseKind, redraw, transition_matrix
from memtool.tensors import (
    Metadata,
    check_kept,
    encoded,
    opened,
    read_metadata,
    replacing_safetensors,
)


@dataclass(frozen=True)
class LabelFile:
    """The given and the true labels of a data set's training split, int64 (n,) each.

    `metadata` describes the data set (`data`) and how the given labels were made (`noise`: ratio,
    kind, seed and, for `NoiseKind.matrix`, the matrix; the source of those that others made).

    >>> from memtool.data import load
    >>> labels = LabelFile.noisy(load("digits"), NoiseKind.uniform, ratio=0.25, seed=0)
    >>> len(labels.given), int(labels.mislabelled.sum())
    (1297, 301)
    """

    given: Labels
    true: Labels
    metadata: Metadata

    @property
    def mislabelled(self) -> NDArray[np.bool_]:
        """A mask, (n,), of the examples whose given label is not the true one."""
        return np.not_equal(self.given, self.true)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the given labels."""
        return hashlib.sha256(np.ascontiguousarray(self.given).data).hexdigest()

    @staticmethod
    def true_labels(dataset: Dataset) -> "LabelFile":
        """The labels of `dataset` as they are: noise ratio 0."""
        true = dataset.train.labels
        noise = {"ratio": 0.0, "kind": None, "seed": None}
        return LabelFile(true, true, {"data": dataset.metadata(), "noise": noise})

    @staticmethod
    def noisy(
        dataset: Dataset, kind: NoiseKind, ratio: float, seed: int, matrix: Matrix | None = None
    ) -> "LabelFile":
        """Labels of `dataset`, of which a part `ratio`, in [0, 1], is redrawn as `kind` says.

        `matrix` is the transition matrix of `NoiseKind.matrix`, which is recorded, and None for
        other kinds. Raises MemtoolError as `noise.redraw` and `noise.transition_matrix` do.
        """
        true = dataset.train.labels
        recorded = {} if matrix is None else {"matrix": matrix.tolist()}
        if matrix is None:
            matrix = transition_matrix(kind, len(dataset.classes))
        noise = {"ratio": ratio, "kind": str(kind), "seed": seed, **recorded}
        given = redraw(true, matrix, ratio, seed)
        return LabelFile(given, true, {"data": dataset.metadata(), "noise": noise})

    @staticmethod
    def given_by(dataset: Dataset, source: str) -> "LabelFile":
        """Labels of `dataset` that others made, from `source`, a `FILE` or `FILE:KEY`.

        The ratio on record is the part that is mislabelled, the kind `given`. Raises MemtoolError
        as `label_sources.given_labels` does.
        """
        true = dataset.train.labels
        given, recorded = given_labels(source, dataset.classes, true, dataset.files, dataset.chosen)
        ratio = float(np.mean(given != true))
        noise = {"ratio": ratio, "kind": "given", "seed": None, "source": recorded}
        return LabelFile(given, true, {"data": dataset.metadata(), "noise": noise})

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises MemtoolError if that is not possible."""
        from safetensors.numpy import save_file

        check_kept(path, "labels", self.metadata)
        arrays = {"given": self.given, "true": self.true, "mislabelled": self.mislabelled}
        with replacing_safetensors(path) as temporary:
            save_file(arrays, temporary, encoded("labels", self.metadata))

    @staticmethod
    def load(path: Path) -> "LabelFile":
        """Read a label file. Raises MemtoolError if `path` is not one."""
        if split_source(str(path))[0].suffix.lower() in OF_OTHERS:
            raise MemtoolError(
                f"{path}: labels that others made become a label file first: memtool make-noisy "
                f"DATASET --from {path} -o FILE.safetensors"
            )
        metadata = read_metadata(path, "labels")
        with opened(path, "numpy") as file:
            try:
                given, true = file.get_tensor("given"), file.get_tensor("true")
            except (AttributeError, TypeError) as error:  # a type that NumPy does not have
                raise MemtoolError(f"{path}: its labels are not int64") from error
        classes = len(metadata["data"]["classes"])
        for name, labels in (("given", given), ("true", true)):
            if labels.dtype != np.int64 or labels.shape != (true.size,):
                raise MemtoolError(f"{path}: {name} is {labels.dtype} {labels.shape}")
            if wrong := np.flatnonzero((labels < 0) | (labels >= classes)).tolist():
                raise MemtoolError(
                    f"{path}: {name} has {labels[wrong[0]]} for example {wrong[0]}, and there are "
                    f"{classes} classes, from 0 on"
                )
        return LabelFile(given, true, metadata)

    def check(self, path: Path, dataset: Dataset) -> None:
        """Raise MemtoolError, which names `path`, unless these labels were made for `dataset`."""
        made_for = self.metadata["data"]
        if made_for["fingerprint"] != dataset.fingerprint or len(self.given) != len(dataset.train):
            if specs.same(made_for["name"], dataset.name, "data set"):
                raise MemtoolError(
                    f"{path}: its data set {dataset.name!r} has changed since (its labels were "
                    f"made for {made_for['train']} training images, now there are "
                    f"{len(dataset.train)}); make it anew"
                )
            raise MemtoolError(
                f"{path}: its labels were made for another data set: {made_for['name']!r} "
                f"({made_for['train']} images), not {dataset.name!r} ({len(dataset.train)})"
            )
        if not np.array_equal(self.true, dataset.train.labels):
            raise MemtoolError(
                f"{path}: its true labels are not those of {dataset.name!r}; make it anew"
            )
