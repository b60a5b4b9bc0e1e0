"""The state of a stopped run: what is saved is what is restored."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from memtool import MemtoolError
from memtool.training import Optimizer, TrainConfig, make_optimizer, optimize
from memtool.training.state import State

LABELS = torch.arange(12) % 3
IMAGES = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
HISTORY = [{"epoch": 1, "loss": 1.5, "given_accuracy": 0.25}, {"epoch": 2, "loss": 0.5}]


def trained(model, config, epochs, done=0, optimizer=None):
    """Train `model` from epoch `done` until `epochs` are done; returns its optimizer."""
    optimizer = optimizer or make_optimizer(list(model.parameters()), config)
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
    state.save(stopped, trained(stopped, config, 2), HISTORY)
    resumed = network(seed=1)
    optimizer = make_optimizer(list(resumed.parameters()), config)
    assert state.load(resumed, optimizer) == HISTORY
    trained(resumed, config, 4, done=2, optimizer=optimizer)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_the_latest_weights_and_metrics_are_those_saved_last(tmp_path):
    state = State(tmp_path / "r.state.safetensors", {})
    first, second = network(seed=1), network(seed=2)
    for count, model in enumerate((first, second), 1):
        state.save(model, make_optimizer(list(model.parameters()), TrainConfig()), HISTORY[:count])
    weights, metrics = state.latest()
    assert metrics == HISTORY[1]
    assert weights.keys() == second.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in second.state_dict().items())
    state.remove()
    assert list(tmp_path.iterdir()) == []


def test_without_a_file_there_is_no_history_and_the_model_stays_as_it_is(tmp_path):
    model, same = network(), network()
    state = State(tmp_path / "r.state.safetensors", {})
    assert state.load(model, make_optimizer(list(model.parameters()), TrainConfig())) == []
    assert functional.mse_loss(model(IMAGES), same(IMAGES)) == 0


def test_a_run_with_other_settings_cannot_resume(tmp_path):
    path, model = tmp_path / "r.state.safetensors", network()
    optimizer = make_optimizer(list(model.parameters()), TrainConfig())
    State(path, {"seed": 0}).save(model, optimizer, HISTORY)
    with pytest.raises(MemtoolError, match="is of a run with other settings"):
        State(path, {"seed": 1}).load(model, optimizer)
