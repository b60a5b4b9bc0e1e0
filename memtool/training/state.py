"""The file from which a stopped run resumes."""

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import get_type_hints

import torch
from torch import Tensor, nn

from memtool import MemtoolError
from memtool.errors import differences, last_line, some
from memtool.files import claimed
from memtool.tensors import Metadata, load_tensors, read_metadata, save_tensors
from memtool.training.evaluation import EpochMetrics
from memtool.training.settings import Optimizer


@dataclass(frozen=True)
class Trained:
    """How far a run has come: the epochs that are done, and the metrics of those of them that were
    evaluated."""

    epoch: int = 0
    history: tuple[EpochMetrics, ...] = ()


@dataclass(frozen=True)
class State:
    """A run after its latest epoch: weights, optimizer state, and its progress.

    `settings` are what a run must have in common with the run that wrote the file in order to
    resume it; they are values that JSON can hold. There is no random state: that of each epoch
    follows from the seed.
    """

    path: Path
    settings: Metadata

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Trained) -> None:
        """Replace the file."""
        tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{index}.{key}": value
                for key, value in state.items()
                if isinstance(value, Tensor)
            }
        recorded = {"epoch": progress.epoch, "history": progress.history}
        save_tensors(self.path, "state", tensors, {"settings": self.settings, **recorded})

    def check(self, resume: bool) -> None:
        """Raise MemtoolError unless the file that is there is a state, and if the run is to
        `resume`, one of a run with these settings."""
        try:
            metadata = read_metadata(self.path, "state")
        except MemtoolError as error:
            raise MemtoolError(
                f"{error}; it is where the run keeps its state: remove or move it, or choose "
                "another -o"
            ) from error
        if resume:
            check_same(self.path, metadata["settings"], self.settings)

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Trained:
        """Restore `model` and `optimizer`; return the progress, which is none without a file.

        Raises MemtoolError if the file belongs to a run with other settings.
        """
        if not self.path.exists():
            return Trained()
        metadata = read_metadata(self.path, "state")
        check_same(self.path, metadata["settings"], self.settings)
        progress = _progress(self.path, metadata)
        tensors = load_tensors(self.path)
        try:
            model.load_state_dict(_part(tensors, "model."))
            _restore(optimizer, _part(tensors, "optimizer."))
        except (RuntimeError, LookupError, ValueError, TypeError) as error:
            raise MemtoolError(
                f"{self.path}: its tensors are not those of the run ({last_line(error)}); "
                "remove it to start anew"
            ) from error
        return progress

    def latest(self) -> tuple[dict[str, Tensor], Trained]:
        """The weights and the progress after the latest epoch; the file has to exist."""
        metadata = read_metadata(self.path, "state")
        return _part(load_tensors(self.path), "model."), _progress(self.path, metadata)

    def remove(self) -> None:
        """Remove the file, if there is one, and what a process that was killed while it wrote the
        file has left: the run is complete."""
        with claimed(self.path):
            self.path.unlink(missing_ok=True)


def _restore(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimizer the state that it had, from tensors named INDEX.NAME."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        shape = () if name == "step" else parameter.shape
        if value.shape != shape:
            raise ValueError(f"{key} is {tuple(value.shape)}, not {tuple(shape)}")
        state.setdefault(int(index), {})[name] = _laid_out(value, parameter)
    kept = Optimizer(type(optimizer).__name__.lower()).state  # AdamW's, of adamw
    for place, found in state.items():
        if different := kept ^ found.keys():
            raise ValueError(f"parameter {place} lacks or adds {some(sorted(different))}")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _progress(path: Path, metadata: Metadata) -> Trained:
    epoch, epochs = metadata["epoch"], metadata["settings"].get("training", {}).get("epochs", inf)
    if epoch > epochs:
        raise MemtoolError(
            f"{path}: its memtool metadata has no sensible 'epoch': {epoch} is beyond {epochs}"
        )
    return Trained(epoch, history_of(path, metadata))


def history_of(path: Path, metadata: Metadata) -> tuple[EpochMetrics, ...]:
    """The metrics of the epochs that a file has on record, none if it has no record of them.

    Raises MemtoolError, which names it, for metrics that this memtool does not know: they would be
    lost.
    """
    history = metadata.get("history", [])
    known = get_type_hints(EpochMetrics).keys()
    if unknown := {name for metrics in history for name in metrics} - known:
        raise MemtoolError(
            f"{path}: its memtool metadata has an unknown {min(unknown)!r} in 'history'"
        )
    return tuple(history)


def check_same(path: Path, recorded: Metadata, settings: Metadata) -> None:
    """Raise MemtoolError, which names the file and the settings that differ, unless the run that
    wrote `path` had these `settings`."""
    if found := differences(recorded, settings):
        raise MemtoolError(
            f"{path}: is of a run with other settings: {'; '.join(found[:3])}; give those, "
            "remove the file to start anew, or choose another -o"
        )


def _laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """`value` as it lies in memory beside its parameter: fused optimizers take them together."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }
