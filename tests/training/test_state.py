"""The state of a stopped run: what is saved is what is restored."""

from typing import get_type_hints

import pytest
import torch
from torch import nn
from torch.nn import functional

from memtool import MemtoolError
from memtool.tensors import load_tensors, read_metadata, save_tensors
from memtool.training import Optimizer, TrainConfig, make_optimizer, optimize
from memtool.training.evaluation import EpochMetrics
from memtool.training.state import State, Trained, check_same

LABELS = torch.arange(12) % 3
IMAGES = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
# Epochs 1 and 2 are evaluated, 3 is not.
METRICS = {name: None if "mislabelled" in name else 0.25 for name in get_type_hints(EpochMetrics)}
HISTORY = ({**METRICS, "epoch": 1, "loss": 1.5}, {**METRICS, "epoch": 2})
PROGRESS = Trained(3, HISTORY)


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
        progress = Trained(count, HISTORY[:count])
        state.save(model, make_optimizer(model, TrainConfig()), progress)
    weights, progress = state.latest()
    assert progress == Trained(2, HISTORY)
    assert weights.keys() == second.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in second.state_dict().items())
    state.remove()
    assert list(tmp_path.iterdir()) == []


def test_without_a_file_there_is_no_history_and_the_model_stays_as_it_is(tmp_path):
    model, same = network(), network()
    state = State(tmp_path / "r.state.safetensors", {})
    assert state.load(model, make_optimizer(model, TrainConfig())) == Trained()
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


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({"settings": 1}, "no sensible 'settings': 1 is"),
        ({"epoch": None}, "no sensible 'epoch'"),
        ({"epoch": -1}, "no sensible 'epoch'"),
        ({"epoch": "1"}, "no sensible 'epoch'"),
        ({"epoch": 2**31}, "no sensible 'epoch'"),
        ({"history": 1}, "no sensible 'history'"),
        ({"history": [1]}, "no sensible 'history'"),
        ({"history": [{"epoch": 1}]}, r"no 'loss' in 'history\[0\]'"),
        ({"history": [{**METRICS, "epoch": 1, "loss": "low"}]}, "no sensible 'loss'"),
        ({"history": [{**METRICS, "epoch": 1, "loss": None}]}, "no sensible 'loss'"),
        ({"history": [{**METRICS, "epoch": 1, "loss": "1"}]}, "no sensible 'loss'"),
        ({"history": [{**METRICS, "epoch": 1.5}]}, "no sensible 'epoch'"),
        ({"history": [{**METRICS, "epoch": 1, "more": 1}]}, "unknown 'more' in 'history'"),
    ],
)
def test_metadata_that_are_not_those_of_a_state_are_refused(tmp_path, metadata, told):
    path, model = tmp_path / "r.state.safetensors", network()
    state = State(path, {"training": {"epochs": 20}})
    state.save(model, make_optimizer(model, TrainConfig()), PROGRESS)
    tensors = load_tensors(path)
    save_tensors(path, "state", tensors, {**read_metadata(path), **metadata})
    with pytest.raises(MemtoolError, match=f"r.state.safetensors: its memtool metadata .*{told}"):
        state.load(model, make_optimizer(model, TrainConfig()))


@pytest.mark.parametrize(
    "changed",
    [
        {"model.0.weight": None},
        {"model.0.weight": torch.zeros(3)},
        {"model.more": torch.zeros(3)},
        {"optimizer.0.exp_avg": torch.zeros(3)},
        {"optimizer.0.exp_avg": torch.zeros(())},
        {"optimizer.0.exp_avg_sq": None},
        {"optimizer.0.more": torch.zeros(())},
        {"optimizer.99.exp_avg": torch.zeros(3)},
        {"optimizer.x.exp_avg": torch.zeros(3)},
        {"optimizer.-99.exp_avg": torch.zeros(3)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_tensors_that_are_not_those_of_the_run_are_refused(tmp_path, changed):
    path, model = tmp_path / "r.state.safetensors", network()
    state, config = State(path, {}), TrainConfig(epochs=4, batch_size=5, optimizer=Optimizer.adamw)
    state.save(model, trained(model, config, 2), PROGRESS)
    metadata = read_metadata(path)
    tensors = {k: v for k, v in (load_tensors(path) | changed).items() if v is not None}
    save_tensors(path, "state", tensors, metadata)
    with pytest.raises(MemtoolError, match="its tensors are not those of the run"):
        state.load(network(), make_optimizer(network(), config))


def test_what_a_killed_process_left_goes_with_the_state(tmp_path):
    left = tmp_path / ".r.state.safetensors.tmp"
    left.mkdir()
    for name in ("holder", "123"):
        (left / name).touch()
    (tmp_path / "r.state.safetensors").touch()
    State(tmp_path / "r.state.safetensors", {}).remove()
    assert not [*tmp_path.iterdir()]
