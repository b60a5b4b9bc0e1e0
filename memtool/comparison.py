"""Comparing checkpoints with a reference, layer by layer: one forward pass of each network."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memtool import MemtoolError, cka
from memtool.checkpoint import Checkpoint, Network, traced_all
from memtool.choices import Estimator, Pairs
from memtool.layers import Layer, activations, select


@dataclass(frozen=True)
class Selection:
    """The layers of a checkpoint that take part, in order of execution."""

    checkpoint: Checkpoint
    layers: list[Layer]

    @property
    def tensors(self) -> list[str]:
        """One name for each distinct tensor: a block and its last ReLU are computed once."""
        return list(dict.fromkeys(layer.same_as for layer in self.layers))


def selections(checkpoints: Sequence[Checkpoint], patterns: Sequence[str]) -> list[Selection]:
    """The layers of each checkpoint that match `patterns`.

    Raises MemtoolError for a pattern that matches no layer of one of them.
    """
    return [
        Selection(checkpoint, select(layers, patterns, str(checkpoint.path)))
        for checkpoint, layers in zip(checkpoints, traced_all(checkpoints), strict=True)
    ]


def paired(selection: Selection, reference: Selection, pairs: Pairs) -> list[tuple[Layer, Layer]]:
    """The (layer, reference layer) pairs to compare; corresponding layers have the same name.

    The parts of a stitched model are named `front.` and `back.`: a layer of either corresponds to
    the layer that is called so without. Raises MemtoolError if no layers correspond.
    """
    if pairs is Pairs.all:
        return [(layer, other) for layer in selection.layers for other in reference.layers]
    exact = {layer.name: layer for layer in reference.layers}
    bare = {_bare(layer.name): layer for layer in reference.layers}
    result = [
        (layer, other)
        for layer in selection.layers
        if (other := exact.get(layer.name) or bare.get(_bare(layer.name)))
    ]
    if not result:
        raise MemtoolError(
            f"{selection.checkpoint.path}: none of its layers corresponds to one of "
            f"{reference.checkpoint.path}; compare each with each: --pairs all"
        )
    return result


def _bare(name: str) -> str:
    for part in ("front.", "back."):
        name = name.removeprefix(part)
    return name


def compare(
    selections: Sequence[Selection],
    reference: Selection,
    images: Tensor,
    pairs: Pairs,
    batch_size: int,
    advance: Callable[[], None],
) -> Iterator[dict[str, Any]]:
    """Exact CKA of each checkpoint with the reference over all `images`, uint8 (n, c, h, w).

    Yields a row a pair, in order of execution, `cka` None where a layer is constant. `advance` is
    called after each batch of each network.
    """

    def grams(selection: Selection) -> dict[str, Tensor]:
        network = selection.checkpoint.network(images.device)
        return _grams(network, selection.tensors, images, batch_size, advance)

    reference_grams = grams(reference)
    reference_names = list(reference_grams)
    own = {name: cka.hsic([gram], [gram])[0, 0] for name, gram in reference_grams.items()}
    for selection in selections:
        found = paired(selection, reference, pairs)
        mine = grams(selection)
        names = list(mine)
        cross = cka.hsic(list(mine.values()), list(reference_grams.values()))
        self_ = {name: cka.hsic([gram], [gram])[0, 0] for name, gram in mine.items()}
        for layer, other in found:
            value = cka.normalized(
                cross[names.index(layer.same_as), reference_names.index(other.same_as)],
                self_[layer.same_as],
                own[other.same_as],
            ).item()
            yield {
                **conditions(selection.checkpoint, reference.checkpoint),
                "layer": layer.name,
                "reference_layer": other.name,
                "estimator": str(Estimator.exact),
                "n": len(images),
                "cka": value if value == value else None,
            }


def _grams(
    network: Network,
    layers: Sequence[str],
    images: Tensor,
    batch_size: int,
    advance: Callable[[], None],
) -> dict[str, Tensor]:
    """The centered Gram matrix (n, n) of each layer over all images."""
    batches: dict[str, list[Tensor]] = {name: [] for name in layers}
    with torch.inference_mode(), activations(network.model, layers, torch.clone) as found:
        for batch in images.split(batch_size):
            network(batch)
            for name in layers:
                batches[name].append(found[name])
            advance()
    return {name: cka.gram(torch.cat(batches.pop(name))) for name in layers}


def conditions(checkpoint: Checkpoint, reference: Checkpoint) -> dict[str, Any]:
    """The columns that say what is compared with what."""
    mine, theirs = checkpoint.training, reference.training
    return {
        "checkpoint": str(checkpoint.path),
        "reference": str(reference.path),
        "epoch": mine.get("epoch"),
        "noise_ratio": mine.get("noise_ratio"),
        "seed": mine.get("seed"),
        "reference_epoch": theirs.get("epoch"),
        "reference_noise_ratio": theirs.get("noise_ratio"),
        "reference_seed": theirs.get("seed"),
    }
