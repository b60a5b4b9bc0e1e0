"""Checkpoints: what the header of a file says of its model, its data set and its training."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memtool import MemtoolError, models, specs
from memtool.checkpoints.names import renamed
from memtool.checkpoints.preprocessing import told_by
from memtool.checkpoints.provenance import Provenance
from memtool.checkpoints.recognition import checked_skeleton, identify, json_beside
from memtool.checkpoints.rewriting import Match, Rewrite
from memtool.data import RESIZING, Options, normalize, parse, same_images, told_shape
from memtool.errors import told_names
from memtool.models import ModelSpec
from memtool.paths import as_path
from memtool.shards import check_whole
from memtool.tensors import (
    Metadata,
    Shape,
    check_no_pickle,
    find_metadata,
    load_tensors,
    shared_tensors,
    stored_tensors,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from memtool.checkpoints.network import Network
    from memtool.data import Dataset
    from memtool.layers import Footprint, Trace

logger = logging.getLogger("memtool")

# What most weights of torchvision and timm take, as a spec has it.
IMAGENET = "mean=0.485,0.456,0.406&std=0.229,0.224,0.225"


def load(
    path: Path | str,
    model: str | None = None,
    dataset: "Dataset | None" = None,
    trust: bool = False,
) -> "Network":
    """Load the network that a checkpoint holds.

    The result is a `Network`: its `model` is the torch module, in eval mode, float32 and on the
    CPU; `mean` and `std` are what its images are normalized by. Called with uint8 images
    (n, channels, height, width), it returns their logits, float32 (n, classes):

        network = load("runs/r25.safetensors")
        logits = network(torch.from_numpy(images))

    For a checkpoint that memtool did not write, `model` is its spec, as in "timm:resnet18", where
    it is not recognized, and `dataset` the data set on which it was trained, whose mean and
    standard deviation are used unless a `config.json` beside the file gives them. With `trust`, a
    `FILE.py` that the metadata name may run, if it is the very file recorded.

    `path` may be the index of several files (`model.safetensors.index.json`). Raises MemtoolError
    if it is not a safetensors file or not a checkpoint, if its tensors are not those of its model,
    and if the model or the normalization of its images is not known.
    """
    spec = models.parse(model) if model else None
    checkpoint = Checkpoint.open(as_path(path), spec, trust)
    if dataset:
        warn_of_differences([checkpoint], dataset)
        checkpoint = checkpoint.with_dataset(dataset)
    return checkpoint.network()


@dataclass(frozen=True)
class Checkpoint:
    """What the header of a checkpoint file says. Opening one is cheap, so that everything can be
    checked before any work.

    `metadata` are the file's own, or what is known of a file that memtool did not write; their
    `data` may be empty. `names` maps the names of the model's tensors to those in the file, and
    `shapes` to their shapes. Where the file has the layout of other code, `rewrite` makes the
    model's tensors of those that `names` gives. `known_by` says how the model is known: by
    `metadata`, `--model`, `config.json` or `tensors`.
    """

    path: Path
    metadata: Metadata
    spec: ModelSpec
    names: Mapping[str, str]
    shapes: Mapping[str, Shape]
    known_by: str = "metadata"
    rewrite: Rewrite | None = None

    @staticmethod
    def open(path: Path, model: ModelSpec | None = None, trust: bool = False) -> "Checkpoint":
        """The checkpoint at `path`, of `model` if it is given, whatever its metadata say; but a
        stitched model, whose spec cannot be typed, stays one.

        With `trust`, the code that the metadata name may run, if it is the very file recorded; no
        other code runs that the user has not typed. Raises MemtoolError if `path` is not a
        checkpoint, and if its model is unknown or does not have its tensors.
        """
        if model:
            check_no_pickle(path, str(model))
        metadata = find_metadata(path, "checkpoint")
        shapes = {name: tensor.shape for name, tensor in stored_tensors(path).items()}
        if metadata is None:
            check_whole(path)
            match = identify(path, shapes, model, shared_tensors(path))
            return Checkpoint.from_match(path, match)
        recorded = recorded_model(path, metadata)
        if model and recorded.is_stitched:
            logger.info(f"{path}: its model is the stitched one on record, not {model}")
            model = None
        if model is None:
            names = {name: name for name in shapes}
            return Checkpoint(path, metadata, replace(recorded, trusted=trust), names, shapes)
        data = metadata["data"]
        if "image_shape" in data and "classes" in data:
            classes = len(data["classes"])
            model = models.complete_for_dataset(model, tuple(data["image_shape"]), classes)
        match = identify(path, shapes, model)
        metadata = {**metadata, "model": match.spec.json()}
        known = match.names, match.shapes, match.known_by, match.rewrite
        return Checkpoint(path, metadata, match.spec, *known)

    @staticmethod
    def from_match(path: Path, match: Match) -> "Checkpoint":
        """The checkpoint in a file without metadata, which was recognized. How its images are
        prepared is what a `config.json` or a `preprocessor_config.json` beside it says."""
        configs = (json_beside(path, name) for name in ("config.json", "preprocessor_config.json"))
        told = told_by(*configs)
        for doubt in told.doubts:
            logger.warning(
                f"{path}: the configuration beside it asks for what is not done: {doubt}"
            )
        data: Metadata = dict(told.statistics)
        if told.resizing:
            size = told.resizing.get("image_size") or models.image_shape(match.spec)[-1]
            data["preprocessing"] = {**told.resizing, "image_size": size}
        # Not in `data`: the images of another data set may be of another shape.
        shape = {"image_shape": told.image_shape} if told.image_shape else {}
        metadata = {"model": match.spec.json(), "data": data, "training": {}, **shape}
        known = match.names, match.shapes, match.known_by, match.rewrite
        return Checkpoint(path, metadata, match.spec, *known)

    @property
    def data(self) -> Metadata:
        """What the network was trained on; may be empty, or have no more than `mean`, `std` and
        `preprocessing`, the options by which a data set prepares its images."""
        return dict(self.metadata["data"])

    @property
    def training(self) -> Metadata:
        """How it was trained: epoch, noise, hyperparameters; may be empty."""
        return dict(self.metadata["training"])

    @cached_property
    def provenance(self) -> Provenance:
        """Of what epoch, seed and noise it is, and so its front and back if it was stitched."""
        return Provenance.of(self.training)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of the images, or (features,) of the vectors, on record, else
        of those that the model is usually given."""
        known = self.data.get("image_shape") or self.metadata.get("image_shape")
        return tuple(known or models.image_shape(self.spec))

    @property
    def classes(self) -> int | None:
        """How many classes the network tells apart, as far as that is on record."""
        option, known = self.spec.options.get("num_classes"), self.data.get("classes")
        return option if isinstance(option, int) else len(known) if known else None

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The options by which a data set prepares the images of this network, where its
        configuration gives them or, if none is on record, the data set that it was trained on;
        `mean` and `std` are among them where pixels depend on them."""
        named = vars(self._options) if self._options and self._options.follows_timm else {}
        recorded = self.data.get("preprocessing", named)
        names = ("image_size", *RESIZING)
        options = {key: recorded[key] for key in names if recorded.get(key) is not None}
        needed = ("mean", "std") if options.get("crop_mode") == "border" else ()
        return options | {key: self.data[key] for key in needed if key in self.data}

    @cached_property
    def _options(self) -> Options | None:
        """Those of the data set on record; None if there is none, or its name is no spec, or only
        was one once."""
        with suppress(MemtoolError, KeyError):
            return parse(str(self.data["name"]))[1]
        return None

    def with_dataset(self, dataset: "Dataset") -> "Checkpoint":
        """This checkpoint with `dataset` as what it was trained on, unless that is on record.

        A mean and a standard deviation on record are kept, unless the spec of `dataset` gives
        others; a note says so, and which ones are taken where none are known. Raises MemtoolError
        if they are not those of as many channels as the images have.
        """
        options = {"mean": dataset.options.mean, "std": dataset.options.std}
        given = {name: values for name, values in options.items() if values}
        if "fingerprint" in self.data:
            for name, values in self._others(given).items():
                logger.warning(
                    f"{self.path}: was trained with the {name} {self.data[name]}, which is taken, "
                    f"not the {values} that {dataset.name} says"
                )
            return self
        self._log_statistics(given, dataset)
        data = dataset.metadata() | self.data | given
        self._check_channels(data["mean"], dataset)
        return replace(self, metadata={**self.metadata, "data": data})

    def _others(self, given: Mapping[str, list[float]]) -> dict[str, list[float]]:
        """Those of the statistics `given` that are not as on record."""
        return {name: v for name, v in given.items() if v != self.data.get(name, v)}

    def _check_channels(self, mean: Sequence[float], dataset: "Dataset") -> None:
        """Raise MemtoolError unless `mean` has a number for each channel of the images."""
        channels = dataset.image_shape[0]
        if len(mean) != channels:
            gray = channels == 1 and len(mean) == 3 == self.image_shape[0]
            hint = " (gray ones get 3 channels by --data '...?channels=3')" if gray else ""
            hint = hint or "; say by which: --data '...?mean=M,...&std=S,...'"
            raise MemtoolError(
                f"{self.path}: its images are normalized by {len(mean)} means, those of "
                f"{dataset.name} have channels: {channels}{hint}"
            )

    def _log_statistics(self, given: Mapping[str, list[float]], dataset: "Dataset") -> None:
        """Note which mean and std are taken, `given` by a spec or not, if it is not simply those on
        record."""
        for name, values in self._others(given).items():
            logger.info(
                f"{self.path}: the {name} {values} that {dataset.name} says is taken instead of "
                f"{self.data[name]}, which its configuration says"
            )
        if unknown := sorted({"mean", "std"} - self.data.keys() - given.keys()):
            split = "training" if len(dataset.train) else "test"
            hint = f"; ImageNet's are {IMAGENET}" if self.spec.is_of_library else ""
            logger.info(
                f"{self.path}: does not say how its images are normalized; took the "
                f"{' and '.join(unknown)} of the {split} images of {dataset.name} "
                f"(--data '...?mean=...&std=...' gives others{hint})"
            )

    def is_outdated(self, dataset: "Dataset") -> bool:
        """Whether the network was trained on other content of the name that `dataset` has. Of a
        sample, the classes and the number of images have to tell."""
        known = self.data
        name = known.get("name")
        if not isinstance(name, str) or not same_images(name, dataset.name):
            return False
        if specs.same(name, dataset.name, "data set"):
            return bool(dataset.fingerprint != known.get("fingerprint", dataset.fingerprint))
        is_sample = bool(self._options and self._options.samples)
        is_whole = not is_sample and {"train", "test"} <= known.keys()
        count = known["train"] + known["test"] if is_whole else dataset.count
        return self._other_class(dataset) is not None or count != dataset.count

    def differences(self, dataset: "Dataset") -> list[str]:
        """In what the data of this network are others than `dataset`, as far as that is on record:
        how images are prepared, which the classes are, what the images and labels are. Each is the
        end of a message that begins with one file or several."""
        found = []
        if others := self._other_preparation(dataset):
            by = "its configuration would prepare the images of {} otherwise: {}"
            if "preprocessing" not in self.data:
                by = "trained on images that were prepared otherwise than those of {}: {}"
            told = (f"no {key}" if value is None else f"{key}={value}" for key, value in others)
            found.append(by.format(dataset.name, ", ".join(told)))
        if other := self._other_class(dataset):
            found.append(f"trained on other classes than those of {dataset.name}: {other}")
        if self.is_outdated(dataset):
            found.append(f"trained on {dataset.name} before it changed")
        return found

    def _other_preparation(self, dataset: "Dataset") -> list[tuple[str, object]]:
        """The options that images of this network had, where `dataset` has others."""
        if not self.data.keys() & {"preprocessing", "name"}:
            return []
        # A configuration does not say whether images were turned upright.
        orient = dataset.options.orient if self._options is None else self._options.orient
        own = Options(**{**self.preprocessing, "orient": orient})
        theirs = dataset.options.preparation
        others = [(key, value) for key, value in own.preparation.items() if value != theirs[key]]
        if "image_shape" not in self.data and own.image_size != dataset.options.image_size:
            others.insert(0, ("image_size", own.image_size))
        bits, its = self.data.get("bits"), dataset.measured.get("bits")
        return others + ([("bits", bits)] if bits and its and bits != its else [])

    def _other_class(self, dataset: "Dataset") -> str | None:
        """The first class of this network that `dataset` calls otherwise, or how many each has;
        None if all are alike or not on record."""
        own, its = self.data.get("classes") or dataset.classes, dataset.classes
        for number, (one, other) in enumerate(zip(own, its, strict=False)):
            if one != other:
                return f"class {number} is {one!r:.50}, there {other!r:.50}"
        return f"{len(own)}, there {len(its)}" if len(own) != len(its) else None

    @property
    def told(self) -> str:
        """The file and its model, as messages about what happens in it begin."""
        return f"{self.path}: its model {self.spec}"

    def skeleton(self) -> "nn.Module":
        """The model without weights. Raises MemtoolError if it cannot be built, or if the file's
        tensors are not those of the model."""
        return checked_skeleton(self.path, self.spec, self.shapes)

    def model(self) -> "nn.Module":
        """The model with its weights, in float32 and eval mode, on the CPU.

        Raises MemtoolError that names the first tensors that are missing, unexpected or of another
        shape, and for what `skeleton` does.
        """
        return self.model_of(self.tensors())

    def model_of(self, tensors: "Mapping[str, torch.Tensor]") -> "nn.Module":
        """The `model` with these weights, by their names in it."""
        import torch

        from memtool.checkpoints.network import is_incomplete, load_weights

        model = self.skeleton()
        load_weights(model, tensors, self.path)
        if is_incomplete(model):
            with torch.random.fork_rng(devices=[]):
                model = models.build(self.spec)
            load_weights(model, tensors, self.path)
        return model.eval().requires_grad_(False)

    def tensors(self) -> "dict[str, torch.Tensor]":
        """The weights by their names in the model, on the CPU."""
        return self.of_model(load_tensors(self.path))

    def of_model(self, stored: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
        """The tensors of the model, by their names in it, of those in the file, by theirs."""
        tensors = renamed(stored, self.names)
        return self.rewrite(tensors) if self.rewrite else tensors

    def network(self, device: "torch.device | str" = "cpu") -> "Network":
        """The model with its weights on `device`, and the normalization of its images.

        Raises MemtoolError as `model` does, and if the normalization is not on record.
        """
        if not {"mean", "std"} <= self.data.keys():
            raise MemtoolError(
                f"{self.path}: does not say how its images are normalized; name a data set (--data)"
            )
        return self.network_of(self.model().to(device))

    def network_of(self, model: "nn.Module") -> "Network":
        """The `network` that has this model, which has its weights; the normalization is on
        record."""
        from memtool.checkpoints.network import Network

        return Network(model, self.data["mean"], self.data["std"], self.classes)

    def warn_of_other_influences(self, network: "Network", images: "torch.Tensor") -> None:
        """Warn if what the network, which is that of this checkpoint, gives for an image depends on
        anything but the image and the weights: on chance, or on the batch around it. `images` are
        three or more, uint8."""
        models.warn_if_results_vary(network.run, images, str(self.path), network.model)
        models.warn_if_drawn_anew(
            network.model,
            lambda: self.model().to(images.device),
            lambda model, few: replace(network, model=model).run(few),
            images,
            str(self.path),
        )

    def trace(self, image_shape: tuple[int, ...]) -> "Trace":
        """The layers of the model for images of `image_shape`, (channels, height, width), or for
        vectors, (features,).

        Runs on the meta device, where the model works there, so that nothing is computed and no
        weights are read; or with weights if images and model are small. Raises MemtoolError if the
        model does not take such images.
        """
        import torch

        from memtool.layers import first_tensor, traced

        def output(result: object) -> "torch.Tensor | None":
            logits = models.logits_of(result, self.classes)
            return first_tensor(result) if logits is None else logits

        if not self.is_small(image_shape):
            with suppress(Exception):  # whatever a model raises that needs real tensors
                model = self.skeleton().to("meta")
                return traced(model, torch.zeros(2, *image_shape, device="meta"), output)
        with models.foreign_code(
            f"{self.told} does not take {told_shape(image_shape)}{self._hint(image_shape)}"
        ):
            if len(image_shape) == 3:
                return traced(self.model(), self._noise(image_shape), output)
            with suppress(Exception):  # whatever a model raises that takes some features for codes
                return traced(self.model(), self._noise(image_shape), output)
            codes = (torch.arange(2.0)[:, None] + torch.arange(image_shape[0])) % 2
            return traced(self.model(), codes, output)

    def example(self) -> "torch.Tensor":
        """An image, (1, *image_shape), or a vector, of noise as the model takes it."""
        return self._noise(self.image_shape)[:1]

    def _noise(self, image_shape: tuple[int, ...]) -> "torch.Tensor":
        """Two images, or vectors, of noise as the model takes them. No zeros, of which a model that
        looks at values, to mask tokens or choose an expert, may make something else than of images;
        and of pixels with the mean and deviation on record, since it may take no others."""
        import torch

        generator = torch.Generator().manual_seed(0)
        if len(image_shape) != 3:
            return torch.randn(2, *image_shape, generator=generator)
        mean, std = self.data.get("mean", []), self.data.get("std", [])
        channels = image_shape[0]
        if not len(mean) == len(std) == channels:
            mean, std = [0.5] * channels, [12**-0.5] * channels
        uniform = 12**0.5 * (torch.rand(2, *image_shape, generator=generator) - 0.5)
        center, scale = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
        pixels = (255 * (center + scale * uniform)).round().clamp(0, 255)
        return normalize(pixels.to(torch.uint8), mean, std)

    def footprint(self) -> "Footprint":
        """What a forward pass of the network takes in memory, for images of `image_shape`. As
        `trace`, it reads weights only where they are few, or the model needs them to run."""
        from memtool.layers import footprint

        if not self.is_small(self.image_shape):
            with suppress(Exception):  # whatever a model raises that needs real tensors
                return footprint(self.skeleton(), self.image_shape)
        with models.foreign_code(self.told):
            return footprint(self.model(), self.image_shape, example=self.example())

    def _hint(self, image_shape: tuple[int, ...]) -> str:
        """What may help a model that does not take images of this shape, if it is known which it
        takes."""
        options = self.helpful_options(image_shape)
        if "channels" in options:
            return f" (gray ones get 3 channels by --data '...?channels={options['channels']}')"
        return f" (--image-size {options['image_size']} makes them fit)" if options else ""

    def helpful_options(self, image_shape: tuple[int, ...]) -> dict[str, int]:
        """The options of a data set with images of this shape, which the model does not take, that
        may help, if it is known which it takes."""
        spec = self.spec.parts[0] if self.spec.is_stitched else self.spec
        if len(image_shape) != 3 or not (spec.name in models.OURS or spec.is_of_library):
            return {}
        with suppress(MemtoolError):  # it is not known at all
            wanted = channels, height, width = models.image_shape(spec)
            if image_shape[0] == 1 and channels == 3:
                return {"channels": 3}
            is_other = image_shape[0] == channels and image_shape != wanted
            if spec.is_of_library and is_other and height == width:
                return {"image_size": height}
        return {}

    def is_small(self, image_shape: tuple[int, ...], examples: int = 4) -> bool:
        """Whether running the model on so many images takes next to no time."""
        from memtool.layers import is_small

        weights = sum(prod(shape) for shape in self.shapes.values())
        return is_small(weights, image_shape, examples)


def recorded_model(path: Path, metadata: Metadata) -> ModelSpec:
    """The spec that the metadata of `path` hold under `model`, not trusted.

    Raises MemtoolError, which names `path`, if it is not a spec.
    """
    try:
        return ModelSpec.from_json(metadata["model"])
    except MemtoolError as error:
        raise MemtoolError(f"{path}: its 'model' is {error}") from error


def warn_of_differences(checkpoints: Sequence[Checkpoint], dataset: "Dataset") -> None:
    """Warn of networks whose data were others than `dataset`, once for those that differ alike."""
    told: dict[str, dict[str, None]] = {}
    for checkpoint in checkpoints:
        for difference in checkpoint.differences(dataset):
            told.setdefault(difference, {})[str(checkpoint.path)] = None
    for difference, paths in told.items():
        logger.warning(f"{told_names(list(paths), 3)}: {difference}")


def trace_all(checkpoints: Sequence[Checkpoint], image_size: int | None = None) -> "list[Trace]":
    """The layers of each checkpoint's model; models that are equal but for their weights are traced
    only once, unless they look at values on their way, and so may go another.

    The images have the shape that is on record, or `image_size` pixels in height and width. Raises
    MemtoolError for a checkpoint whose tensors are not those of its model.
    """
    known: dict[str, Trace] = {}
    result = []
    for checkpoint in checkpoints:
        shape = checkpoint.image_shape
        if image_size and len(shape) == 1:
            raise MemtoolError(
                f"{checkpoint.path}: takes {told_shape(shape)}; leave out the size of images"
            )
        if image_size:
            shape = (shape[0], image_size, image_size)
        key = _model_key(checkpoint, shape)
        if key not in known or known[key].reads_values:
            known[key] = checkpoint.trace(shape)
        result.append(known[key])
    return result


def footprints(checkpoints: Sequence[Checkpoint]) -> "list[Footprint]":
    """The `footprint` of each checkpoint; equal models run only once."""
    known: dict[str, Footprint] = {}
    for checkpoint in checkpoints:
        key = _model_key(checkpoint, checkpoint.image_shape)
        if key not in known:
            known[key] = checkpoint.footprint()
    return [known[_model_key(one, one.image_shape)] for one in checkpoints]


def _model_key(checkpoint: Checkpoint, shape: tuple[int, ...]) -> str:
    """The same for checkpoints whose models are equal but for the weights, given such images."""
    return repr((checkpoint.spec, shape, sorted(checkpoint.shapes.items())))
