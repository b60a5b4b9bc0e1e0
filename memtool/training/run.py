"""A training run on disk.

For the output `runs/r25.safetensors`, the checkpoints of single epochs are
`runs/r25/epoch-0008.safetensors` and so on, and `runs/r25.state.safetensors` exists as long as the
run is unfinished.
"""

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from memtool import MemtoolError
from memtool.data import Dataset, normalize
from memtool.data.labels import LabelFile
from memtool.models import ModelSpec, build
from memtool.tables import TrainingRow
from memtool.tensors import Metadata, save_tensors
from memtool.training.loop import EpochMetrics, Task, fit, make_optimizer
from memtool.training.settings import TrainConfig
from memtool.training.state import State


@dataclass(frozen=True)
class Run:
    """Everything that determines a training run: `train` it, then `finish` it.

    Equal runs write equal bytes, on a CPU and with the same number of threads. `epochs_to_save` are
    the epochs whose checkpoints are kept; 0 stands for the initial weights.
    """

    output: Path
    spec: ModelSpec
    dataset: Dataset
    labels: LabelFile
    config: TrainConfig
    epochs_to_save: Collection[int]

    def epoch_path(self, epoch: int) -> Path:
        """Where the checkpoint of an epoch is kept."""
        return self.output.with_suffix("") / f"epoch-{epoch:04d}.safetensors"

    def metadata(self, metrics: EpochMetrics | None = None) -> Metadata:
        """The metadata of the checkpoint that has these metrics; None is the initial model's."""
        epoch = metrics["epoch"] if metrics else 0
        steps = epoch * self.config.steps_per_epoch(len(self.labels.given))
        noise = {f"noise_{key}": value for key, value in self.labels.metadata["noise"].items()}
        measured = metrics.items() if metrics else ()
        return {
            "model": self.spec.json(),
            "data": self.dataset.metadata(),
            "training": {**asdict(self.config), **noise, "epoch": epoch, "steps": steps},
            "metrics": {key: value for key, value in measured if key != "epoch"},
        }

    def train(self, device: torch.device, resume: bool) -> Iterator[TrainingRow]:
        """Train the model; save its state and the chosen checkpoints, and yield a row, per epoch.

        With `resume`, a stopped run continues from its state, and the rows of the epochs that it
        has done come first: all rows together are those of a run that was never stopped. Raises
        MemtoolError if the state belongs to a run with other settings, if the loss is not finite,
        and for a single training image, whose statistics batch norm cannot compute.
        """
        if len(self.dataset.train) < 2:
            raise MemtoolError(f"{self.dataset.name}: one training image is not enough to train on")
        model = self._initial_model().to(device)
        optimizer = make_optimizer(list(model.parameters()), self.config)
        history = self._state.load(model, optimizer) if resume else []
        yield from map(self._row, history)
        if not history:
            self._save_checkpoint(model)
        for metrics in fit(model, optimizer, self._task(device), self.config, len(history)):
            history.append(metrics)
            self._save_checkpoint(model, metrics)
            self._state.save(model, optimizer, history)
            yield self._row(metrics)

    def finish(self) -> None:
        """Write the final checkpoint, from the state after the last epoch, and remove the state."""
        weights, metrics = self._state.latest()
        save_tensors(self.output, "checkpoint", weights, self.metadata(metrics))
        self._state.remove()

    @cached_property
    def _state(self) -> State:
        settings = {
            **self.metadata(),
            "labels": self.labels.fingerprint,
            "epochs_to_save": sorted(self.epochs_to_save),
        }
        return State(self.output.with_suffix(".state.safetensors"), settings)

    def _initial_model(self) -> nn.Module:
        """The model with weights that follow from the seed alone."""
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            return build(self.spec)

    def _task(self, device: torch.device) -> Task:
        train, test = self.dataset.train, self.dataset.test
        mean, std = self.dataset.mean, self.dataset.std
        return Task(
            images=torch.from_numpy(train.images).to(device),
            given=torch.from_numpy(self.labels.given).to(device),
            true=torch.from_numpy(self.labels.true).to(device),
            test_images=torch.from_numpy(test.images).to(device),
            test_labels=torch.from_numpy(test.labels).to(device),
            classes=len(self.dataset.classes),
            normalize=lambda images: normalize(images, mean, std),
        )

    def _save_checkpoint(self, model: nn.Module, metrics: EpochMetrics | None = None) -> None:
        """Save the checkpoint of this epoch if it is to be kept."""
        epoch = metrics["epoch"] if metrics else 0
        if epoch in self.epochs_to_save:
            path = self.epoch_path(epoch)
            save_tensors(path, "checkpoint", model.state_dict(), self.metadata(metrics))

    def _row(self, metrics: EpochMetrics) -> TrainingRow:
        noise = self.labels.metadata["noise"]
        return {
            "checkpoint": str(self.output),
            "model": str(self.spec),
            "data": self.dataset.name,
            "noise_ratio": noise["ratio"],
            "noise_kind": noise["kind"],
            "noise_seed": noise["seed"],
            "seed": self.config.seed,
            **metrics,
        }
