"""Which layers of networks are compared, and in which form: names and numbers, no activations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod

from torch import nn

from memtool import MemtoolError
from memtool.checkpoints import Checkpoint, trace_all
from memtool.layers import Layer, select
from memtool.similarity.feature_space import is_cheaper
from memtool.similarity.settings import Pairs
from memtool.tensors import stored_tensors


@dataclass(frozen=True)
class Selection:
    """The layers of a checkpoint that take part, in order of execution."""

    checkpoint: Checkpoint
    layers: list[Layer]
    patterns: Sequence[str]

    @property
    def tensors(self) -> list[str]:
        """One name for each distinct tensor: a block and its last ReLU are computed once."""
        return list(dict.fromkeys(layer.same_as for layer in self.layers))

    @cached_property
    def weights(self) -> int:
        """The bytes that the checkpoint's tensors take in float32."""
        stored = stored_tensors(self.checkpoint.path).values()
        return sum(4 * prod(tensor.shape) for tensor in stored)

    @cached_property
    def widths(self) -> dict[str, int]:
        """How many features each of these tensors has."""
        return {layer.same_as: prod(layer.shape) for layer in self.layers}

    def uncalled(self, model: nn.Module) -> list[str]:
        """The modules that the patterns name and the model never calls."""
        known = {layer.name for layer in self.layers}
        return [
            name
            for name, module in model.named_modules()
            if name not in known
            and not isinstance(module, nn.ModuleList | nn.ModuleDict)  # have nothing to call
            and any(name and (p == "all" or fnmatchcase(name, p)) for p in self.patterns)
        ]


def selections(
    checkpoints: Sequence[Checkpoint],
    patterns: Sequence[str],
    reference_patterns: Sequence[str] | None = None,
) -> list[Selection]:
    """The layers of each checkpoint that match `patterns`; of the last one, the reference, those
    that match `reference_patterns`, if there are any.

    Raises MemtoolError for a pattern that matches no layer of one of them.
    """
    wanted = [patterns] * (len(checkpoints) - 1) + [reference_patterns or patterns]
    return [
        Selection(checkpoint, select(layers, globs, str(checkpoint.path)), globs)
        for checkpoint, layers, globs in zip(
            checkpoints, trace_all(checkpoints), wanted, strict=True
        )
    ]


def paired(selection: Selection, reference: Selection, pairs: Pairs) -> list[tuple[Layer, Layer]]:
    """The (layer, reference layer) pairs to compare; corresponding layers have the same name.

    The parts of a stitched model are named `front.` and `back.`: a layer of either corresponds to
    the layer that is called so without. Where the reference's layers were chosen by patterns of
    their own, the k-th corresponds to the k-th. Raises MemtoolError if no layers correspond.
    """
    if pairs is Pairs.all:
        return [(layer, other) for layer in selection.layers for other in reference.layers]
    remedy = "compare each with each: --pairs all"
    mine, theirs = selection.checkpoint.path, reference.checkpoint.path
    if selection.patterns != reference.patterns:
        counts = len(selection.layers), len(reference.layers)
        if counts[0] != counts[1]:
            raise MemtoolError(
                f"{mine}: {counts[0]} layers chosen, but {counts[1]} of {theirs}; "
                f"the same number makes pairs, else {remedy}"
            )
        return list(zip(selection.layers, reference.layers, strict=True))
    exact = {layer.name: layer for layer in reference.layers}
    bare = {_bare(layer.name): layer for layer in reference.layers}
    result = [
        (layer, other)
        for layer in selection.layers
        if (other := exact.get(layer.name) or bare.get(_bare(layer.name)))
    ]
    if not result:
        raise MemtoolError(f"{mine}: none of its layers corresponds to one of {theirs}; {remedy}")
    return result


class Form(Enum):
    """What HSIC is taken of."""

    gram = auto()  # (n, n) Gram matrices, whole ones of batches or tiles of all examples
    features = auto()  # (p, q) covariances, of `exact` and `unbiased` with the linear kernel


# Pairs (tensor, reference tensor) of which there is a CKA.
Cells = list[tuple[str, str]]


@dataclass(frozen=True)
class Comparison:
    """The cells of a checkpoint, each in the form that it is computed in."""

    selection: Selection
    cells: Mapping[Form, Cells]

    def tensors(self, form: Form) -> list[str]:
        """The distinct tensors of the checkpoint in cells of this form."""
        return list(dict.fromkeys(mine for mine, _ in self.cells[form]))


def reference_tensors(comparisons: Sequence[Comparison], form: Form) -> list[str]:
    """The distinct tensors of the reference in cells of this form."""
    return list(dict.fromkeys(other for one in comparisons for _, other in one.cells[form]))


def by_grams(selection: Selection, reference: Selection, pairs: Pairs) -> Comparison:
    """All cells by Gram matrices."""
    found = paired(selection, reference, pairs)
    cells = dict.fromkeys((layer.same_as, other.same_as) for layer, other in found)
    return Comparison(selection, {Form.gram: list(cells), Form.features: []})


def by_the_cheaper(whole: Comparison, reference: Selection, n: int, pairs: Pairs) -> Comparison:
    """The cells in feature space that cost less there: each by itself or, where each layer is
    compared with each, all or none, since the Gram matrix of a layer serves all its cells."""
    widths, others = whole.selection.widths, reference.widths
    cells = whole.cells[Form.gram]
    split: dict[Form, Cells] = {Form.gram: [], Form.features: []}
    for part in [cells] if pairs is Pairs.all else [[cell] for cell in cells]:
        mine, theirs = map(dict.fromkeys, zip(*part, strict=True))
        layers = [*(widths[name] for name in mine), *(others[name] for name in theirs)]
        cheaper = is_cheaper(n, layers, [(widths[a], others[b]) for a, b in part])
        split[Form.features if cheaper else Form.gram] += part
    return Comparison(whole.selection, split)


def _bare(name: str) -> str:
    for part in ("front.", "back."):
        name = name.removeprefix(part)
    return name
