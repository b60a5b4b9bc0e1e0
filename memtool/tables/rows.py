"""The tables there are, each declared once: its columns, their types and what they mean.

A row is a dict of one of these types: one measurement with all its conditions. Column names are an
interface. The writer takes its header from here and refuses a row that lacks a column or has
another; the figures say here what they need; the man pages print the meanings.
"""

from dataclasses import dataclass
from typing import Annotated, Any, TypedDict, get_args, get_type_hints


@dataclass(frozen=True)
class Column:
    """What a column means, with its unit or range.

    A terminal too narrow for a table leaves out columns: those with the largest `minor` first,
    those with 0 never.
    """

    meaning: str
    minor: int = 0


def columns(row_type: type) -> dict[str, Column]:
    """The columns of a table, in order, by name."""
    hints = get_type_hints(row_type, include_extras=True)
    return {name: get_args(hint)[1] for name, hint in hints.items()}


def type_of(row_type: type, column: str) -> str:
    """What the cells of a column hold, in words; they may be empty where the meaning says so."""
    hint: Any = get_type_hints(row_type)[column]
    (kind,) = [part for part in get_args(hint) or (hint,) if part is not type(None)]
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}[kind]


class TrainingRow(TypedDict):
    """One epoch of a training run."""

    checkpoint: Annotated[str, Column("path of the run's final checkpoint")]
    model: Annotated[str, Column("model spec", 1)]
    data: Annotated[str, Column("data set, as it was named")]
    noise_ratio: Annotated[float, Column("part of the given labels that was redrawn, in [0, 1]", 3)]
    noise_kind: Annotated[str | None, Column("how they were redrawn; empty if none was", 7)]
    seed: Annotated[int, Column("seed of the initial weights and of the order of batches", 6)]
    epoch: Annotated[int, Column("epochs trained so far")]
    loss: Annotated[float, Column("mean cross-entropy on the given labels, in nats", 22)]
    given_accuracy: Annotated[
        float, Column("accuracy on the given labels of the training images, in [0, 1]")
    ]
    true_accuracy: Annotated[float, Column("accuracy on their true labels, in [0, 1]", 10)]
    mislabelled_accuracy: Annotated[
        float | None,
        Column(
            "memorization: accuracy on the given labels of the mislabelled training images alone, "
            "in [0, 1]; empty if there are none"
        ),
    ]
    test_accuracy: Annotated[float, Column("accuracy on the test images, in [0, 1]")]


class CkaRow(TypedDict):
    """CKA of one layer of a checkpoint with one layer of the reference."""

    checkpoint: Annotated[str, Column("path of the checkpoint")]
    reference: Annotated[str, Column("path of the reference")]
    layer: Annotated[str, Column("layer of the checkpoint")]
    reference_layer: Annotated[str, Column("layer of the reference")]
    epoch: Annotated[int | None, Column("epoch of the checkpoint; empty if unknown")]
    noise_ratio: Annotated[
        float | None, Column("noise ratio of its labels, in [0, 1]; empty if unknown", 3)
    ]
    seed: Annotated[int | None, Column("seed of its run; empty if unknown", 6)]
    reference_epoch: Annotated[int | None, Column("the same of the reference", 14)]
    reference_noise_ratio: Annotated[float | None, Column("the same of the reference", 12)]
    reference_seed: Annotated[int | None, Column("the same of the reference", 13)]
    estimator: Annotated[str, Column("how HSIC was estimated: exact, unbiased or minibatch")]
    kernel: Annotated[str, Column("linear or rbf")]
    bandwidth: Annotated[
        float | None, Column("sigma of rbf, as a multiple of the median distance; else empty")
    ]
    precision: Annotated[str, Column("what the networks computed in")]
    n: Annotated[int, Column("number of images")]
    batch_size: Annotated[int, Column("images in the largest batch")]
    sample_seed: Annotated[int, Column("seed of the order in which images came in batches")]
    cka: Annotated[
        float | None,
        Column("CKA, for exact in [0, 1]; empty where there is none, which a warning explains"),
    ]
    cka_se: Annotated[
        float | None,
        Column("its standard error (jackknife over groups of batches); empty for one batch"),
    ]


class StitchingRow(TypedDict):
    """One stitched model, as it is after one epoch of its stitching layer."""

    front: Annotated[str, Column("path of the checkpoint that gives its front")]
    back: Annotated[str, Column("path of the checkpoint that gives its back", 2)]
    direction: Annotated[
        str, Column("forward (FRONT on BACK), reverse (BACK on FRONT) or control (FRONT on itself)")
    ]
    front_layer: Annotated[str, Column("layer after which the front ends")]
    back_layer: Annotated[str, Column("layer after which the back goes on", 11)]
    front_noise_ratio: Annotated[
        float | None, Column("noise ratio of the front's labels, in [0, 1]; empty if unknown", 8)
    ]
    back_noise_ratio: Annotated[float | None, Column("the same of the back", 9)]
    connector: Annotated[str, Column("the stitching layer: conv1x1, linear or none", 16)]
    batch_norm: Annotated[bool, Column("whether batch norm stands before and after it")]
    parameters: Annotated[int, Column("number of its trainable parameters", 17)]
    init: Annotated[
        str | None, Column("its initialization: lstsq, identity or random; empty for none")
    ]
    optimizer: Annotated[str | None, Column("what trained it; empty for none")]
    epochs: Annotated[int, Column("epochs of its training in all")]
    epoch: Annotated[int, Column("epochs done so far; 0 is the initialization")]
    learning_rate: Annotated[float | None, Column("of the optimizer; empty for none")]
    batch_size: Annotated[int | None, Column("examples in a batch; empty for none")]
    seed: Annotated[int, Column("seed of the initialization and of the order of batches", 6)]
    n: Annotated[int, Column("number of test images")]
    loss: Annotated[
        float, Column("mean cross-entropy of the stitched model on the test images, in nats", 22)
    ]
    test_accuracy: Annotated[float, Column("accuracy of the stitched model, in [0, 1]")]
    front_accuracy: Annotated[float, Column("test accuracy of the front's own network, in [0, 1]")]
    back_accuracy: Annotated[float, Column("test accuracy of the back's own network, in [0, 1]")]
    agreement: Annotated[
        float,
        Column("part of the test images that it classifies as the back's own network does", 15),
    ]
    control_accuracy: Annotated[
        float | None,
        Column("test accuracy of the control at this cut and epoch; empty without --control"),
    ]


class FileRow(TypedDict):
    """One file, by what its header says."""

    file: Annotated[str, Column("path of the file")]
    kind: Annotated[str, Column("checkpoint, labels, state, or safetensors for any other", 18)]
    model: Annotated[str | None, Column("model spec; empty if unknown", 1)]
    model_from: Annotated[
        str | None, Column("how it is known: metadata, --model, config.json or tensors", 24)
    ]
    parameters: Annotated[int, Column("numbers in floating point, buffers left out", 17)]
    tensors: Annotated[int, Column("number of tensors", 23)]
    types: Annotated[str, Column("their types", 27)]
    bytes: Annotated[int, Column("size of the file in bytes", 26)]
    data: Annotated[str | None, Column("data set; this and what follows is empty if unknown")]
    train: Annotated[int | None, Column("number of training images", 20)]
    test: Annotated[int | None, Column("number of test images", 19)]
    classes: Annotated[int | None, Column("number of classes", 21)]
    image_shape: Annotated[str | None, Column("channels x height x width", 25)]
    mean: Annotated[
        str | None,
        Column("by which images are normalized, for each channel, in units of 255", 29),
    ]
    std: Annotated[str | None, Column("likewise", 28)]
    fingerprint: Annotated[str | None, Column("SHA-256 of the images and labels", 30)]
    epoch: Annotated[int | None, Column("epochs trained so far")]
    steps: Annotated[int | None, Column("steps of the optimizer so far", 4)]
    noise_ratio: Annotated[float | None, Column("part of the given labels redrawn, in [0, 1]", 3)]
    noise_kind: Annotated[str | None, Column("how they were redrawn", 7)]
    seed: Annotated[int | None, Column("seed of the run, or of the noise", 6)]
    loss: Annotated[float | None, Column("as in the rows of memtool train", 22)]
    given_accuracy: Annotated[float | None, Column("likewise")]
    true_accuracy: Annotated[float | None, Column("likewise", 10)]
    mislabelled_accuracy: Annotated[float | None, Column("likewise")]
    test_accuracy: Annotated[float | None, Column("likewise")]


class LayerRow(TypedDict):
    """One layer of a checkpoint's model."""

    checkpoint: Annotated[str, Column("path of the checkpoint")]
    layer: Annotated[str, Column("dotted name of the layer")]
    type: Annotated[str, Column("class of its module")]
    shape: Annotated[str, Column("shape of its output for one image")]
    cut: Annotated[bool, Column("whether the network can be cut there for stitching")]
    same_as: Annotated[
        str | None, Column("the layer whose output is the very same tensor; empty if none is", 5)
    ]


class FindingRow(TypedDict):
    """One claim of the paper, in numbers."""

    finding: Annotated[str, Column("what was measured")]
    value: Annotated[float, Column("its mean over the seeds")]
    least: Annotated[float, Column("the least that is expected")]
    most: Annotated[float, Column("the most that is expected")]
    holds: Annotated[bool, Column("whether the value is in between")]
