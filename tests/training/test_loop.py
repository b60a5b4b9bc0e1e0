"""The training loop: batches, learning rates, weight decay, augmentation."""

import random
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from memtool.device import Processes
from memtool.training import (
    Augment,
    Optimizer,
    TrainConfig,
    evaluate,
    fit,
    make_optimizer,
    optimize,
)
from memtool.training import graphs as graphs_module
from memtool.training.graphs import GraphedStep

from .examples import small_model, small_task


def batches_of(examples: int, **config) -> list[list[int]]:
    """The indices that each step of one epoch takes."""
    weight = nn.Parameter(torch.zeros(2))
    taken = []

    def forward(batch):
        taken.append(batch.tolist())
        return weight.expand(len(batch), 2)

    settings = TrainConfig(epochs=1, **config)
    for _ in optimize(forward, torch.zeros(examples).long(), _sgd(weight), settings):
        pass
    assert len(taken) == settings.steps_per_epoch(examples)
    return taken


def _sgd(*parameters):
    return torch.optim.SGD(parameters, lr=1.0)


@given(st.integers(1, 90), st.integers(1, 40))
@settings(max_examples=50)
def test_an_epoch_takes_every_example_once(examples, batch_size):
    batches = batches_of(examples, batch_size=batch_size)
    assert sorted(sum(batches, [])) == list(range(examples))
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    assert len(batches[-1]) <= batch_size + 1


@pytest.mark.parametrize(
    "examples, sizes",
    [(1, [1]), (2, [2]), (4, [4]), (5, [5]), (6, [4, 2]), (8, [4, 4]), (9, [4, 5])],
)
def test_a_last_batch_of_one_joins_the_one_before(examples, sizes):
    assert [len(batch) for batch in batches_of(examples, batch_size=4)] == sizes


def test_the_order_follows_from_the_seed_and_the_epoch():
    assert batches_of(50, seed=1) == batches_of(50, seed=1) != batches_of(50, seed=2)
    assert batches_of(50, seed=1, order_seed=2) == batches_of(50, seed=2)
    orders = [batches_of(50, seed=2, order_seed=other) for other in (2, 2 + 2**12, 2 + 2**31)]
    assert orders[0] not in orders[1:] and orders[1] != orders[2]


def test_what_processes_draw_in_an_epoch_differs():
    def drawn(rank):
        draws = []

        def forward(batch):
            draws.append((torch.rand(()).item(), np.random.rand()))
            return weight.expand(len(batch), 2)

        weight = nn.Parameter(torch.zeros(2))
        ranks = Processes(rank, 3)
        list(optimize(forward, labels, _sgd(weight), TrainConfig(epochs=1), processes=ranks))
        return draws[0]

    labels = torch.zeros(6).long()
    torches, arrays = zip(*(drawn(rank) for rank in range(3)), strict=True)
    assert len({*torches}) == len({*arrays}) == 3


@pytest.mark.parametrize("done", [0, 1])
def test_the_optimizer_takes_each_step_at_the_rate_of_the_schedule(done):
    weight, seen = nn.Parameter(torch.zeros(2)), []
    config = TrainConfig(epochs=2, batch_size=4)
    optimizer = _sgd(weight)

    def forward(batch):
        seen.append(optimizer.param_groups[0]["lr"])
        return weight.expand(len(batch), 2)

    epochs = optimize(forward, torch.zeros(10).long(), optimizer, config, done)
    assert list(epochs) == [1, 2][done:]
    assert seen == [config.rate(step, 6) for step in range(3 * done, 6)]


@pytest.mark.parametrize("choice", Optimizer)
def test_every_optimizer_lowers_the_loss(choice):
    model = small_model()
    config = TrainConfig(epochs=8, batch_size=16, optimizer=choice, learning_rate=0.02)
    optimizer, task = make_optimizer(model, config), small_task()
    losses = [evaluate(model, task)["loss"] for _ in fit(model, optimizer, task, config)]
    assert losses[-1] < losses[0]


NORMS = [
    nn.BatchNorm1d(3),
    nn.BatchNorm2d(3),
    nn.SyncBatchNorm(3),
    nn.InstanceNorm2d(3, affine=True),
    nn.LayerNorm(3),
    nn.GroupNorm(1, 3),
    nn.RMSNorm(3),
]


@pytest.mark.parametrize("choice", Optimizer)
@pytest.mark.parametrize("decay_norm", [False, True])
def test_normalization_layers_are_decayed_only_if_asked_for(choice, decay_norm):
    linear, norms = nn.Linear(2, 2), nn.ModuleList(NORMS)
    config = TrainConfig(weight_decay=0.125, optimizer=choice, decay_norm=decay_norm)
    optimizer = make_optimizer(nn.ModuleList([linear, norms]), config)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert [decays[id(p)] for p in linear.parameters()] == [0.125, 0.125]
    assert {decays[id(p)] for p in norms.parameters()} == {0.125 if decay_norm else 0.0}
    assert len(decays) == 2 + sum(1 for _ in norms.parameters())


def test_a_gradient_is_clipped_to_the_norm():
    weight = nn.Parameter(torch.zeros(2))
    config = TrainConfig(epochs=1, batch_size=4, clip_norm=1e-3, learning_rate=1.0, warmup=0.0)
    seen = []

    def forward(batch):
        seen.append(weight.detach().clone())
        return weight.expand(len(batch), 2)

    for _ in optimize(forward, torch.zeros(12).long(), _sgd(weight), config):
        seen.append(weight.detach().clone())
    rates = [config.rate(step, 3) for step in range(3)]
    steps = [(after - before).norm().item() for before, after in zip(seen, seen[1:], strict=False)]
    assert steps == pytest.approx([1e-3 * rate for rate in rates], rel=1e-3)


def test_augmentation_changes_what_is_trained_on_and_only_that():
    def weights(augment):
        model, task = small_model(), small_task()
        config = TrainConfig(epochs=2, batch_size=16, augment=augment)
        for _ in fit(model, make_optimizer(model, config), task, config):
            pass
        return evaluate(model, task)

    first, second = weights(Augment.crop_flip), weights(Augment.crop_flip)
    assert first == second != weights(Augment.none)


class Replayed:
    """Stands for a CUDA graph: replaying repeats the step that was recorded."""

    def __init__(self, *arguments, **more):
        self.replays = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def replay(self):
        self.replays += 1


@pytest.mark.parametrize(
    "draw", [random.random, np.random.rand, lambda: torch.rand(1)], ids=["random", "numpy", "torch"]
)
@pytest.mark.parametrize("draws", [False, True])
def test_a_step_that_draws_on_the_host_is_not_recorded(monkeypatch, caplog, draw, draws):
    for name in ("CUDAGraph", "graph", "Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Replayed)
    taken = []

    def step(indices):
        taken.append(indices.tolist())
        if draws:
            draw()

    graphed = GraphedStep(step, 2, torch.device("cpu"))
    with caplog.at_level("INFO", "memtool"):
        for number in range(8):
            graphed(torch.tensor([number, number + 1]))
    assert graphed._graph.replays == (0 if draws else 5)
    assert len(taken) == (8 if draws else 4)  # three as they are, one that is recorded
    assert caplog.text.count("draws from a generator of the host") == draws


def six_steps():
    """The graph of six steps, and the batches that ran, or were recorded."""
    taken = []
    graphed = GraphedStep(lambda indices: taken.append(indices.tolist()), 1, torch.device("cpu"))
    for number in range(6):
        graphed(torch.tensor([number]))
    return graphed._graph, taken


@pytest.mark.parametrize("free, fits", [(200, True), (199, False)])
def test_a_graph_is_recorded_where_there_is_room_for_two_steps(monkeypatch, caplog, free, fits):
    for name in ("CUDAGraph", "graph", "Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Replayed)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)  # weights and images
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 130)
    monkeypatch.setattr(graphs_module, "memory_of", lambda device: free)
    with caplog.at_level("INFO", "memtool"):
        graph, taken = six_steps()
    assert graph.replays == (3 if fits else 0)
    assert taken == [[number] for number in range(4 if fits else 6)]
    assert caplog.text.count("no room for a second step") == (not fits)


def test_where_recording_runs_out_of_memory_steps_go_on_as_they_are(monkeypatch, caplog):
    @contextmanager
    def recording(graph, stream):
        yield
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    given_up = []
    monkeypatch.setattr(Replayed, "reset", lambda graph: given_up.append(graph), raising=False)
    for name in ("CUDAGraph", "Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Replayed)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    with caplog.at_level("INFO", "memtool"):
        graph, taken = six_steps()
    assert given_up == [graph] and graph.replays == 0
    assert taken == [[number] for number in (0, 1, 2, 3, 3, 4, 5)]  # recorded, it computes nothing
    assert caplog.text.count("no CUDA graph of the training step (OutOfMemoryError: CUDA out") == 1
