"""Stitching checkpoints: every front, every cut, both directions and the control."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from memtool import MemtoolError
from memtool.checkpoint import Checkpoint, Network, save_tensors, traced_all
from memtool.choices import Start
from memtool.data import Dataset
from memtool.files import check_writable
from memtool.layers import Layer, activations, run_from, select
from memtool.stitch import StitchedModel, StitchingLayer, connector, started
from memtool.train import TrainConfig, accuracy, make_optimizer, optimize, predict

T = TypeVar("T")
Cut = tuple[Layer, Layer]  # of the front, of the back
FORWARD_BATCH = 256


class Direction(StrEnum):
    """What is stitched to what, for each front F and the back B that were named."""

    forward = "forward"  # the front of F to the back of B
    reverse = "reverse"  # the front of B to the back of F
    control = "control"  # the front of F to its own back


def cuts(
    front: Sequence[Layer], back: Sequence[Layer], at: Sequence[str], name: str, back_name: str
) -> list[Cut]:
    """The cuts that match `at`: globs on the front's layers, or FRONT=BACK for other names there.

    A layer is met under its outermost name alone. Raises MemtoolError for a layer that is no cut,
    naming the innermost block around it that is one, and for shapes that cannot be joined; `name`
    and `back_name` say whose layers they are.
    """
    globs = [pattern for pattern in at if "=" not in pattern]
    chosen = [(layer, layer.name) for layer in _cuts_matching(front, globs, name)]
    for pattern in at:
        ours, equals, theirs = pattern.partition("=")
        if equals:
            chosen += [(layer, theirs) for layer in _cuts_matching(front, [ours], name)]
    result = []
    for layer, other in chosen:
        counterpart = _cuts_matching(back, [other], back_name)[0]
        connector(layer, counterpart)
        result.append((layer, counterpart))
    return result


def all_cuts(
    fronts: Sequence[Checkpoint], back: Checkpoint, at: Sequence[str]
) -> dict[Path, list[Cut]]:
    """The cuts of each front with the back, by the front's path."""
    *ours, theirs = traced_all([*fronts, back])
    return {
        front.path: cuts(layers, theirs, at, str(front.path), str(back.path))
        for front, layers in zip(fronts, ours, strict=True)
    }


def _cuts_matching(layers: Sequence[Layer], patterns: Sequence[str], name: str) -> list[Layer]:
    found = select(layers, patterns, name) if patterns else []
    typed = {layer.name for layer in found} & set(patterns)
    for layer in found:
        if layer.name in typed and not layer.is_cut:
            around = [
                block.name
                for block in layers
                if block.is_cut and layer.name.startswith(f"{block.name}.")
            ]
            hint = f"the block around it, {around[0]!r}, is" if around else "nor is a block of it"
            raise MemtoolError(
                f"{name}: {layer.name!r} is not a cut, what comes after it depends on the input "
                f"in other ways too; {hint} (list them: memtool info --layers {name})"
            )
    result = [
        layer
        for layer in found
        if layer.is_cut and (layer.name in typed or layer.same_as == layer.name)
    ]
    if found and not result:
        raise MemtoolError(
            f"{name}: no layer that matches {', '.join(patterns)!r} is a cut "
            f"(list them: memtool info --layers {name})"
        )
    return result


@dataclass(frozen=True)
class Examples:
    """Images, uint8 (n, c, h, w), and true labels of both splits, on one device."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @staticmethod
    def of(dataset: Dataset, device: torch.device) -> "Examples":
        arrays = (
            dataset.train.images,
            dataset.train.labels,
            dataset.test.images,
            dataset.test.labels,
        )
        return Examples(*(torch.from_numpy(array).to(device) for array in arrays))


class Part:
    """A network, as front or back: its activations at the cuts, each computed once."""

    def __init__(self, checkpoint: Checkpoint, layers: Sequence[str], examples: Examples) -> None:
        self.checkpoint, self.examples = checkpoint, examples
        self.network: Network = checkpoint.network(examples.train_images.device)
        self.train = _activations(self.network, layers, examples.train_images)
        self.test = _activations(self.network, layers, examples.test_images)

    @cached_property
    def predictions(self) -> Tensor:
        """The class of each test image, (n,), by this network alone."""
        images = self.examples.test_images
        logits = predict(lambda i: self.network(images[i]), len(images), images.device)
        return logits.argmax(1)

    @cached_property
    def accuracy(self) -> float:
        """Test accuracy of this network alone."""
        return (self.predictions == self.examples.test_labels).double().mean().item()


def _activations(network: Network, layers: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Of all images at each layer, (n, ...), in one forward pass of the network."""
    batches: dict[str, list[Tensor]] = {name: [] for name in layers}
    with torch.no_grad(), activations(network.model, layers, torch.clone) as found:
        for batch in images.split(FORWARD_BATCH):
            network(batch)
            for name in layers:
                batches[name].append(found[name])
    return {name: torch.cat(parts) for name, parts in batches.items()}


def sweep(
    fronts: Sequence[Checkpoint],
    back: Checkpoint,
    cuts: Mapping[Path, Sequence[Cut]],
    directions: Sequence[Direction],
    examples: Examples,
    start: Start,
    config: TrainConfig,
    folder: Path | None,
) -> Iterator[dict[str, Any]]:
    """Stitch each front to the back at each of its `cuts`; yield a row for each that is done.

    The stitching layer is trained as `config` says on the true labels of the training images;
    the stitched model is kept in `folder`, unless that is None.
    """
    end = Part(back, [b.name for pairs in cuts.values() for _, b in pairs], examples)
    for front in fronts:
        own = cuts[front.path]
        begin = Part(front, [f.name for f, _ in own], examples)
        for f, b in own:
            for direction in directions:
                (front_part, back_part), cut = _directed(direction, (begin, end), (f, b))
                layer = _trained(front_part, back_part, cut, start, config)
                if folder:
                    _save(folder, front_part, back_part, cut, layer, start, config)
                yield {
                    "direction": str(direction),
                    **_conditions(front_part, back_part, cut, layer),
                    "start": str(start),
                    **_settings(config),
                    **_measured(front_part, back_part, cut, layer),
                }


def _directed(direction: Direction, parts: tuple[T, T], cut: Cut) -> tuple[tuple[T, T], Cut]:
    """Which of (front, back) gives its front and which its back, and the cut between them."""
    (front, back), (f, b) = parts, cut
    match direction:
        case Direction.forward:
            return (front, back), (f, b)
        case Direction.reverse:
            return (back, front), (b, f)
        case Direction.control:
            return (front, front), (f, f)


def _trained(
    front: Part, back: Part, cut: Cut, start: Start, config: TrainConfig
) -> StitchingLayer:
    """The stitching layer at `cut`, trained alone: both networks are in eval mode and frozen."""
    inputs, targets = front.train[cut[0].name], back.train[cut[1].name]
    examples = front.examples
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        layer = started(
            start,
            *cut,
            lambda: zip(inputs.split(FORWARD_BATCH), targets.split(FORWARD_BATCH), strict=True),
            inputs.device,
        )
        optimizer = make_optimizer(list(layer.parameters()), config)

        def forward(batch: Tensor) -> Tensor:
            return _finished(back, cut[1], layer(inputs[batch]))

        for _ in optimize(forward, examples.train_labels, optimizer, config):
            pass
    return layer


def _finished(back: Part, layer: Layer, activation: Tensor) -> Tensor:
    """Logits of the back from `activation` at its layer on."""
    images = back.network.normalized(back.examples.train_images[: len(activation)])
    return run_from(back.network.model, layer.name, activation, images)


def _measured(front: Part, back: Part, cut: Cut, layer: StitchingLayer) -> dict[str, Any]:
    examples = front.examples
    device = examples.train_images.device

    def logits(activation: Tensor) -> Tensor:
        return predict(
            lambda i: _finished(back, cut[1], layer(activation[i])), len(activation), device
        )

    trained = logits(front.train[cut[0].name]).double()
    tested = logits(front.test[cut[0].name])
    loss = torch.nn.functional.cross_entropy(trained, examples.train_labels)
    return {
        "n": len(examples.test_labels),
        "loss": loss.item(),
        "test_accuracy": accuracy(tested, examples.test_labels),
        "front_accuracy": front.accuracy,
        "back_accuracy": back.accuracy,
        "agreement": accuracy(tested, back.predictions),
    }


def _conditions(front: Part, back: Part, cut: Cut, layer: StitchingLayer) -> dict[str, Any]:
    return {
        "front": str(front.checkpoint.path),
        "back": str(back.checkpoint.path),
        "front_layer": cut[0].name,
        "back_layer": cut[1].name,
        "front_noise_ratio": front.checkpoint.training.get("noise_ratio"),
        "back_noise_ratio": back.checkpoint.training.get("noise_ratio"),
        "connector": connector(*cut),
        "parameters": sum(parameter.numel() for parameter in layer.parameters()),
    }


def _settings(config: TrainConfig) -> dict[str, Any]:
    shown = ("epochs", "learning_rate", "batch_size", "seed")
    return {key: value for key, value in asdict(config).items() if key in shown}


def _path(folder: Path, front: Path, back: Path, cut: Cut) -> Path:
    """Where a stitched model is kept: FRONT--CUT--BACK.safetensors."""
    joint = "=".join(dict.fromkeys(layer.name for layer in cut))
    return folder / f"{front.stem}--{joint}--{back.stem}.safetensors"


def check_folder(
    folder: Path,
    back: Path,
    cuts: Mapping[Path, Sequence[Cut]],
    directions: Sequence[Direction],
) -> None:
    """Raise MemtoolError unless the stitched models can be kept in `folder`, each by its name."""
    keepers: dict[Path, tuple[Path, Path]] = {}
    for front, own in cuts.items():
        for direction in directions:
            for cut in own:
                parts, directed = _directed(direction, (front, back), cut)
                path = _path(folder, *parts, directed)
                check_writable(path)
                if keepers.setdefault(path, parts) != parts:
                    raise MemtoolError(
                        f"{path}: would be the stitched model of {' and '.join(map(str, parts))} "
                        f"and of {' and '.join(map(str, keepers[path]))}; stitch them one by one"
                    )


def _save(
    folder: Path,
    front: Part,
    back: Part,
    cut: Cut,
    layer: StitchingLayer,
    start: Start,
    config: TrainConfig,
) -> None:
    names = (cut[0].name, cut[1].name)
    model = StitchedModel(front.network.model, back.network.model, layer, *names)
    spec = StitchedModel.spec(front.checkpoint.spec, back.checkpoint.spec, *names, layer)
    training = {
        **asdict(config),
        "start": str(start),
        "epoch": config.epochs,
        "noise_ratio": front.checkpoint.training.get("noise_ratio"),
        "front": front.checkpoint.training,
        "back": back.checkpoint.training,
    }
    metadata = {"model": spec.json(), "data": front.checkpoint.data, "training": training}
    path = _path(folder, front.checkpoint.path, back.checkpoint.path, cut)
    save_tensors(path, "checkpoint", model.state_dict(), metadata)
