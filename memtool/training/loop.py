"""The training loop: `optimize`, for classifiers and stitching layers alike, and `fit`, which
applies it to a classifier.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from memtool.device import Precision, Processes, tf32
from memtool.progress import Advance, unseen
from memtool.training.augmentation import CropFlip
from memtool.training.evaluation import Task
from memtool.training.graphs import GraphedStep
from memtool.training.settings import Augment, Optimizer, TrainConfig

NORMALIZATIONS = (
    nn.modules.batchnorm._NormBase,
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer that `config` names, of all parameters of `model`, with a learning rate of 1.0
    for `optimize` to schedule."""
    groups = _parameter_groups(model, config)
    device = next(model.parameters()).device
    # On CUDA the rate is a tensor, which a graph can read anew each time.
    on_cuda = device.type == "cuda"
    fused = not any(parameter.is_complex() for parameter in model.parameters())
    rate = torch.tensor(1.0, device=device) if on_cuda else 1.0
    match config.optimizer:
        case Optimizer.adamw:
            return torch.optim.AdamW(groups, lr=rate, fused=fused, capturable=on_cuda)
        case Optimizer.adam:
            return torch.optim.Adam(groups, lr=rate, fused=fused, capturable=on_cuda)
        case Optimizer.sgd:
            sgd = torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True, fused=fused)
            for parameter in (one for one in model.parameters() if one.requires_grad):
                # Else those without a gradient in the first step, as experts have, would have none
                # beside others that have, which the fused kernel does not take.
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            return sgd


def seed_all(seed: int) -> None:
    """Seed PyTorch's generators, and those of Python and NumPy, which a model may draw from too.

    PyTorch's on a CPU would heed 32 bits of a seed, the lowest: larger ones are hashed to as many.
    """
    if seed >= 2**32:
        digest = hashlib.sha256(str(seed).encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # without a word to devices that are not there, for which it formats three tracebacks
        torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def _parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, object]]:
    """The parameters of normalization layers, and all others, each with its weight decay."""
    layers = [layer for layer in model.modules() if isinstance(layer, NORMALIZATIONS)]
    norm = {id(parameter) for layer in layers for parameter in layer.parameters(recurse=False)}
    groups = [
        ([p for p in model.parameters() if id(p) not in norm], config.weight_decay),
        (
            [p for p in model.parameters() if id(p) in norm],
            config.weight_decay if config.decay_norm else 0.0,
        ),
    ]
    return [{"params": group, "weight_decay": decay} for group, decay in groups if group]


def optimize(
    forward: Callable[[Tensor], Tensor],
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    done: int = 0,
    *,
    start: Callable[[], object] = nullcontext,
    processes: Processes = Processes(),
    graph: bool = False,
    advance: Advance = unseen,
) -> Iterator[int]:
    """Minimize the cross-entropy and yield the number of each epoch when it ends.

    `forward` takes the indices of a batch, int64 (b,), and returns its logits, (b, classes);
    `labels` is int64 (n,). `optimizer` comes from `make_optimizer`: the schedule multiplies its
    learning rate of 1.0 by `config.rate`. `start` is called before the first batch of each epoch.
    Each of several processes takes its part of every batch: their gradients are to be averaged,
    as DistributedDataParallel does. With `graph`, on CUDA and in one process, steps are replayed:
    see `GraphedStep` for what that asks of `forward`. `advance` is called after each step; on a
    GPU, that is when its kernels are launched.

    Epochs are counted from 1, and the first `done` of them are skipped. PyTorch's global generator
    is seeded from the seed and the number of each epoch, so that a run which was stopped and
    resumed continues as if it had not been stopped. Nothing within an epoch waits for the device.
    """
    per_epoch = config.steps_per_epoch(len(labels))
    first, steps = done * per_epoch, config.epochs * per_epoch
    schedule = LambdaLR(optimizer, lambda step: config.rate(first + step, steps))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    bf16 = config.precision is Precision.bf16

    def step(share: Tensor, weight: float = 1.0) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(labels.device.type, torch.bfloat16, enabled=bf16):
            logits = forward(share)
        (functional.cross_entropy(logits.float(), labels[share]) * weight).backward()
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()

    graphed = GraphedStep(step, config.batch_size, labels.device) if graph else None
    for epoch in range(done + 1, config.epochs + 1):
        seed_all(config.epoch_seed(epoch))
        order = torch.randperm(len(labels)).to(labels.device)
        start()
        if processes.rank:  # dropout draws from here on, and in each process something else
            seed_all(config.epoch_seed(epoch) + (processes.rank << 52))
        with tf32(config.precision):
            for batch in order.split(config.batch_sizes(len(labels))):
                if graphed:
                    graphed(batch)
                else:
                    share = batch[processes.rank :: processes.size]
                    step(share, processes.size * len(share) / len(batch))
                schedule.step()
                advance()
        optimizer.zero_grad(set_to_none=True)  # what follows an epoch has no use for gradients
        yield epoch


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    config: TrainConfig,
    done: int = 0,
    processes: Processes = Processes(),
    advance: Advance = unseen,
) -> Iterator[int]:
    """Train `model` on the given labels; yield the number of each epoch when it ends.

    `optimizer`, `done`, `processes` and `advance` are those of `optimize`. The model is in training
    mode whenever an epoch starts.
    """
    device = task.given.device
    crops = None
    if config.augment is Augment.crop_flip:
        crops = CropFlip(len(task.given), min(task.images[:1].shape[2:]), device)

    def start() -> None:
        model.train()
        if crops:
            crops.draw()

    def forward(batch: Tensor) -> Tensor:
        images = task.images[batch]
        return task.logits(model, crops(images, batch) if crops else images)

    return optimize(
        forward,
        task.given,
        optimizer,
        config,
        done,
        start=start,
        processes=processes,
        graph=may_graph(task, config, processes),
        advance=advance,
    )


def may_graph(task: Task, config: TrainConfig, processes: Processes) -> bool:
    """Whether steps may become CUDA graphs: all images have to be on the device, and torch.compile
    and DistributedDataParallel launch their kernels in their own ways."""
    on_cuda = isinstance(task.images, Tensor) and task.images.device.type == "cuda"
    return on_cuda and processes.size == 1 and not config.compile
