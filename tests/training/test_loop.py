"""The training loop: batches, learning rates, metrics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from memtool import MemtoolError
from memtool.data import normalize
from memtool.training import (
    Optimizer,
    Task,
    TrainConfig,
    accuracy,
    evaluate,
    fit,
    make_optimizer,
    optimize,
)


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
    model = _model()
    config = TrainConfig(epochs=8, batch_size=16, optimizer=choice, learning_rate=0.02)
    optimizer = make_optimizer(list(model.parameters()), config)
    losses = [row["loss"] for row in fit(model, optimizer, _task(), config)]
    assert losses[-1] < losses[0]


def _task(examples: int = 48, wrong: int = 16) -> Task:
    """Bright and dark images; the given labels of the first `wrong` are the other class."""
    generator = np.random.default_rng(0)
    true = torch.arange(examples) % 2
    images = generator.integers(0, 100, (examples, 1, 4, 4), dtype=np.uint8)
    images = torch.from_numpy(images) + 100 * true.byte().view(-1, 1, 1, 1)
    given = true.clone()
    given[:wrong] = 1 - given[:wrong]
    return Task(
        images, given, true, images[::3], true[::3], 2, lambda some: normalize(some, [0.4], [0.2])
    )


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(16, 2),
    )


def test_the_metrics_are_those_of_a_float64_evaluation():
    task, model = _task(), _model()
    model(torch.randn(8, 1, 4, 4))  # statistics of batch norm that are not the first ones
    model.eval()
    exact = [layer.double() for layer in _copy(model)]

    def logits(images):
        activation = (images.double() / 255 - 0.4) / 0.2
        for layer in exact:
            activation = layer(activation)
        return activation.detach().numpy()

    train, test = logits(task.images), logits(task.test_images)
    shifted = train - train.max(1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    given, true = task.given.numpy(), task.true.numpy()
    metrics = evaluate(model, task)
    assert metrics == {
        "loss": pytest.approx(-log_probabilities[np.arange(48), given].mean(), abs=1e-6),
        "given_accuracy": np.mean(train.argmax(1) == given),
        "true_accuracy": np.mean(train.argmax(1) == true),
        "mislabelled_accuracy": np.mean(train.argmax(1)[:16] == given[:16]),
        "test_accuracy": np.mean(test.argmax(1) == task.test_labels.numpy()),
    }


def _copy(model: nn.Module) -> nn.Module:
    copy = _model()
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def test_evaluation_leaves_the_model_as_it_was():
    model = _model().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluate(model, _task())
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_no_mislabelled_image_no_accuracy_of_them():
    assert evaluate(_model(), _task(wrong=0))["mislabelled_accuracy"] is None
    assert accuracy(torch.zeros(0, 2), torch.zeros(0).long()) is None


def test_a_loss_that_is_not_finite_is_an_error():
    model, task = _model(), _task()
    config = TrainConfig(epochs=3, learning_rate=math.inf, warmup=0)
    with pytest.raises(MemtoolError, match="the loss is (nan|inf) after epoch 1; .*learning-rate"):
        list(fit(model, make_optimizer(list(model.parameters()), config), task, config))
