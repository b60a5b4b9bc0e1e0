"""CUDA graphs of training steps."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import dropout
from torch.nn.modules.module import register_module_forward_hook

from memtool.data import HostImages, Split, normalize
from memtool.device import Precision
from memtool.training import Augment, Optimizer, Task, TrainConfig, evaluate, fit, make_optimizer
from memtool.training import loop as loop_module
from memtool.training.graphs import WARMUP, GraphedStep
from memtool.training.loop import seed_all

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
pytestmark = [pytest.mark.gpu, cuda]


def task():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (100, 3, 16, 16), generator=generator, dtype=torch.uint8).cuda()
    labels = (torch.arange(100) % 4).cuda()
    return Task(
        *(images, labels, labels, images[:20], labels[:20], 4),
        normalize=lambda some: normalize(some, [0.5] * 3, [0.3] * 3),
        batch_size=50,
    )


def model():
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 4),
    )
    return nn.Sequential(*layers).cuda()


def trained(config, monkeypatch, graphs):
    if not graphs:
        monkeypatch.setattr(loop_module, "may_graph", lambda *arguments: False)
    network, images = model(), task()
    for _ in fit(network, make_optimizer(network, config), images, config):
        evaluate(network, images)
    monkeypatch.undo()
    return network.state_dict()


@pytest.mark.parametrize("optimizer", Optimizer)
@pytest.mark.parametrize("augment", Augment)
@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_replayed_steps_are_those_that_run_as_they_are(monkeypatch, optimizer, augment, clip_norm):
    """With a last batch of another size, and crops that change with every epoch."""
    config = TrainConfig(
        epochs=4, batch_size=16, optimizer=optimizer, augment=augment, clip_norm=clip_norm
    )
    expected, found = (trained(config, monkeypatch, graphs) for graphs in (False, True))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_bf16_is_replayed_as_it_runs(monkeypatch):
    """With weights that move by ten times the tolerance."""
    config = TrainConfig(epochs=4, batch_size=16, optimizer=Optimizer.sgd, learning_rate=3e-3)
    expected = trained(config, monkeypatch, graphs=False)
    types = set()

    def see(layer, images, result):
        if layer.training and isinstance(layer, nn.Linear):
            types.add(result.dtype)

    hook = register_module_forward_hook(see)
    try:
        bf16 = replace(config, precision=Precision.bf16)
        for graphs in (False, True):
            for name, value in trained(bf16, monkeypatch, graphs).items():
                torch.testing.assert_close(value, expected[name], rtol=1e-2, atol=2e-3, msg=name)
    finally:
        hook.remove()
    assert types == {torch.bfloat16}


def test_dropout_in_a_graph_is_drawn_anew_each_time_and_again_from_a_seed():
    ones, result = torch.ones(2, 1000, device="cuda").unbind()
    graphed = GraphedStep(lambda _: result.copy_(dropout(ones)), 1, result.device)

    def drawn():
        seed_all(5)
        for _ in range(WARMUP + 2):
            graphed(torch.zeros(1, dtype=torch.int64, device="cuda"))
            yield result.clone()

    list(drawn())  # until it is recorded
    first, again = list(drawn()), list(drawn())
    assert graphed._is_recorded
    for number, values in enumerate(first):
        assert 0.4 < (values == 0).float().mean() < 0.6
        assert torch.equal(values, again[number])
        assert not any(torch.equal(values, other) for other in first[:number])


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("graphs, on_host", [(False, False), (True, False), (False, True)])
def test_nothing_within_an_epoch_waits_for_the_device(monkeypatch, graphs, on_host):
    if not graphs:
        monkeypatch.setattr(loop_module, "may_graph", lambda *arguments: False)
    config = TrainConfig(epochs=3, batch_size=16, augment=Augment.crop_flip, clip_norm=1.0)
    network, images, steps = model(), task(), []
    if on_host:
        split = Split(images.images.cpu().numpy(), images.given.cpu().numpy())
        images = replace(images, images=HostImages([split], torch.device("cuda")))
    step = torch.optim.AdamW.step

    def checked(self, *arguments, **more):
        """From the second step of an epoch on, whatever waits is an error."""
        result = step(self, *arguments, **more)
        steps.append(1)
        if not torch.cuda.is_current_stream_capturing():
            torch.cuda.set_sync_debug_mode("error")
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", checked)
    try:
        for _ in fit(network, make_optimizer(network, config), images, config):
            torch.cuda.set_sync_debug_mode("default")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) >= 7  # three, one that is recorded, and the last one of each epoch


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node")
def test_a_model_that_looks_at_values_is_trained_as_it_is(caplog):
    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(768, 4)

        def forward(self, images):
            assert float(images.abs().sum()) > 0
            return self.fc(images.flatten(1))

    network, images = Looking().cuda(), task()
    config = TrainConfig(epochs=3, batch_size=16)
    before = network.fc.weight.clone()
    with caplog.at_level("INFO", "memtool"):
        assert list(fit(network, make_optimizer(network, config), images, config)) == [1, 2, 3]
    assert "no CUDA graph" in caplog.text
    assert not torch.equal(before, network.fc.weight)
