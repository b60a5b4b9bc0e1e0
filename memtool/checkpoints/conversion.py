"""Conversion of weights that memtool did not write to checkpoints."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memtool import MemtoolError
from memtool.checkpoints import archives
from memtool.checkpoints.archives import Archive
from memtool.checkpoints.checkpoint import Checkpoint
from memtool.checkpoints.network import Network
from memtool.checkpoints.rebuilding import called, entries, is_array, is_module, is_tensor, tensor
from memtool.checkpoints.recognition import identify, known_classes
from memtool.data import Dataset, told_shape, with_options
from memtool.errors import one_line, some
from memtool.models import ModelSpec, foreign_code, shapes_of
from memtool.shards import check_shard, check_whole, is_index, shards_of
from memtool.tensors import is_pickled, save_tensors

logger = logging.getLogger("memtool")

# The keys under which training code saves the weights, and then those of averages of them.
NESTED = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights"),
    *("params", "module", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema"),
)
MAX_NESTED = 10  # dicts in dicts
PREPARATION = ("mean", "std", "preprocessing")  # of images, in the metadata


def convert(
    path: Path,
    model: ModelSpec | None,
    output: Path,
    dataset_for: Callable[[Checkpoint], Dataset] | None,
    trust: bool,
) -> None:
    """Write a checkpoint, `output`, with the weights in `path`, a pickle or a safetensors file.

    They are of `model` if it is given, else of the model that is recognized or, for a checkpoint,
    on record. The metadata record the data set that `dataset_for` gives as what the network was
    trained on. With `trust`, the code that the metadata of a checkpoint name may run. Raises
    MemtoolError unless the weights are exactly those of the model, and if that does not take the
    images of the data set, or is known to tell another number of classes apart.
    """
    checkpoint, tensors = _read(path, model, trust)
    dataset = dataset_for(checkpoint) if dataset_for else None
    if dataset:
        # What is known of the normalization is kept; what else is on record is replaced.
        data = {key: checkpoint.data[key] for key in PREPARATION if key in checkpoint.data}
        checkpoint = replace(checkpoint, metadata={**checkpoint.metadata, "data": data})
        checkpoint = checkpoint.with_dataset(dataset)
    network = checkpoint.model_of(tensors)
    if dataset:
        _check_dataset(checkpoint, checkpoint.network_of(network), dataset)
    save_tensors(output, "checkpoint", network.state_dict(), checkpoint.metadata)


@torch.no_grad()
def _check_dataset(checkpoint: Checkpoint, network: Network, dataset: Dataset) -> None:
    """Raise MemtoolError if the network cannot have been trained on the data set, by what it gives
    for two of its images. One that gives no logits may have been, in a way of its own; so may one,
    with a warning, that is not known to have a head, whose features look like logits."""
    shape, classes = dataset.image_shape, len(dataset.classes)
    told = f"{checkpoint.told} does not take {told_shape(shape)}"
    if options := checkpoint.helpful_options(shape):
        told += f" (--data {with_options(dataset.name, **options)!r} makes them fit)"
    with foreign_code(told):
        result = network.run(torch.from_numpy(dataset.test.images[[0, -1]]))
    try:
        found = replace(network, classes=classes).logits_in(result).shape[1]
    except MemtoolError:  # it gives none
        return
    if found == classes:
        return
    if known_classes(checkpoint.spec, shapes_of(network.model)) in (None, 0, classes):
        logger.warning(
            f"{checkpoint.path}: gives {found} numbers for each image, {dataset.name} has "
            f"{classes} classes: took them for features; if they are logits, name the data set "
            "that it was trained on (--data)"
        )
    else:
        raise MemtoolError(
            f"{checkpoint.path}: gives {found} logits, {dataset.name} has {classes} classes; name "
            "the data set that it was trained on (--data)"
        )


def _read(path: Path, model: ModelSpec | None, trust: bool) -> tuple[Checkpoint, dict[str, Tensor]]:
    """The checkpoint that `path` is, or would be, and its tensors by their names in the model."""
    if not is_pickled(path):
        checkpoint = Checkpoint.open(path, model, trust)
        return checkpoint, checkpoint.tensors()
    check_whole(path)
    stored = unpickle(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    checkpoint = Checkpoint.from_match(path, identify(path, shapes, model))
    return checkpoint, checkpoint.of_model(stored)


def unpickle(path: Path) -> dict[str, Tensor]:
    """The tensors by name in a file that `torch.save` or `pickle.dump` wrote, or in the files of an
    index of such.

    Nothing in the file runs: whatever it holds beside tensors, containers and numbers stays inert.
    Raises MemtoolError if it is broken, if there are no named tensors in it, and if some of them
    are not to be read.
    """
    if is_index(path):
        tensors: dict[str, Tensor] = {}
        for part, names in shards_of(path).items():
            found = unpickle(part)
            check_shard(path, part, names, list(found))
            tensors |= found
        return tensors
    try:
        with archives.opened(path) as archive:
            return _tensors(path, archive)
    except MemtoolError:
        raise
    except Exception as error:  # whatever is wrong with the bytes of a pickle
        raise MemtoolError(
            f"{path}: cannot be read as a pickle ({one_line(error)}); download or copy it again, "
            "or save the model's state_dict() where it comes from"
        ) from error


def _tensors(path: Path, archive: Archive) -> dict[str, Tensor]:
    """The tensors in the innermost dict of the content of a file that has such."""
    keys, content = _innermost(path, archive.content)
    named = entries(content) or {}
    tensors = {key: value for key, value in named.items() if is_tensor(value)}
    if not all(map(is_array, tensors.values())):  # beside tensors, arrays are something else
        tensors = {key: value for key, value in tensors.items() if not is_array(value)}
    if not tensors or not all(isinstance(key, str) for key in tensors):
        raise MemtoolError(f"{path}: there are no named tensors {_where(keys, content)}")
    if is_module(content):
        logger.info(f"{path}: took the parameters and buffers of a whole {called(content)}")
    elif others := [str(key) for key in named if key not in tensors]:
        logger.info(f"{path}: ignored {some(others)}, not tensors")
    return {name: _tensor(path, name, value, archive) for name, value in tensors.items()}


def _tensor(path: Path, name: str, value: Any, archive: Archive) -> Tensor:
    try:
        return tensor(value, archive)
    except ValueError as error:
        raise MemtoolError(f"{path}: its tensor {name} {error}") from error


def _where(keys: list[str], content: Any) -> str:
    """Where no tensors were found, and the way out."""
    where = f"under {'.'.join(keys)!r}" if keys else "in it"
    several = [repr(key) for key, value in (entries(content) or {}).items() if _has_tensors(value)]
    if several:
        return f"{where}, but under {some(several)}; save a file of the one that is meant"
    return (
        f"{where}; it should be a model's state_dict(), or a dict that has one as "
        f"{', '.join(NESTED[:4])}, ..."
    )


def _innermost(path: Path, content: Any) -> tuple[list[str], Any]:
    """The dict or module in `content` that has the weights, and the keys under which it is: the
    usual ones or, where none of them leads to tensors, the only one that does."""
    keys: list[str] = []
    while len(keys) < MAX_NESTED and (nested := _nested_keys(content)):
        if len(nested) > 1:
            logger.info(f"{path}: used {nested[0]!r}, ignored {some(nested[1:])}")
        elif nested[0] not in NESTED:
            logger.info(f"{path}: used {nested[0]!r}, in which alone there are named tensors")
        keys.append(str(nested[0]))
        content = (entries(content) or {})[nested[0]]
    return keys, content


def _nested_keys(content: Any, known: dict[int, bool] | None = None, depth: int = 1) -> list[Any]:
    """The usual keys under which `content` has a dict or a module, those that lead to tensors
    first. Where none does, the only key under which there are tensors, or that leads to some,
    unless `content` has tensors itself. `known` says of which values that is known."""
    if is_module(content):
        return []
    known = {id(content): False} if known is None else known
    inner = _inner(content)
    leading = [key for key, value in inner.items() if _leads(value, known, depth)]
    usual = [key for key in NESTED if key in inner]
    if first := [key for key in usual if key in leading]:
        return list(dict.fromkeys([*first, *usual]))
    if _has_tensors(content):
        return []
    having = [key for key in leading if _has_tensors(inner[key])] or leading
    return having if len(having) == 1 else [] if having else usual


def _inner(content: Any) -> dict[Any, Any]:
    """What `content` holds that holds something itself."""
    held = entries(content) or {}
    return {key: value for key, value in held.items() if entries(value) is not None}


def _leads(value: Any, known: dict[int, bool], depth: int) -> bool:
    """Whether `value` has tensors by name, or something in it has, by the keys to be followed."""
    if id(value) not in known and depth < MAX_NESTED:
        known[id(value)] = False  # for as long as it is searched, since it may hold itself
        nested = _nested_keys(value, known, depth + 1)[:1]
        inner = _inner(value)
        known[id(value)] = _has_tensors(value) or any(known.get(id(inner[key])) for key in nested)
    return known.get(id(value), False)


def _has_tensors(value: Any) -> bool:
    """Whether `value` has tensors by name."""
    return any(isinstance(key, str) and is_tensor(e) for key, e in (entries(value) or {}).items())
