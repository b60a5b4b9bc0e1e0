"""Conversion of weights that memtool did not write to checkpoints."""

import logging
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memtool import MemtoolError
from memtool.checkpoints.checkpoint import Checkpoint
from memtool.checkpoints.names import first_few, renamed
from memtool.checkpoints.network import load_weights
from memtool.checkpoints.recognition import identify
from memtool.contents import is_pickle
from memtool.data import Dataset
from memtool.errors import one_line
from memtool.models import ModelSpec
from memtool.tensors import save_tensors

logger = logging.getLogger(__name__)

# The keys under which training code saves the weights, and then those of averages of them.
NESTED = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights"),
    *("params", "module", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema"),
)


def convert(
    path: Path, model: ModelSpec | None, output: Path, dataset: Dataset | None, trust: bool
) -> None:
    """Write a checkpoint, `output`, with the weights in `path`, a pickle or a safetensors file.

    They are of `model` if it is given, else of the model that is recognized or, for a checkpoint,
    on record. The metadata record `dataset` as what the network was trained on. With `trust`, the
    code that the metadata of a checkpoint name may run. Raises MemtoolError unless the weights are
    exactly those of the model.
    """
    checkpoint, tensors = _read(path, model, trust)
    if dataset:
        checkpoint = checkpoint.with_dataset(dataset)
    network = checkpoint.skeleton()
    load_weights(network, tensors, path)
    save_tensors(output, "checkpoint", network.state_dict(), checkpoint.metadata)


def _read(path: Path, model: ModelSpec | None, trust: bool) -> tuple[Checkpoint, dict[str, Tensor]]:
    """The checkpoint that `path` is, or would be, and its tensors by their names in the model."""
    if not is_pickle(path):
        checkpoint = Checkpoint.open(path, model, trust)
        return checkpoint, checkpoint.tensors()
    stored = unpickle(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    checkpoint = Checkpoint.from_match(path, shapes, identify(path, shapes, model))
    return checkpoint, renamed(stored, checkpoint.names)


def unpickle(path: Path) -> dict[str, Tensor]:
    """The tensors in a file that `torch.save` wrote, by name.

    Nothing in the file runs: PyTorch's restricted unpickler makes tensors, numbers, strings and
    containers from it, or refuses. Raises MemtoolError if it does, and if there are no named
    tensors under any of the usual keys.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise MemtoolError(
            f"{path}: holds more than tensors, numbers and text, which memtool does not run; where "
            "it comes from, save the model's state_dict() alone"
        ) from error
    except Exception as error:  # whatever is wrong with the bytes of a pickle
        raise MemtoolError(f"{path}: cannot be read as a pickle ({one_line(error)})") from error
    return _weights(path, content)


def _weights(path: Path, content: Any) -> dict[str, Tensor]:
    """The innermost dict of tensors: `content` itself, or the one under the usual keys."""
    keys: list[str] = []
    while nested := _nested_keys(content):
        if len(nested) > 1:
            logger.info(f"{path}: used {nested[0]!r}, ignored {first_few(nested[1:])}")
        keys.append(nested[0])
        content = content[nested[0]]
    entries = content if isinstance(content, dict) else {}
    tensors = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
    if not tensors or not all(isinstance(key, str) for key in tensors):
        where = f"under {'.'.join(keys)!r}" if keys else "in it"
        raise MemtoolError(
            f"{path}: there are no named tensors {where}; it should be a model's state_dict(), or "
            f"a dict that has one as {', '.join(NESTED[:4])}, ..."
        )
    if others := [str(key) for key in entries if key not in tensors]:
        logger.info(f"{path}: ignored {first_few(others)}, not tensors")
    return tensors


def _nested_keys(content: Any) -> list[str]:
    """The usual keys under which `content`, if it is a dict, has another dict."""
    if not isinstance(content, dict):
        return []
    return [key for key in NESTED if isinstance(content.get(key), dict)]
