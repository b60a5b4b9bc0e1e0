"""A training run on disk.

For the output `runs/r25.safetensors`, the checkpoints of single epochs are
`runs/r25/epoch-0008.safetensors` and so on, and `runs/r25.state.safetensors` exists as long as the
run is unfinished.
"""

import logging
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, cast

import torch
from torch import nn

from memtool import MemtoolError
from memtool.data import Dataset, normalize
from memtool.data.labels import LabelFile
from memtool.device import Processes, computed_by
from memtool.errors import counted
from memtool.files import check_writable
from memtool.models import ModelSpec, build, check_classifier, foreign_code, put_channels_last
from memtool.progress import Advance, unseen
from memtool.tables import TrainingRow
from memtool.tables.schema import LARGEST
from memtool.tensors import Metadata, check_kept, read_metadata, save_tensors
from memtool.training.evaluation import EpochMetrics, Task, evaluate
from memtool.training.loop import fit, make_optimizer, seed_all
from memtool.training.memory import evaluation_batch
from memtool.training.parallel import agree, check_shares, shared, synchronized
from memtool.training.settings import Augment, TrainConfig
from memtool.training.state import State, Trained, check_same, history_of

logger = logging.getLogger("memtool")

# Seconds that lie at least between two states of a run, beside the first and the last: to write one
# may take as long as an epoch. Trained again after a kill is no more than that, and an epoch.
BETWEEN_STATES = 2


@dataclass(frozen=True)
class Run:
    """Everything that determines a training run: `check` it, `train` it, then `finish` it.

    Equal runs write equal bytes, on a CPU and with the same number of threads and processes.
    `epochs_to_save` are the epochs whose checkpoints are kept; 0 stands for the initial weights.
    Of several `processes`, rank 0 alone writes.
    """

    output: Path
    spec: ModelSpec
    dataset: Dataset
    labels: LabelFile
    config: TrainConfig
    epochs_to_save: Collection[int]
    processes: Processes = Processes()

    def epoch_path(self, epoch: int) -> Path:
        """Where the checkpoint of an epoch is kept."""
        return self.output.with_suffix("") / f"epoch-{epoch:04d}.safetensors"

    def metadata(self, progress: Trained = Trained()) -> Metadata:
        """The metadata of the checkpoint that a run has after its latest epoch; those of the
        initial model have no metrics."""
        latest = progress.history[-1].items() if progress.history else ()
        return {
            **self._settings,
            "training": {
                **self._settings["training"],
                "epoch": progress.epoch,
                "steps": self.steps(progress.epoch),
            },
            "metrics": {key: value for key, value in latest if key != "epoch"},
            "history": list(progress.history),
        }

    def steps(self, epochs: int) -> int:
        """The steps of the optimizer in so many epochs."""
        return epochs * self.config.steps_per_epoch(len(self.labels.given))

    def finished(self) -> list[TrainingRow] | None:
        """The rows of the run if its final checkpoint is there, else None.

        Raises MemtoolError if there is another file of that name, or that of a run with other
        settings.
        """
        if not self.output.exists():
            return None
        metadata = read_metadata(self.output, "checkpoint")
        training = {**metadata["training"]}
        done = [training.pop(key, None) for key in ("epoch", "steps")]
        recorded = {"model": metadata["model"], "data": metadata["data"], "training": training}
        check_same(self.output, recorded, self._settings)
        if done[0] != self.config.epochs:
            raise MemtoolError(f"{self.output}: is of epoch {done[0]}, not {self.config.epochs}")
        return [self._row(metrics) for metrics in history_of(self.output, metadata)]

    def check(self, resume: bool) -> None:
        """Raise MemtoolError, before the work, if the files of the run could not be written, or not
        read again, if they would take the place of others, if the state is none to resume, or if
        the model is no classifier of the data set; and for a finished run, unless it is resumed:
        nothing is overwritten."""
        if self.finished() is not None:
            if not resume:
                raise MemtoolError(
                    f"{self.output}: is finished; --resume takes it as it is; to train it anew "
                    "remove it, or choose another -o"
                )
            logger.info(f"{self.output}: is finished; nothing to do")
            return
        check_kept(self.output, "checkpoint", self.metadata())
        for epoch in self.epochs_to_save:
            path = self.epoch_path(epoch)
            check_writable(path)
            if path.exists() and not _is_of_an_epoch(path):
                raise MemtoolError(
                    f"{path}: is no checkpoint of a single epoch, which would take its place; move "
                    "it, or choose another -o"
                )
        check_writable(self._state.path)
        if self._state.path.exists():
            self._state.check(resume)
        check_classifier(self.spec, self.dataset.image_shape, len(self.dataset.classes))

    def train(
        self, device: torch.device, resume: bool, advance: Advance = unseen
    ) -> Iterator[TrainingRow | None]:
        """Train the model; save the chosen checkpoints and, now and then, its state; yield a row
        per epoch, None for one that is not evaluated. Of a finished run, the rows are those on
        record.

        With `resume`, a stopped run continues from its state, and the rows of the epochs that it
        has done come first: all rows together are those of a run that was never stopped. `advance`
        is told of each step of the optimizer, and at once of all those that are done. Raises
        MemtoolError if the loss is not finite and, before a row is asked for, if the state belongs
        to a run with other settings, for a single training image, whose statistics batch norm
        cannot compute, if the memory is not enough, and for vectors that are to be augmented.
        """
        if (rows_on_record := self.finished()) is not None:
            advance(self.steps(self.config.epochs))
            return iter(rows_on_record)
        if len(self.dataset.train) < 2:
            raise MemtoolError(f"{self.dataset.name}: one training image is not enough to train on")
        if self.config.augment is Augment.crop_flip and len(self.dataset.image_shape) != 3:
            raise MemtoolError(f"{self.dataset.name}: vectors cannot be cropped and mirrored")
        check_shares(self.config, len(self.dataset.train), self.processes)
        model, task = self._prepared(device)
        optimizer = make_optimizer(model, self.config)
        if not resume and self._state.path.exists():
            logger.info(f"{self._state.path}: a stopped run, which --resume continues; starts anew")
        progress = self._state.load(model, optimizer) if resume else Trained()
        advance(self.steps(progress.epoch))
        return self._rows(model, optimizer, task, progress, device, advance)

    def _rows(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        task: Task,
        progress: Trained,
        device: torch.device,
        advance: Advance,
    ) -> Iterator[TrainingRow | None]:
        """Those that `train` yields, from `progress` on."""
        rows = {metrics["epoch"]: self._row(metrics) for metrics in progress.history}
        yield from (rows.get(epoch) for epoch in range(1, progress.epoch + 1))
        if not progress.epoch:
            self._save_checkpoint(model, progress, device)
            if not self.config.epochs and not self.processes.rank:
                self._state.save(model, optimizer, progress)
        cost, started = _Cost(), _clock(device)
        saved = -inf
        for epoch in self._epochs(model, optimizer, task, progress.epoch, advance):
            agree(model, self.processes)
            trained = _clock(device)
            metrics = self._evaluated(model, task, epoch)
            cost = cost.plus(trained - started, _clock(device) - trained)
            history = (*progress.history, metrics) if metrics else progress.history
            progress = Trained(epoch, history)
            self._save_checkpoint(model, progress, device)
            is_due = monotonic() >= saved + BETWEEN_STATES or epoch == self.config.epochs
            if is_due and not self.processes.rank:
                self._state.save(model, optimizer, progress)
                saved = monotonic()
            yield self._row(metrics) if metrics else None
            started = _clock(device)
        if cost.epochs:
            logger.info(f"{self.output}: {cost.told(len(self.labels.given))}")

    def finish(self, device: torch.device) -> None:
        """Write the final checkpoint, from the state after the last epoch, and remove the state.

        One that is there already becomes as new as if it had been written, for make's sake.
        """
        if self.output.exists():
            self.output.touch()
        else:
            weights, progress = self._state.latest()
            recorded = {**self.metadata(progress), "computed_by": computed_by(device)}
            save_tensors(self.output, "checkpoint", weights, recorded)
        self._state.remove()

    @cached_property
    def _settings(self) -> Metadata:
        """What checkpoints and the state have on record, and two runs of one name must share."""
        noise = {f"noise_{key}": value for key, value in self.labels.metadata["noise"].items()}
        return {
            "model": self.spec.json(),
            "data": self.dataset.metadata(),
            "training": {
                **self.config.recorded(),
                **noise,
                "labels": self.labels.fingerprint,
                "saved_epochs": sorted(self.epochs_to_save),
                "processes": self.processes.size,
            },
        }

    @cached_property
    def _state(self) -> State:
        return State(self.output.with_suffix(".state.safetensors"), self._settings)

    def _initial_model(self) -> nn.Module:
        """The model with weights that follow from the seed alone."""
        with torch.random.fork_rng(devices=[]):
            seed_all(self.config.seed)
            model = build(self.spec)
        together = self.config.sync_batch_norm and self.processes.size > 1
        return synchronized(model) if together else model

    def _prepared(self, device: torch.device) -> tuple[nn.Module, Task]:
        """The model with its initial weights, and the task, in the memory format and with the batch
        of evaluation that suit it. What that is, another one tells, in which trials may leave what
        they want."""
        task = self._task(device)  # first, as the images leave less memory for all else
        trial, few = self._initial_model().to(device), task.normalize(task.images[:2])
        most = min(self.config.batch_size, len(self.dataset.train))
        config = replace(self.config, batch_size=most)  # no step has more images than there are
        with foreign_code(f"model {self.spec}"):
            batch = evaluation_batch(trial, few[:1], config, self.processes)
        task = replace(task, batch_size=batch)
        convolves = any(isinstance(layer, nn.Conv2d) for layer in trial.modules())
        channels_last = convolves and put_channels_last(trial, few)
        del trial
        model = self._initial_model().to(device)
        if channels_last:
            model.to(memory_format=torch.channels_last)
            task = replace(task, memory_format=torch.channels_last)
        return model, task

    def _epochs(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        task: Task,
        done: int,
        advance: Advance,
    ) -> Iterator[int]:
        """Train one epoch after the other and yield its number."""
        with foreign_code(f"model {self.spec}"):
            trained = shared(model, task, self.processes)
        if self.config.compile:
            # By itself the compiler puts the channels last on a CPU, even where that is unsafe.
            keeping: Any = {} if task.memory_format else {"options": {"layout_optimization": False}}
            trained = cast(nn.Module, torch.compile(trained, **keeping))
        with foreign_code("--compile" if self.config.compile else f"model {self.spec}"):
            yield from fit(trained, optimizer, task, self.config, done, self.processes, advance)

    def _evaluated(self, model: nn.Module, task: Task, epoch: int) -> EpochMetrics | None:
        """The metrics after `epoch`, if it is to be evaluated. Raises MemtoolError if a loss is
        not finite, or larger than files hold."""
        if not self.config.evaluates(epoch) and epoch not in self.epochs_to_save:
            return None
        with foreign_code(f"model {self.spec}"):
            metrics = evaluate(model, task, self.config.precision, self.processes)
        for name, value in metrics.items():
            if isinstance(value, float) and not abs(value) <= LARGEST:
                raise MemtoolError(
                    f"the {name} is {value} after epoch {epoch}; try a lower --learning-rate"
                )
        return {"epoch": epoch, **metrics}

    def _task(self, device: torch.device) -> Task:
        train, test = self.dataset.train, self.dataset.test
        mean, std = self.dataset.mean, self.dataset.std
        return Task(
            images=train.on(device),
            given=torch.from_numpy(self.labels.given).to(device),
            true=torch.from_numpy(self.labels.true).to(device),
            test_images=test.on(device),
            test_labels=torch.from_numpy(test.labels).to(device),
            classes=len(self.dataset.classes),
            normalize=lambda images: normalize(images, mean, std),
            batch_size=self.config.batch_size,
        )

    def _save_checkpoint(self, model: nn.Module, progress: Trained, device: torch.device) -> None:
        """Save the checkpoint of the latest epoch if it is to be kept."""
        if progress.epoch in self.epochs_to_save and not self.processes.rank:
            path = self.epoch_path(progress.epoch)
            recorded = {**self.metadata(progress), "computed_by": computed_by(device)}
            save_tensors(path, "checkpoint", model.state_dict(), recorded)

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
            "order_seed": self.config.order_seed,
            **metrics,
        }


def _is_of_an_epoch(path: Path) -> bool:
    """Whether a file is what a run keeps of one of its `epochs_to_save`."""
    with suppress(MemtoolError):
        training = read_metadata(path, "checkpoint")["training"]
        return training.get("epoch") in training.get("saved_epochs", ())
    return False


@dataclass(frozen=True)
class _Cost:
    """The seconds that training and evaluation took, of so many epochs."""

    epochs: int = 0
    training: float = 0.0
    evaluation: float = 0.0

    def plus(self, training: float, evaluation: float) -> "_Cost":
        """With those of one more epoch."""
        return _Cost(self.epochs + 1, self.training + training, self.evaluation + evaluation)

    def told(self, examples: int) -> str:
        whole = self.training + self.evaluation
        rate = self.epochs * examples / max(self.training, 1e-9)
        part = self.evaluation / max(whole, 1e-9)
        return (
            f"{counted(self.epochs, 'epoch')} in {whole:.1f} s: trained on {rate:,.0f} images a "
            f"second; evaluation took {part:.0%} of the time"
        )


def _clock(device: torch.device) -> float:
    """The time in seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()
