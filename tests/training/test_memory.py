"""What training and evaluation take in memory."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from memtool import MemtoolError
from memtool.device import Precision, Processes
from memtool.layers import footprint
from memtool.models import build, parse
from memtool.training import Optimizer, TrainConfig
from memtool.training import memory as module
from memtool.training.memory import evaluation_batch

SHAPE = (3, 64, 64)


@pytest.fixture(scope="module")
def model():
    return build(parse("resnet18?width=8&num_classes=4"))


def test_evaluation_takes_no_more_than_a_training_step(model):
    config = TrainConfig(batch_size=64)
    step = 64 * footprint(model.train(), SHAPE, gradients=True).per_example
    batch = evaluation_batch(model, torch.zeros(1, *SHAPE), config)
    assert step > module.LEAST
    assert footprint(model, SHAPE).of(batch) <= step < footprint(model, SHAPE).of(batch + 1)
    assert batch > 64


def test_small_networks_are_evaluated_in_large_batches():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    assert evaluation_batch(model, torch.zeros(1, 3, 2, 2), TrainConfig(batch_size=2)) > 10_000


@pytest.mark.parametrize(
    "config, processes, told",
    [
        (TrainConfig(batch_size=64), 1, "64 images"),
        (TrainConfig(batch_size=64, precision=Precision.bf16), 1, "64 images"),
        (TrainConfig(batch_size=64), 4, "16 images"),
        (TrainConfig(batch_size=64), 64, "1 image"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_size(model, monkeypatch, config, processes, told):
    pass_of = footprint(model.train(), SHAPE, gradients=True)
    state = 2 * sum(p.numel() * 4 for p in model.parameters())
    needed = pass_of.of(64 // processes) + state
    needed //= 2 if config.precision is Precision.bf16 else 1
    monkeypatch.setattr(module, "memory_of", lambda device: needed)
    evaluation_batch(model, torch.zeros(1, *SHAPE), config, Processes(0, processes))
    monkeypatch.setattr(module, "memory_of", lambda device: needed - 1)
    with pytest.raises(MemtoolError, match=f"{told} takes .*iB of memory, cpu has .*--batch-size"):
        evaluation_batch(model, torch.zeros(1, *SHAPE), config, Processes(0, processes))


def test_sgd_keeps_less_than_adam(model):
    config = TrainConfig(optimizer=Optimizer.sgd)
    weights = sum(p.numel() * 4 for p in model.parameters())
    assert module._optimizer_state(model, config) == weights
    assert module._optimizer_state(model, TrainConfig()) == 2 * weights


def test_the_memory_of_the_machine():
    assert 2**28 < module.memory_of(torch.device("cpu")) < 2**50


PEAKS = """
import torch
from memtool.data import normalize
from memtool.models import build, parse
from memtool.training import Task, TrainConfig, evaluate, fit, make_optimizer
from memtool.training.memory import evaluation_batch

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024

torch.set_num_threads(1)
model, config = build(parse("torchvision:resnet18?num_classes=4")), TrainConfig(1, batch_size=4)
images = torch.randint(0, 256, (500, 3, 96, 96), dtype=torch.uint8)
labels = torch.arange(500) % 4
batch = evaluation_batch(model, torch.zeros(1, 3, 96, 96), config)
task = Task(
    images[:40], labels[:40], labels[:40], images, labels, 4,
    lambda some: normalize(some, [0.5] * 3, [0.3] * 3), batch,
)
for _ in fit(model, make_optimizer(model, config), task, config):
    trained = peak()
evaluate(model, task)
print(trained, peak())
"""


@pytest.mark.slow
def test_the_peak_of_evaluation_is_that_of_training():
    """500 images at once would take 700 MB more."""
    done = subprocess.run(
        [sys.executable, "-c", PEAKS], capture_output=True, text=True, timeout=300, check=True
    )
    trained, evaluated = map(int, done.stdout.split())
    assert evaluated - trained < 150  # MiB
