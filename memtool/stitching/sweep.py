"""Stitching checkpoints: every front, every cut, both directions and the control.

A job is one cut of one front, in all directions. Its rows come together, because each holds the
accuracy of the control at its cut.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from memtool import MemtoolError
from memtool.checkpoints.checkpoint import Checkpoint, Network
from memtool.data.datasets import Dataset
from memtool.device import Processes
from memtool.files import check_writable, replacing
from memtool.layers import Back, Layer, run_to
from memtool.models.spec import Connector
from memtool.models.stitched import StitchedModel, StitchingLayer, joined, start
from memtool.stitching.cuts import Cut, check
from memtool.stitching.settings import Start
from memtool.tensors import save_tensors
from memtool.training import TrainConfig, accuracy, make_optimizer, optimize, predict

T = TypeVar("T")
Row = dict[str, Any]
Job = tuple[Checkpoint, Cut]
FORWARD_BATCH = 256


class Direction(StrEnum):
    """What is stitched to what, for each front F and the back B that were named."""

    forward = "forward"  # the front of F to the back of B
    reverse = "reverse"  # the front of B to the back of F
    control = "control"  # the front of F to its own back


def directed(direction: Direction, parts: tuple[T, T], cut: Cut) -> tuple[tuple[T, T], Cut]:
    """Which of (front, back) gives its front and which its back, and the cut between them."""
    (front, back), (f, b) = parts, cut
    match direction:
        case Direction.forward:
            return (front, back), (f, b)
        case Direction.reverse:
            return (back, front), (b, f)
        case Direction.control:
            return (front, front), (f, f)


@dataclass(frozen=True)
class Plan:
    """What is done at each cut: the directions, the stitching layer, its start and its training.

    `memory` is what the activations kept of front and back may take, in bytes, half of it each,
    and the most that a flattened stitching layer may take while it is fitted. With `curve` every
    epoch gives rows, and epoch 0, the start; else the last one alone.
    """

    directions: tuple[Direction, ...]
    config: TrainConfig
    connector: Connector = Connector.auto
    start: Start = Start.lstsq
    batch_norm: bool = False
    resize: bool = False
    memory: int = 4 << 30
    curve: bool = False

    @property
    def trains(self) -> bool:
        return self.connector is not Connector.none

    @property
    def epochs(self) -> int:
        return self.config.epochs if self.trains else 0

    @property
    def rows_per_job(self) -> int:
        return len(self.directions) * (self.epochs + 1 if self.curve else 1)

    def layer(self, cut: Cut) -> StitchingLayer:
        """The stitching layer at `cut`, as torch starts it.

        Raises MemtoolError if the two layers cannot be joined so, or the map has no such start.
        """
        front, back = cut
        kind = joined(front, back, self.connector, self.resize, self.memory)
        layer = StitchingLayer(kind, front.shape, back.shape, self.batch_norm)
        inputs, outputs = layer.size
        if self.trains and self.start is Start.identity and inputs != outputs:
            raise MemtoolError(
                f"no identity from the {inputs} channels of {front.name!r} to the {outputs} of "
                f"{back.name!r}; use --init lstsq or random"
            )
        return layer

    def check(self, cuts: Mapping[Path, Sequence[Cut]]) -> None:
        """Raise MemtoolError unless all `cuts` can be joined, in all directions."""
        with torch.device("meta"):
            for cut in {cut for own in cuts.values() for cut in own}:
                for direction in self.directions:
                    self.layer(directed(direction, (None, None), cut)[1])

    def settings(self) -> Row:
        """The columns that are the same in each row."""
        config = self.config
        training = {
            "start": str(self.start),
            "optimizer": str(config.optimizer),
            "learning_rate": config.learning_rate,
            "batch_size": config.batch_size,
        }
        return {
            **(training if self.trains else dict.fromkeys(training)),
            "epochs": self.epochs,
            "seed": config.seed,
        }


@dataclass(frozen=True)
class Examples:
    """The images of both splits, uint8 (n, c, h, w), training images first, and their true labels,
    on one device."""

    images: Tensor
    labels: Tensor
    train: int  # how many

    @staticmethod
    def of(dataset: Dataset, device: torch.device) -> "Examples":
        splits = dataset.train, dataset.test
        return Examples(
            torch.cat([torch.from_numpy(split.images) for split in splits]).to(device),
            torch.cat([torch.from_numpy(split.labels) for split in splits]).to(device),
            len(dataset.train),
        )

    @cached_property
    def train_indices(self) -> Tensor:
        return torch.arange(self.train, device=self.labels.device)

    @cached_property
    def test_indices(self) -> Tensor:
        return torch.arange(self.train, len(self.labels), device=self.labels.device)

    @property
    def test_labels(self) -> Tensor:
        return self.labels[self.train :]


class Part:
    """A network, as front or back, with its activations at the cuts.

    One forward pass over all images gives the activations at all `layers`; those that fit in
    `memory` bytes are kept, in float32. The rest is computed again, batch by batch, when asked
    for; that are first the layers near the input, which are large and soon computed.
    """

    def __init__(
        self, checkpoint: Checkpoint, layers: Sequence[Layer], examples: Examples, memory: int
    ) -> None:
        self.checkpoint, self.examples = checkpoint, examples
        self.network: Network = checkpoint.network(examples.images.device)
        self._last = layers[-1].name if layers else None
        self._backs: dict[str, Back] = {}
        self._first = self.network.normalized(examples.images[:1])
        self._kept = self._computed(_fitting(layers, len(examples.images), memory))

    @torch.no_grad()
    def _computed(self, layers: Sequence[Layer]) -> dict[str, Tensor]:
        images = self.examples.images
        kept = {
            layer.name: torch.empty(len(images), *layer.shape, device=images.device)
            for layer in layers
        }
        for begin in range(0, len(images) if kept else 0, FORWARD_BATCH):
            batch = slice(begin, begin + FORWARD_BATCH)
            for name, activation in self._run_to(list(kept), images[batch]).items():
                kept[name][batch] = activation
        return kept

    def _run_to(self, layers: Sequence[str], images: Tensor) -> dict[str, Tensor]:
        return run_to(self.network.model, layers, self.network.normalized(images))

    @torch.no_grad()
    def at(self, layer: str, indices: Tensor) -> Tensor:
        """The activation at `layer` of the examples at `indices`."""
        if layer in self._kept:
            return self._kept[layer][indices]
        return self._run_to([layer], self.examples.images[indices])[layer]

    def finished(self, layer: str, activation: Tensor) -> Tensor:
        """Logits from `activation` at `layer` on."""
        # Of the images only their number matters, if anything.
        images = self._first.expand(len(activation), *self._first.shape[1:])
        if layer not in self._backs:
            self._backs[layer] = Back(self.network.model, layer)
        return self._backs[layer](activation, images)

    def training_batches(self, layer: str) -> Iterator[Tensor]:
        """The activation at `layer` of all training images, in batches of about equal size: batch
        norm cannot take the statistics of a single example that is left over."""
        indices = self.examples.train_indices
        for batch in indices.chunk(-(-len(indices) // FORWARD_BATCH)):
            yield self.at(layer, batch)

    def check_cuts(self, layers: Sequence[Layer]) -> None:
        """Raise MemtoolError unless all `layers` are cuts of this network as it is."""
        for layer in layers:
            check(self.network, layer.name, self.examples.images[:2], str(self.checkpoint.path))

    @cached_property
    def predictions(self) -> Tensor:
        """The class of each test image, (n,), by this network alone."""

        def logits(indices: Tensor) -> Tensor:
            if self._last is None:
                return self.network(self.examples.images[indices])
            return self.finished(self._last, self.at(self._last, indices))

        test = self.examples.test_indices
        return predict(lambda i: logits(test[i]), len(test), test.device).argmax(1)

    @cached_property
    def accuracy(self) -> float:
        """Test accuracy of this network alone."""
        return (self.predictions == self.examples.test_labels).double().mean().item()


def _fitting(layers: Sequence[Layer], examples: int, memory: int) -> list[Layer]:
    """The layers, the last ones first, whose float32 activations fit in `memory` bytes together."""
    result = []
    for layer in reversed(layers):
        size = 4 * examples * math.prod(layer.shape)
        if size <= memory:
            memory -= size
            result.append(layer)
    return result


def sweep(
    fronts: Sequence[Checkpoint],
    back: Checkpoint,
    cuts: Mapping[Path, Sequence[Cut]],
    plan: Plan,
    examples: Examples,
    folder: Path | None = None,
    done: int = 0,
    ranks: Processes | None = None,
) -> Iterator[Row]:
    """Stitch each front to the back at each of its `cuts`; yield the rows of each job in turn.

    The stitching layer is trained on the true labels of the training images; the stitched model is
    kept in `folder`, unless that is None. The first `done` jobs are left out. Several processes
    share the jobs, and yield all rows each.
    """
    ranks = ranks or Processes()
    jobs = [(front, cut) for front in fronts for cut in cuts[front.path]][done:]
    mine = _worked_off(ranks.share(jobs), back, plan, examples, folder)
    for _ in range(0, len(jobs), ranks.size):
        for rows in ranks.gather(next(mine, [])):
            yield from rows


def _worked_off(
    jobs: Sequence[Job], back: Checkpoint, plan: Plan, examples: Examples, folder: Path | None
) -> Iterator[list[Row]]:
    """The rows of each job."""
    if not jobs:
        return
    needs_back = plan.start is Start.lstsq or Direction.reverse in plan.directions
    memory = plan.memory // 2
    theirs = list(dict.fromkeys(b for _, (_, b) in jobs))
    end = Part(back, theirs if needs_back else [], examples, memory)
    end.check_cuts(theirs)
    for front, group in groupby(jobs, key=lambda job: job[0]):
        own = [cut for _, cut in group]
        ours = list(dict.fromkeys(f for f, _ in own))
        begin = Part(front, ours, examples, memory)
        if set(plan.directions) != {Direction.forward}:
            begin.check_cuts(ours)
        for cut in own:
            yield _job((begin, end), cut, plan, folder)
        del begin  # before the next front takes its memory


def _job(parts: tuple[Part, Part], cut: Cut, plan: Plan, folder: Path | None) -> list[Row]:
    rows = []
    for direction in plan.directions:
        stitching = Stitching(*directed(direction, parts, cut), plan)
        rows += [{"direction": str(direction), **row} for row in stitching.rows()]
        if folder:
            stitching.save(folder)
    control = {
        row["epoch"]: row["test_accuracy"] for row in rows if row["direction"] == Direction.control
    }
    return [{**row, "control_accuracy": control.get(row["epoch"])} for row in rows]


class Stitching:
    """One front, one back, and the stitching layer at a cut, which alone is trained: both networks
    are in eval mode and frozen."""

    def __init__(self, parts: tuple[Part, Part], cut: Cut, plan: Plan) -> None:
        self.front, self.back = parts
        self.cut, self.plan = cut, plan
        self.front_layer, self.back_layer = (layer.name for layer in cut)
        self.examples = self.front.examples
        with torch.random.fork_rng(devices=[]):  # all that is random is drawn on the CPU
            torch.manual_seed(plan.config.seed)
            self.layer = plan.layer(cut).to(self.examples.images.device)

    def rows(self) -> Iterator[Row]:
        """Train the stitching layer; yield the row of each epoch that the plan asks for."""
        for epoch in self._trained():
            if self.plan.curve or epoch == self.plan.epochs:
                yield {
                    **self._conditions(),
                    **self.plan.settings(),
                    "epoch": epoch,
                    **self._measured(),
                }

    def _trained(self) -> Iterator[int]:
        """Yield 0 when the layer has its start, then the number of each epoch, in eval mode."""
        layer, plan = self.layer, self.plan
        start(layer, plan.start, self._inputs, lambda: self.back.training_batches(self.back_layer))
        yield 0
        if not plan.epochs:
            return
        optimizer = make_optimizer(list(layer.parameters()), plan.config)
        labels = self.examples.labels[: self.examples.train]
        with torch.random.fork_rng(devices=[]):
            layer.train()
            for epoch in optimize(self._logits, labels, optimizer, plan.config):
                layer.settle(self._inputs())
                yield epoch
                layer.train()

    def _inputs(self) -> Iterator[Tensor]:
        return self.front.training_batches(self.front_layer)

    def _logits(self, indices: Tensor) -> Tensor:
        activation = self.front.at(self.front_layer, indices)
        return self.back.finished(self.back_layer, self.layer(activation))

    def _measured(self) -> Row:
        examples = self.examples
        test = examples.test_indices
        logits = predict(lambda i: self._logits(test[i]), len(test), test.device)
        loss = functional.cross_entropy(logits.double(), examples.test_labels).item()
        if not math.isfinite(loss):
            raise MemtoolError(
                f"{self.front.checkpoint.path} at {self.front_layer!r} stitched to "
                f"{self.back.checkpoint.path}: the loss is {loss}; try a lower --learning-rate"
            )
        return {
            "n": len(test),
            "loss": loss,
            "test_accuracy": accuracy(logits, examples.test_labels),
            "front_accuracy": self.front.accuracy,
            "back_accuracy": self.back.accuracy,
            "agreement": accuracy(logits, self.back.predictions),
        }

    def _conditions(self) -> Row:
        front, back = self.front.checkpoint, self.back.checkpoint
        return {
            "front": str(front.path),
            "back": str(back.path),
            "front_layer": self.front_layer,
            "back_layer": self.back_layer,
            "front_noise_ratio": front.training.get("noise_ratio"),
            "back_noise_ratio": back.training.get("noise_ratio"),
            "connector": str(self.layer.connector),
            "batch_norm": self.layer.before is not None,
            "parameters": sum(parameter.numel() for parameter in self.layer.parameters()),
        }

    def save(self, folder: Path) -> None:
        """Keep the stitched model, a checkpoint like any other."""
        front, back = self.front.checkpoint, self.back.checkpoint
        names = self.front_layer, self.back_layer
        model = StitchedModel(self.front.network.model, self.back.network.model, self.layer, *names)
        settings = {key: value for key, value in self.plan.settings().items() if value is not None}
        metadata = {
            "model": StitchedModel.spec(front.spec, back.spec, *names, self.layer).json(),
            # Images go in at the front, classes come out at the back.
            "data": {**back.data, "mean": front.data["mean"], "std": front.data["std"]},
            "training": {
                **settings,
                "epoch": self.plan.epochs,
                "noise_ratio": front.training.get("noise_ratio"),
                "front": front.training,
                "back": back.training,
            },
        }
        path = stitched_path(folder, (front.path, back.path), self.cut)
        save_tensors(path, "checkpoint", model.state_dict(), metadata)


def stitched_path(folder: Path, parts: tuple[Path, Path], cut: Cut) -> Path:
    """Where a stitched model is kept: FRONT--CUT--BACK.safetensors."""
    joint = "=".join(dict.fromkeys(layer.name for layer in cut))
    return folder / f"{parts[0].stem}--{joint}--{parts[1].stem}.safetensors"


def check_folder(
    folder: Path, back: Path, cuts: Mapping[Path, Sequence[Cut]], directions: Sequence[Direction]
) -> None:
    """Raise MemtoolError unless the stitched models can be kept in `folder`, each by its name."""
    keepers: dict[Path, tuple[Path, Path]] = {}
    for front, own in cuts.items():
        for direction in directions:
            for cut in own:
                parts, between = directed(direction, (front, back), cut)
                path = stitched_path(folder, parts, between)
                check_writable(path)
                if keepers.setdefault(path, parts) != parts:
                    raise MemtoolError(
                        f"{path}: would be the stitched model of {' and '.join(map(str, parts))} "
                        f"and of {' and '.join(map(str, keepers[path]))}; stitch them one by one"
                    )


def described(
    fronts: Sequence[Checkpoint], back: Checkpoint, cuts: Mapping[Path, Sequence[Cut]], plan: Plan
) -> Row:
    """All that settles a sweep but the data set, as JSON holds it."""
    names = {
        str(front.path): [f"{ours.name}={theirs.name}" for ours, theirs in cuts[front.path]]
        for front in fronts
    }
    content = {"back": str(back.path), "cuts": names, **asdict(plan), **asdict(plan.config)}
    del content["config"]
    return dict(json.loads(json.dumps(content)))


@dataclass(frozen=True)
class Unfinished:
    """The rows of a sweep that is not done, `FILE.partial` beside its table: the settings, then a
    row a line, JSON each."""

    path: Path
    settings: Row
    rows_per_job: int

    @staticmethod
    def beside(
        table: Path, settings: Row, networks: Sequence[Checkpoint], plan: Plan
    ) -> "Unfinished | None":
        """None if the table is a pipe or a device, beside which nothing can be kept."""
        if table.exists() and not table.is_file():
            return None
        # A sweep goes on only with the networks that it began with.
        digests = {str(network.path): _digest(network.path) for network in networks}
        path = table.with_name(f"{table.name}.partial")
        return Unfinished(path, {**settings, "networks": digests}, plan.rows_per_job)

    def finished(self) -> list[Row]:
        """The rows of the jobs that were done; none if there is no file.

        Raises MemtoolError if the file is of a sweep with other settings.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]  # the last is not whole
        if not lines or json.loads(lines[0]) != self.settings:
            raise MemtoolError(
                f"{self.path}: is of a sweep with other settings; give those, "
                "or leave out --resume to start anew"
            )
        rows = [json.loads(line) for line in lines[1:]]
        return rows[: len(rows) // self.rows_per_job * self.rows_per_job]

    def keeping(self, finished: Sequence[Row], rows: Iterator[Row]) -> Iterator[Row]:
        """Yield the rows that are `finished`, then `rows`, each once it is kept."""
        with replacing(self.path) as temporary:
            lines = [json.dumps(content) + "\n" for content in (self.settings, *finished)]
            temporary.write_text("".join(lines), encoding="utf-8")
        yield from finished
        with open(self.path, "a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row) + "\n")
                file.flush()
                yield row

    def remove(self) -> None:
        """The sweep is done."""
        self.path.unlink()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
