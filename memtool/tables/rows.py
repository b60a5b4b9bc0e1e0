"""The tables that memtool writes, each declared once: columns, types and meanings.

A row is a dictionary of one of these types: one measurement with all its conditions. Column names
are an interface. The writer takes its header from here and refuses a row with a missing or unknown
column; figures declare which of these columns they need; man pages print the meanings.
"""

from typing import Annotated, TypedDict

from memtool.tables.schema import Column, cell_types

NOISE_RATIO = (
    "fraction of the training labels that were redrawn or, if they were given, are mislabelled, in "
    "[0, 1]"
)


class TrainingRow(TypedDict):
    """One epoch of a training run."""

    checkpoint: Annotated[str, Column("path of the run's final checkpoint")]
    model: Annotated[str, Column("model spec", 1)]
    data: Annotated[str, Column("data set, as it was named on the command line")]
    noise_ratio: Annotated[float, Column(NOISE_RATIO, 3)]
    noise_kind: Annotated[
        str | None,
        Column(
            "uniform, symmetric, pairflip, matrix or given noise; empty without a label file",
            7,
        ),
    ]
    seed: Annotated[int, Column("seed of the initial weights and of the order of batches", 6)]
    epoch: Annotated[int, Column("epochs trained so far")]
    loss: Annotated[float, Column("mean cross-entropy on the given labels, in nats", 22)]
    given_accuracy: Annotated[
        float, Column("accuracy on the given labels of the training images, in [0, 1]")
    ]
    true_accuracy: Annotated[
        float, Column("accuracy on the true labels of the training images, in [0, 1]", 10)
    ]
    mislabelled_accuracy: Annotated[
        float | None,
        Column(
            "memorization: accuracy on the given labels of the mislabelled training images alone, "
            "in [0, 1]; empty if there are none"
        ),
    ]
    test_accuracy: Annotated[float, Column("accuracy on the test images, in [0, 1]")]
    noise_seed: Annotated[
        int | None,
        Column("seed of the noise; empty without a label file, and for given labels", 9),
    ]
    true_loss: Annotated[
        float, Column("mean cross-entropy on the true labels of the training images, in nats", 30)
    ]
    mislabelled_loss: Annotated[
        float | None, Column("likewise on the given labels of the mislabelled images alone", 32)
    ]
    mislabelled_true_loss: Annotated[
        float | None, Column("likewise on the true labels of the mislabelled images", 33)
    ]
    mislabelled_true_accuracy: Annotated[
        float | None,
        Column(
            "still right: accuracy on the true labels of the mislabelled images, in [0, 1]; empty "
            "if there are none",
            23,
        ),
    ]
    clean_loss: Annotated[
        float | None,
        Column("mean cross-entropy on the training images that are not mislabelled", 34),
    ]
    clean_accuracy: Annotated[
        float | None, Column("accuracy on the training images that are not mislabelled", 24)
    ]
    test_loss: Annotated[float, Column("mean cross-entropy on the test images, in nats", 31)]
    order_seed: Annotated[
        int | None, Column("seed of the order of batches where it is another; else empty", 8)
    ]


class CkaRow(TypedDict):
    """The CKA of one layer of a checkpoint with one layer of the reference."""

    checkpoint: Annotated[str, Column("path of the checkpoint")]
    reference: Annotated[str, Column("path of the reference")]
    layer: Annotated[str, Column("layer of the checkpoint")]
    reference_layer: Annotated[str, Column("layer of the reference")]
    same_as: Annotated[
        str | None,
        Column(
            "layer of the checkpoint whose output is always the very same tensor; else empty", 21
        ),
    ]
    model: Annotated[str, Column("model spec of the checkpoint", 31)]
    reference_model: Annotated[str, Column("model spec of the reference", 32)]
    data: Annotated[str, Column("data set whose test images were used, with its options", 30)]
    epoch: Annotated[int | None, Column("epoch of the checkpoint; empty if unknown")]
    noise_ratio: Annotated[
        float | None,
        Column(
            "noise ratio of the checkpoint's training labels, in [0, 1]; empty if unknown, or if "
            "it is a stitched model whose ends differ in it",
            3,
        ),
    ]
    noise_kind: Annotated[
        str | None,
        Column(
            "kind of that noise, even at a ratio of 0; empty likewise, and without a label file", 7
        ),
    ]
    noise_seed: Annotated[
        int | None,
        Column(
            "seed of that noise; empty likewise, without a label file, and for given labels", 22
        ),
    ]
    seed: Annotated[
        int | None,
        Column(
            "seed of the checkpoint's run, or of the stitching layer of a stitched model; empty if "
            "unknown",
            6,
        ),
    ]
    order_seed: Annotated[
        int | None, Column("seed of its order of batches where that is another; else empty", 8)
    ]
    front_layer: Annotated[
        str | None, Column("of a stitched model, the last layer of its front; else empty", 10)
    ]
    back_layer: Annotated[str | None, Column("likewise the layer after which its back begins", 11)]
    front_noise_ratio: Annotated[
        float | None,
        Column("of a stitched model, the noise ratio of its front, in [0, 1]; else empty", 4),
    ]
    front_noise_seed: Annotated[int | None, Column("likewise the seed of that noise", 26)]
    front_seed: Annotated[int | None, Column("likewise the seed of the front's run", 24)]
    back_noise_ratio: Annotated[
        float | None,
        Column("of a stitched model, the noise ratio of its back, in [0, 1]; else empty", 5),
    ]
    back_noise_seed: Annotated[int | None, Column("likewise the seed of that noise", 27)]
    back_seed: Annotated[int | None, Column("likewise the seed of the back's run", 25)]
    reference_epoch: Annotated[int | None, Column("epoch of the reference; empty if unknown", 14)]
    reference_noise_ratio: Annotated[
        float | None, Column("noise ratio of the reference's training labels, likewise", 12)
    ]
    reference_noise_kind: Annotated[str | None, Column("kind of that noise", 28)]
    reference_noise_seed: Annotated[int | None, Column("seed of that noise", 29)]
    reference_seed: Annotated[
        int | None, Column("seed of the reference's run; empty if unknown", 13)
    ]
    reference_order_seed: Annotated[
        int | None, Column("seed of its order of batches where that is another; else empty", 15)
    ]
    estimator: Annotated[str, Column("how HSIC was estimated: exact, unbiased or minibatch")]
    kernel: Annotated[str, Column("kernel of HSIC: linear or rbf")]
    bandwidth: Annotated[
        float | None,
        Column(
            "sigma of the rbf kernel, as a multiple of the median distance between images; empty "
            "for the linear kernel"
        ),
    ]
    precision: Annotated[str, Column("what the networks computed in: float32, tf32 or bf16")]
    n: Annotated[int, Column("number of images")]
    batch_size: Annotated[int, Column("number of images in the largest batch")]
    sample_seed: Annotated[int, Column("seed of the order in which images are put into batches")]
    cka: Annotated[
        float | None,
        Column(
            "CKA, for exact in [0, 1]; empty if it is undefined, which a warning explains",
            shaded=True,
        ),
    ]
    cka_se: Annotated[
        float | None,
        Column(
            "standard error of cka (jackknife over groups of batches); empty for one batch, "
            "which only minibatch has of 8 images or more"
        ),
    ]
    cka_null: Annotated[
        float | None,
        Column(
            "what cka is in expectation for unrelated layers of these two networks (the images of "
            "one permuted): 0 but for exact, which is biased; empty where cka is",
            2,
        ),
    ]


class StitchingRow(TypedDict):
    """One stitched model at one epoch of training its stitching layer."""

    front: Annotated[str, Column("path of the checkpoint that provides the front")]
    back: Annotated[str, Column("path of the checkpoint that provides the back", 2)]
    direction: Annotated[
        str,
        Column(
            "what is stitched: forward (FRONT on BACK), reverse (BACK on FRONT) or control (FRONT "
            "on itself)"
        ),
    ]
    front_layer: Annotated[str, Column("last layer of the front")]
    back_layer: Annotated[str, Column("layer after which the back begins", 11)]
    front_model: Annotated[str, Column("model spec of the front's network", 31)]
    back_model: Annotated[str, Column("model spec of the back's network", 32)]
    data: Annotated[
        str, Column("data set that the stitching layer was trained and the whole tested on", 30)
    ]
    front_epoch: Annotated[int | None, Column("epoch of the front; empty if unknown", 18)]
    back_epoch: Annotated[int | None, Column("epoch of the back; empty if unknown", 19)]
    front_noise_ratio: Annotated[
        float | None,
        Column("noise ratio of the front's training labels, in [0, 1]; empty if unknown", 8),
    ]
    back_noise_ratio: Annotated[
        float | None, Column("noise ratio of the back's training labels, likewise", 9)
    ]
    front_noise_kind: Annotated[
        str | None, Column("kind of the front's noise; empty without a label file", 28)
    ]
    back_noise_kind: Annotated[str | None, Column("kind of the back's noise, likewise", 29)]
    front_noise_seed: Annotated[
        int | None,
        Column("seed of the front's noise; empty without a label file, and for given labels", 26),
    ]
    back_noise_seed: Annotated[int | None, Column("seed of the back's noise, likewise", 27)]
    front_seed: Annotated[int | None, Column("seed of the front's run; empty if unknown", 24)]
    back_seed: Annotated[int | None, Column("seed of the back's run; empty if unknown", 25)]
    connector: Annotated[str, Column("the stitching layer: conv1x1, linear or none", 16)]
    batch_norm: Annotated[
        bool, Column("whether batch norm precedes and follows the stitching layer")
    ]
    parameters: Annotated[int, Column("number of trainable parameters of the stitching layer", 17)]
    init: Annotated[
        str | None,
        Column(
            "initialization of the stitching layer: lstsq, identity or random; empty if "
            "that has no weights"
        ),
    ]
    optimizer: Annotated[
        str | None, Column("optimizer of the stitching layer; empty if nothing is trained")
    ]
    epochs: Annotated[int, Column("number of epochs for which the stitching layer is trained")]
    epoch: Annotated[int, Column("epochs trained so far; 0 is the initialization")]
    learning_rate: Annotated[
        float | None, Column("learning rate of the optimizer; empty if nothing is trained")
    ]
    batch_size: Annotated[
        int | None, Column("number of images in a batch; empty if nothing is trained")
    ]
    seed: Annotated[int, Column("seed of the initialization and of the order of batches", 6)]
    n: Annotated[int, Column("number of test images")]
    loss: Annotated[
        float, Column("mean cross-entropy of the stitched model on the test images, in nats", 22)
    ]
    test_accuracy: Annotated[
        float, Column("accuracy of the stitched model on the test images, in [0, 1]")
    ]
    front_accuracy: Annotated[
        float | None,
        Column(
            "test accuracy of the network that the front comes from, in [0, 1]; empty if it "
            "tells other classes apart"
        ),
    ]
    back_accuracy: Annotated[
        float | None, Column("test accuracy of the network that the back comes from, in [0, 1]")
    ]
    agreement: Annotated[
        float,
        Column(
            "fraction of the test images that the stitched model classifies as the back's own "
            "network does",
            15,
        ),
    ]
    control_accuracy: Annotated[
        float | None,
        Column("test accuracy of the control at this cut and epoch; empty without --control"),
    ]
    stitched: Annotated[
        str | None, Column("path of the stitched model; empty where it was not saved", 33)
    ]


class PointRow(TypedDict):
    """One point of a figure, as it is drawn."""

    panel: Annotated[str, Column("title of the panel; empty if it has none")]
    curve: Annotated[str, Column("what the legend calls the curve")]
    x: Annotated[
        str, Column("place on the x axis: an epoch, a noise ratio in percent, a layer or a cut")
    ]
    measure: Annotated[str, Column("what is drawn: a column of the table, such as cka")]
    value: Annotated[float, Column("mean over the seeds; of a floor, over all curves, too")]
    deviation: Annotated[
        float | None,
        Column("sample standard deviation over the seeds; empty for a single one, or a floor"),
    ]
    n: Annotated[int | None, Column("number of seeds; empty for a floor")]


class FileRow(TypedDict):
    """One file, by what its header says."""

    file: Annotated[str, Column("path of the file")]
    kind: Annotated[
        str,
        Column("kind of the file: checkpoint, labels, state, cache, or safetensors for others", 18),
    ]
    model: Annotated[str | None, Column("model spec; empty if unknown", 1)]
    model_from: Annotated[
        str | None,
        Column("where the model is known from: metadata, --model, config.json or tensors", 24),
    ]
    parameters: Annotated[int, Column("count of floating-point numbers, without buffers", 17)]
    tensors: Annotated[int, Column("number of tensors", 23)]
    types: Annotated[str, Column("types of the tensors", 27)]
    bytes: Annotated[int, Column("size of the file in bytes", 26)]
    data: Annotated[str | None, Column("data set; like all columns that follow, empty if unknown")]
    train: Annotated[int | None, Column("number of training images", 20)]
    test: Annotated[int | None, Column("number of test images", 19)]
    classes: Annotated[int | None, Column("number of classes", 21)]
    image_shape: Annotated[
        str | None,
        Column("shape of an image: channels x height x width, or length of a vector", 25),
    ]
    mean: Annotated[
        str | None,
        Column("mean of each channel, used to normalize images with pixels in [0, 1]", 29),
    ]
    std: Annotated[str | None, Column("standard deviation of each channel, used likewise", 28)]
    fingerprint: Annotated[str | None, Column("SHA-256 of the images and labels", 30)]
    epoch: Annotated[int | None, Column("epochs trained so far")]
    steps: Annotated[int | None, Column("steps of the optimizer so far", 4)]
    noise_ratio: Annotated[float | None, Column(NOISE_RATIO, 3)]
    noise_kind: Annotated[
        str | None, Column("kind of noise: uniform, symmetric, pairflip, matrix or given", 7)
    ]
    noise_seed: Annotated[int | None, Column("seed of the noise", 31)]
    front_noise_ratio: Annotated[
        float | None, Column("of a stitched model, the noise ratio of its front, in [0, 1]", 8)
    ]
    back_noise_ratio: Annotated[
        float | None, Column("of a stitched model, the noise ratio of its back, in [0, 1]", 9)
    ]
    seed: Annotated[int | None, Column("seed of the run, or of the noise in a label file", 6)]
    order_seed: Annotated[
        int | None, Column("seed of the order of batches where it is another; else empty", 28)
    ]
    loss: Annotated[float | None, Column("mean cross-entropy on the given labels, in nats", 22)]
    given_accuracy: Annotated[float | None, Column("accuracy on the given labels, in [0, 1]")]
    true_accuracy: Annotated[float | None, Column("accuracy on the true labels, in [0, 1]", 10)]
    mislabelled_accuracy: Annotated[float | None, Column("memorization, in [0, 1]")]
    test_accuracy: Annotated[float | None, Column("accuracy on the test images, in [0, 1]")]
    computed_by: Annotated[
        str | None,
        Column("versions, number of threads and device, on which the last digits depend", 33),
    ]


class LayerRow(TypedDict):
    """One layer of a checkpoint's model."""

    checkpoint: Annotated[str, Column("path of the checkpoint")]
    layer: Annotated[str, Column("dotted name of the layer")]
    type: Annotated[str, Column("class of its module")]
    shape: Annotated[str, Column("shape of its output for one image")]
    cut: Annotated[bool, Column("whether the network can be cut there for stitching")]
    same_as: Annotated[
        str | None,
        Column("layer whose output is always the very same tensor; else empty", 5),
    ]


class FindingRow(TypedDict):
    """One claim of the paper, and whether it holds in a reproduction."""

    claim: Annotated[str, Column("what the paper says, or what follows from it")]
    measure: Annotated[
        str,
        Column(
            "the number that decides it: thirds are those of the depth, convergence is the mean "
            "over the epochs of CKA to the own final model, Spearman the rank correlation, 0 where "
            "the values range over less than 0.01",
            10,
        ),
    ]
    value: Annotated[
        float | None,
        Column("that number, of the mean over the seeds; empty if the tables do not suffice"),
    ]
    low: Annotated[
        float | None,
        Column(
            "lower end of its 95% interval, a percentile bootstrap over the seeds; empty for one "
            "seed"
        ),
    ]
    high: Annotated[float | None, Column("upper end of that interval")]
    seeds: Annotated[int, Column("number of seeds", 5)]
    verdict: Annotated[
        str,
        Column(
            "holds or does not, where the whole interval is beyond a bound, which the last column "
            "tells; else undecided"
        ),
    ]
    why: Annotated[str, Column("why, in one sentence", 20)]


class StepRow(TypedDict):
    """The latest run of one step of a reproduction."""

    step: Annotated[str, Column("what it does, and for which run")]
    command: Annotated[
        str, Column("its command, with paths relative to the folder of the reproduction", 5)
    ]
    output: Annotated[str, Column("the first file that it makes, likewise", 4)]
    digest: Annotated[str | None, Column("SHA-256 of the size and the first MiB of that file")]
    seconds: Annotated[float | None, Column("how long it ran; empty if it did not end well")]
    memory: Annotated[int | None, Column("largest resident memory of its process, in bytes", 1)]
    warnings: Annotated[str | None, Column("what it warned of; empty if of nothing", 3)]


TABLES = (TrainingRow, CkaRow, StitchingRow, PointRow, FileRow, LayerRow, FindingRow, StepRow)
# The type of each column's cells, which is the same in all tables.
CELL_TYPES = {column: type_ for table in TABLES for column, type_ in cell_types(table).items()}
