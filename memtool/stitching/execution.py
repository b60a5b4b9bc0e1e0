"""One front, one back and the stitching layer between them: initialized, trained, tested, saved."""

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from memtool import MemtoolError
from memtool.device import computed_by
from memtool.models import Connector, StitchedModel, stitched_spec
from memtool.progress import Advance, unseen
from memtool.stitching.activations import CachedNetwork, agreement
from memtool.stitching.cuts import Cut
from memtool.stitching.least_squares import initialize
from memtool.stitching.planning import StitchSettings
from memtool.stitching.settings import Direction
from memtool.tables import StitchingRow
from memtool.tensors import save_tensors
from memtool.training import make_optimizer, optimize

# Bytes that the fit of a map takes for each element of the activations: twice float32 and float64.
FITTING = 24


class Stitching:
    """A front and a back, stitched at a cut. The stitching layer alone is trained: both networks
    are in eval mode and frozen."""

    def __init__(
        self,
        direction: Direction,
        networks: tuple[CachedNetwork, CachedNetwork],
        cut: Cut,
        settings: StitchSettings,
    ) -> None:
        self.direction, self.settings, self.cut = direction, settings, cut
        self.front, self.back = networks
        self.front_layer, self.back_layer = (layer.name for layer in cut)
        self.examples = self.front.examples
        with torch.random.fork_rng(devices=[]):  # all that is random is drawn on the CPU
            torch.manual_seed(settings.config.seed)
            self.layer = settings.layer(cut).to(self.examples.images.device)

    def rows(self, advance: Advance = unseen) -> Iterator[StitchingRow]:
        """Train the stitching layer; yield the row of each epoch that the settings ask for.
        `advance` is called after each training step.

        Their control accuracy is empty: nothing is known of the control here. Raises MemtoolError
        if the loss is not finite.
        """
        for epoch in self._trained(advance):
            if self.settings.curve or epoch == self.settings.epochs:
                yield self._row(epoch)

    def _trained(self, advance: Advance) -> Iterator[int]:
        """Yield 0 when the layer is initialized, then the number of each epoch, in eval mode."""
        layer, settings = self.layer, self.settings
        initialize(layer, settings.init, self._inputs, self._targets)
        yield 0
        if not settings.trains:
            return
        optimizer = make_optimizer(layer, settings.config)
        labels = self.examples.train_labels
        with torch.random.fork_rng(devices=[]):
            layer.train()
            for epoch in optimize(
                self._logits, labels, optimizer, settings.config, advance=advance
            ):
                layer.settle(self._inputs)
                yield epoch
                layer.train()

    def _inputs(self) -> Iterator[Tensor]:
        return self.front.training_batches(self.front_layer, self.batch)

    def _targets(self) -> Iterator[Tensor]:
        return self.back.training_batches(self.back_layer, self.batch)

    @cached_property
    def batch(self) -> int:
        """How many examples go through both networks, and into the fit of the map, at a time."""
        elements = sum(math.prod(layer.shape) for layer in self.cut)
        if self.layer.connector is not Connector.none:
            inputs, outputs = self.layer.size
            elements += inputs * math.prod(self.cut[1].shape) // outputs  # if it is resized
        fitted = self.settings.memory // 4 // (FITTING * elements)
        return max(1, min(self.front.batch, self.back.batch, fitted))

    def _logits(self, indices: Tensor) -> Tensor:
        activation = self.front.activation(self.front_layer, indices)
        return self.back.logits_from(self.back_layer, self.layer(activation))

    def _row(self, epoch: int) -> StitchingRow:
        front, back = self.front.checkpoint, self.back.checkpoint
        ours, theirs = front.provenance, back.provenance
        settings, config = self.settings, self.settings.config
        logits, labels = self._test_logits(), self.examples.test_labels
        predictions = logits.argmax(1)
        return {
            "front": str(front.path),
            "back": str(back.path),
            "direction": str(self.direction),
            "front_layer": self.front_layer,
            "back_layer": self.back_layer,
            "front_model": str(front.spec),
            "back_model": str(back.spec),
            "data": self.examples.name,
            "front_epoch": ours.epoch,
            "back_epoch": theirs.epoch,
            "front_noise_ratio": ours.noise_ratio,
            "back_noise_ratio": theirs.noise_ratio,
            "front_noise_kind": ours.noise_kind,
            "back_noise_kind": theirs.noise_kind,
            "front_noise_seed": ours.noise_seed,
            "back_noise_seed": theirs.noise_seed,
            "front_seed": ours.seed,
            "back_seed": theirs.seed,
            "connector": str(self.layer.connector),
            "batch_norm": self.layer.before is not None,
            "parameters": sum(parameter.numel() for parameter in self.layer.parameters()),
            "init": str(settings.init) if settings.has_weights else None,
            "optimizer": str(config.optimizer) if settings.trains else None,
            "epochs": settings.epochs,
            "epoch": epoch,
            "learning_rate": config.learning_rate if settings.trains else None,
            "batch_size": config.batch_size if settings.trains else None,
            "seed": config.seed,
            "n": len(labels),
            "loss": self._test_loss(logits),
            "test_accuracy": agreement(predictions, labels),
            "front_accuracy": self.front.accuracy,
            "back_accuracy": self.back.accuracy,
            "agreement": agreement(predictions, self.back.predictions),
            "control_accuracy": None,
            "stitched": None,
        }

    @torch.no_grad()
    def _test_logits(self) -> Tensor:
        batches = self.examples.test_indices.split(self.batch)
        return torch.cat([self._logits(batch) for batch in batches])

    def _test_loss(self, logits: Tensor) -> float:
        logits, labels = logits.cpu().double(), self.examples.test_labels.cpu()
        loss = functional.cross_entropy(logits, labels).item()
        if not math.isfinite(loss):
            raise MemtoolError(
                f"{self.front.checkpoint.path} at {self.front_layer!r} stitched to "
                f"{self.back.checkpoint.path}: the loss is {loss}; try a lower --learning-rate"
            )
        return loss

    def save(self, path: Path) -> None:
        """Write the stitched model, a checkpoint like any other."""
        front, back = self.front.checkpoint, self.back.checkpoint
        names = self.front_layer, self.back_layer
        model = StitchedModel(self.front.network.model, self.back.network.model, self.layer, *names)
        metadata = {
            "model": stitched_spec(front.spec, back.spec, *names, self.layer).json(),
            # Images go in at the front, classes come out at the back.
            "data": {**back.data, "mean": front.data["mean"], "std": front.data["std"]},
            "training": {
                **self._recorded_settings(),
                "front": front.training,
                "back": back.training,
            },
            "computed_by": computed_by(self.examples.images.device),
        }
        save_tensors(path, "checkpoint", model.state_dict(), metadata)

    def _recorded_settings(self) -> dict[str, object]:
        settings, config = self.settings, self.settings.config
        recorded: dict[str, object] = {
            "epoch": settings.epochs,
            "epochs": settings.epochs,
            "seed": config.seed,
        }
        if settings.has_weights:
            recorded["init"] = str(settings.init)
        if settings.trains:
            recorded |= {
                "optimizer": str(config.optimizer),
                "learning_rate": config.learning_rate,
                "batch_size": config.batch_size,
            }
        return recorded
