"""The file from which a stopped run resumes."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from memtool import MemtoolError
from memtool.tensors import Metadata, load_tensors, read_metadata, save_tensors
from memtool.training.loop import EpochMetrics


@dataclass(frozen=True)
class State:
    """A run after its latest epoch: weights, optimizer state, and the metrics of all epochs so far.

    `settings` are what a run must have in common with the run that wrote the file in order to
    resume it; they are values that JSON can hold. There is no random state: that of each epoch
    follows from the seed.
    """

    path: Path
    settings: Metadata

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, history: list[EpochMetrics]
    ) -> None:
        """Replace the file, once `history` ends with the metrics of the latest epoch."""
        tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
        save_tensors(self.path, "state", tensors, {"settings": self.settings, "history": history})

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[EpochMetrics]:
        """Restore `model` and `optimizer`; return the history, which is empty without a file.

        Raises MemtoolError if the file belongs to a run with other settings.
        """
        if not self.path.exists():
            return []
        metadata = read_metadata(self.path, "state")
        if metadata["settings"] != self.settings:
            raise MemtoolError(
                f"{self.path}: is of a run with other settings; give those, "
                "or leave out --resume to start anew"
            )
        tensors = load_tensors(self.path)
        model.load_state_dict(_part(tensors, "model."))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _part(tensors, "optimizer.").items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        return list(metadata["history"])

    def latest(self) -> tuple[dict[str, Tensor], EpochMetrics]:
        """The weights and the metrics of the latest epoch; the file has to exist."""
        history: list[EpochMetrics] = read_metadata(self.path, "state")["history"]
        return _part(load_tensors(self.path), "model."), history[-1]

    def remove(self) -> None:
        """Remove the file: the run is complete."""
        self.path.unlink()


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }
