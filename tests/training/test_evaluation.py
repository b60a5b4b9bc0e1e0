"""What a classifier has learned: metrics against float64."""

import numpy as np
import pytest
import torch
from torch import nn

from memtool.device import Processes
from memtool.training import Outcomes, evaluate
from memtool.training.evaluation import outcomes

from .examples import small_model, small_task


def test_the_metrics_are_those_of_a_float64_evaluation():
    task, model = small_task(), small_model()
    model(torch.randn(8, 1, 4, 4))  # statistics of batch norm that are not the first ones
    model.eval()
    exact = [layer.double() for layer in _copy(model)]

    def logits(images):
        activation = (images.double() / 255 - 0.4) / 0.2
        for layer in exact:
            activation = layer(activation)
        return activation.detach().numpy()

    def loss_and_accuracy(logits, labels):
        shifted = logits - logits.max(1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        loss = -log_probabilities[np.arange(len(labels)), labels].mean()
        return pytest.approx(loss, abs=1e-6), np.mean(logits.argmax(1) == labels)

    train, given, true = logits(task.images), task.given.numpy(), task.true.numpy()
    expected = {
        "given": loss_and_accuracy(train, given),
        "true": loss_and_accuracy(train, true),
        "mislabelled": loss_and_accuracy(train[:16], given[:16]),
        "mislabelled_true": loss_and_accuracy(train[:16], true[:16]),
        "clean": loss_and_accuracy(train[16:], given[16:]),
        "test": loss_and_accuracy(logits(task.test_images), task.test_labels.numpy()),
    }
    metrics = evaluate(model, task)
    assert metrics.pop("loss") == expected["given"][0]
    assert metrics.pop("given_accuracy") == expected["given"][1]
    assert metrics == {
        f"{part}_{what}": value
        for part, both in expected.items()
        for what, value in zip(("loss", "accuracy"), both, strict=True)
        if part != "given"
    }


def _copy(model: nn.Module) -> nn.Module:
    copy = small_model()
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def test_evaluation_leaves_the_model_as_it_was():
    model = small_model().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluate(model, small_task())
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("wrong, empty", [(0, "mislabelled"), (48, "clean")])
def test_what_has_no_images_is_empty(wrong, empty):
    for name, value in evaluate(small_model(), small_task(wrong=wrong)).items():
        assert (value is None) == name.startswith(empty), name


@pytest.mark.parametrize("batch_size", [1, 7, 48, 100])
def test_the_metrics_do_not_depend_on_the_batches(batch_size):
    from dataclasses import replace

    expected = evaluate(small_model(), small_task())
    found = evaluate(small_model(), replace(small_task(), batch_size=batch_size))
    assert found == {
        name: pytest.approx(value, abs=1e-6) if name.endswith("loss") else value
        for name, value in expected.items()
    }


def test_processes_share_the_batches():
    """Each of two processes, alone, leaves the outcomes of the other's batches at 0."""
    logits, labels = torch.randn(10, 3), torch.zeros(10).long()

    class Half(Processes):
        def sum(self, tensor):
            return tensor

    (whole,) = outcomes(lambda batch: logits[batch], [labels], 2)
    halves = [outcomes(lambda batch: logits[batch], [labels], 2, Half(r, 2))[0] for r in (0, 1)]
    assert torch.equal(halves[0].losses + halves[1].losses, whole.losses)
    assert halves[0].losses.count_nonzero() == 6 and halves[1].losses.count_nonzero() == 4


def test_losses_far_below_the_precision_of_float32_are_told():
    logits = torch.tensor([[40.0, 0.0], [0.0, 40.0]])
    (found,) = outcomes(lambda batch: logits[batch], [torch.tensor([0, 1])], 2)
    assert found.loss() == pytest.approx(np.exp(-40.0), rel=1e-6)
    assert isinstance(found, Outcomes) and found.accuracy() == 1.0
