"""Weights that memtool did not write, and the making of a checkpoint of them."""

import logging
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memtool import MemtoolError
from memtool.checkpoints.checkpoint import Checkpoint, load_weights
from memtool.checkpoints.recognition import identify
from memtool.data.datasets import Dataset
from memtool.errors import one_line
from memtool.models.spec import ModelSpec
from memtool.tensors import is_pickle, save_tensors

logger = logging.getLogger(__name__)

# Under which keys training code keeps the weights in what it saves, and averages of them.
NESTED = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights"),
    *("params", "module", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema"),
)


def convert(
    path: Path, model: ModelSpec | None, output: Path, dataset: Dataset | None, trust: bool
) -> None:
    """Write a checkpoint of the weights in `path`.

    Raises MemtoolError unless they are exactly those of `model`, or of the one recognized.
    """
    try:
        pickled = is_pickle(path)
    except OSError as error:
        raise MemtoolError(f"{path}: cannot be read ({error.strerror})") from error
    if pickled:
        stored = unpickled(path)
        shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
        checkpoint = Checkpoint.of(path, shapes, identify(path, shapes, model))
        tensors = {name: stored[key] for name, key in checkpoint.names.items()}
    else:
        checkpoint = Checkpoint.open(path, model, trust)
        tensors = checkpoint.tensors()
    weights = checkpoint.skeleton()
    load_weights(weights, tensors, path)
    metadata = checkpoint.on(dataset).metadata if dataset else checkpoint.metadata
    save_tensors(output, "checkpoint", weights.state_dict(), metadata)


def unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of what torch.save wrote, by name.

    Nothing in the file runs: PyTorch's restricted unpickler makes tensors, numbers, strings and
    containers of it, or refuses. Raises MemtoolError.
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
    """The innermost dict of tensors: `content` itself, or what it has under one of the usual
    keys."""
    keys: list[str] = []
    while isinstance(content, dict):
        tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
        nested = [key for key in NESTED if isinstance(content.get(key), dict)]
        if not nested:
            others = [str(key) for key in content if key not in tensors]
            if tensors and all(isinstance(key, str) for key in tensors):
                if others:
                    logger.info(f"{path}: {', '.join(others[:3])} left aside, no tensors")
                return tensors
            break
        keys.append(nested[0])
        if len(nested) > 1:
            logger.info(f"{path}: takes {nested[0]!r}, leaves {', '.join(nested[1:])} aside")
        content = content[nested[0]]
    where = f"under {'.'.join(keys)!r}" if keys else "in it"
    raise MemtoolError(
        f"{path}: there are no named tensors {where}; it should be a model's state_dict(), or a "
        f"dict that has one as {', '.join(NESTED[:4])}, ..."
    )
