"""The state of a stopped run: what is saved is what is restored."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from memtool import MemtoolError
from memtool.training import Optimizer, TrainConfig, make_optimizer, optimize
from memtool.training.state import Progress, State, check_same

LABELS = torch.arange(12) % 3
IMAGES = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
# Epochs 1 and 2 are evaluated, 3 is not.
HISTORY = ({"epoch": 1, "loss": 1.5, "given_accuracy": 0.25}, {"epoch": 2, "loss": 0.5})
PROGRESS = Progress(3, HISTORY)


def trained(model, config, epochs, done=0, optimizer=None):
    """Train `model` from epoch `done` until `epochs` are done; returns its optimizer."""
    optimizer = optimizer or make_optimizer(model, config)
    for epoch in optimize(lambda batch: model(IMAGES[batch]), LABELS, optimizer, config, done):
        if epoch == epochs:
            break
    return optimizer


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


@pytest.mark.parametrize("choice", Optimizer)
def test_a_restored_model_and_optimizer_continue_as_if_nothing_had_happened(tmp_path, choice):
    config = TrainConfig(epochs=4, batch_size=5, optimizer=choice)
    state = State(tmp_path / "r.state.safetensors", {"seed": 0})
    whole = network()
    trained(whole, config, 4)

    stopped = network()
    state.save(stopped, trained(stopped, config, 2), PROGRESS)
    resumed = network(seed=1)
    optimizer = make_optimizer(resumed, config)
    assert state.load(resumed, optimizer) == PROGRESS
    trained(resumed, config, 4, done=2, optimizer=optimizer)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_the_latest_weights_and_metrics_are_those_saved_last(tmp_path):
    state = State(tmp_path / "r.state.safetensors", {})
    first, second = network(seed=1), network(seed=2)
    for count, model in enumerate((first, second), 1):
        progress = Progress(count, HISTORY[:count])
        state.save(model, make_optimizer(model, TrainConfig()), progress)
    weights, progress = state.latest()
    assert progress == Progress(2, HISTORY)
    assert weights.keys() == second.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in second.state_dict().items())
    state.remove()
    assert list(tmp_path.iterdir()) == []


def test_without_a_file_there_is_no_history_and_the_model_stays_as_it_is(tmp_path):
    model, same = network(), network()
    state = State(tmp_path / "r.state.safetensors", {})
    assert state.load(model, make_optimizer(model, TrainConfig())) == Progress()
    assert functional.mse_loss(model(IMAGES), same(IMAGES)) == 0


def test_a_run_with_other_settings_cannot_resume(tmp_path):
    path, model = tmp_path / "r.state.safetensors", network()
    optimizer = make_optimizer(model, TrainConfig())
    State(path, {"seed": 0}).save(model, optimizer, PROGRESS)
    with pytest.raises(MemtoolError, match="is of a run with other settings"):
        State(path, {"seed": 1}).load(model, optimizer)


@pytest.mark.parametrize("choice", Optimizer)
def test_a_model_with_the_channels_last_is_restored_as_it_was(tmp_path, choice):
    config = TrainConfig(epochs=4, batch_size=6, optimizer=choice)
    images = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)

    def network(seed):
        torch.manual_seed(seed)
        layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3)
        return nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def train(model, epochs, done=0, optimizer=None):
        optimizer = optimizer or make_optimizer(model, config)
        forward = lambda batch: model(images[batch])  # noqa: E731
        for epoch in optimize(forward, LABELS, optimizer, config, done):
            if epoch == epochs:
                return optimizer

    whole, stopped, resumed = network(0), network(0), network(1)
    train(whole, 4)
    state = State(tmp_path / "r.state.safetensors", {})
    state.save(stopped, train(stopped, 2), PROGRESS)
    optimizer = make_optimizer(resumed, config)
    state.load(resumed, optimizer)
    train(resumed, 4, 2, optimizer)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_settings_that_differ_are_named_with_both_values(tmp_path):
    recorded = {"seed": 0, "training": {"epochs": 20, "noise_ratio": 0.5, "augment": "none"}}
    now = {"seed": 0, "training": {"epochs": 30, "noise_ratio": 0.5, "clip_norm": None}}
    with pytest.raises(MemtoolError) as error:
        check_same(tmp_path / "r.safetensors", recorded, now)
    told = str(error.value)
    assert "training.augment was none, is not recorded" in told
    assert "training.epochs was 20, is 30" in told and "noise_ratio" not in told
    check_same(tmp_path / "r.safetensors", recorded, {**recorded})
