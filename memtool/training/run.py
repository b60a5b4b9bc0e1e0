"""A training run on disk: its checkpoints, and the state from which a stopped run goes on.

For the output `runs/r25.safetensors`, epoch checkpoints are `runs/r25/epoch-0008.safetensors`, and
`runs/r25.state.safetensors` (weights, optimizer, rows so far) is there while the run is unfinished.
No random state is kept: every epoch's follows from the seed and its number.
"""

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memtool import MemtoolError
from memtool.data.datasets import Dataset, normalize
from memtool.data.labels import LabelFile
from memtool.models import building as models
from memtool.models.spec import ModelSpec
from memtool.tensors import Metadata, load_tensors, read_metadata, save_tensors
from memtool.training.loop import Task, TrainConfig, fit, make_optimizer

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """Everything that settles a training run: equal runs give equal bytes (on a CPU, with the same
    number of threads)."""

    output: Path
    spec: ModelSpec
    dataset: Dataset
    labels: LabelFile
    config: TrainConfig
    epochs_to_save: Collection[int]

    @property
    def state_path(self) -> Path:
        return self.output.with_suffix(".state.safetensors")

    def epoch_path(self, epoch: int) -> Path:
        return self.output.with_suffix("") / f"epoch-{epoch:04d}.safetensors"

    def conditions(self) -> Row:
        """The columns that are the same in each row of the run."""
        noise = self.labels.metadata["noise"]
        return {
            "checkpoint": str(self.output),
            "model": str(self.spec),
            "data": self.dataset.name,
            "noise_ratio": noise["ratio"],
            "noise_kind": noise["kind"],
            "seed": self.config.seed,
        }

    def metadata(self, metrics: Row) -> Metadata:
        """What the checkpoint of the epoch that `metrics` are of says of itself."""
        epoch = metrics["epoch"]
        noise = {f"noise_{key}": value for key, value in self.labels.metadata["noise"].items()}
        steps = epoch * self.config.steps_per_epoch(len(self.labels.given))
        return {
            "model": self.spec.json(),
            "data": self.dataset.metadata(),
            "training": {**asdict(self.config), **noise, "epoch": epoch, "steps": steps},
            "metrics": {key: value for key, value in metrics.items() if key != "epoch"},
        }

    def train(self, device: torch.device, resume: bool) -> Iterator[Row]:
        """Train, saving epoch checkpoints and the state on the way; yield a row an epoch.

        `finish` is to follow. With `resume`, the rows of the epochs already done come first, so
        that the rows are those of a run never stopped. Raises MemtoolError if the state is of a
        run with other settings, or if there is a single image, which batch norm cannot train on.
        """
        if len(self.dataset.train) < 2:
            raise MemtoolError(f"{self.dataset.name}: one training image is not enough to train on")
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            model = models.build(self.spec).to(device)
        optimizer = make_optimizer(list(model.parameters()), self.config)
        history = self._load_state(model, optimizer) if resume else []
        yield from ({**self.conditions(), **metrics} for metrics in history)
        if 0 in self.epochs_to_save and not history:
            save_tensors(
                self.epoch_path(0), "checkpoint", model.state_dict(), self.metadata({"epoch": 0})
            )
        for metrics in fit(model, optimizer, self._task(device), self.config, len(history)):
            history.append(metrics)
            self._save_epoch(model, metrics)
            self._save_state(model, optimizer, history)
            yield {**self.conditions(), **metrics}

    def finish(self) -> None:
        """Make the final checkpoint of the state that the last epoch left, and remove the state."""
        metrics = read_metadata(self.state_path, "state")["history"][-1]
        weights = _part(load_tensors(self.state_path), "model.")
        save_tensors(self.output, "checkpoint", weights, self.metadata(metrics))
        self.state_path.unlink()

    def _task(self, device: torch.device) -> Task:
        train, test = self.dataset.train, self.dataset.test
        mean, std = self.dataset.mean, self.dataset.std
        return Task(
            images=torch.from_numpy(train.images).to(device),
            given=torch.from_numpy(self.labels.given).to(device),
            true=torch.from_numpy(self.labels.true).to(device),
            test_images=torch.from_numpy(test.images).to(device),
            test_labels=torch.from_numpy(test.labels).to(device),
            normalize=lambda images: normalize(images, mean, std),
        )

    def _save_epoch(self, model: nn.Module, metrics: Row) -> None:
        if metrics["epoch"] in self.epochs_to_save:
            path = self.epoch_path(metrics["epoch"])
            save_tensors(path, "checkpoint", model.state_dict(), self.metadata(metrics))

    def _settings(self) -> Metadata:
        """What a state must agree with for the run to go on from it."""
        return {
            **self.metadata({"epoch": 0}),
            "labels": self.labels.fingerprint,
            "epochs_to_save": sorted(self.epochs_to_save),
        }

    def _save_state(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, history: list[Row]
    ) -> None:
        tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
        metadata = {"settings": self._settings(), "history": history}
        save_tensors(self.state_path, "state", tensors, metadata)

    def _load_state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Row]:
        """Put the state, if there is one, into `model` and `optimizer`; return its metrics."""
        if not self.state_path.exists():
            return []
        metadata = read_metadata(self.state_path, "state")
        if metadata["settings"] != self._settings():
            raise MemtoolError(
                f"{self.state_path}: is of a run with other settings; give those, "
                "or leave out --resume to start anew"
            )
        tensors = load_tensors(self.state_path)
        model.load_state_dict(_part(tensors, "model."))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in _part(tensors, "optimizer.").items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        return list(metadata["history"])


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }
