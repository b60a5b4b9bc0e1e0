"""Hyperparameters: batches and learning rates."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from memtool.training import Schedule, TrainConfig


@given(st.integers(1, 10_000), st.integers(1, 500))
def test_batches_are_full_but_for_the_last_which_is_never_a_single_one_left_over(examples, size):
    config = TrainConfig(batch_size=size)
    sizes = config.batch_sizes(examples)
    assert len(sizes) == config.steps_per_epoch(examples)
    assert sum(sizes) == examples
    assert set(sizes[:-1]) <= {size}
    assert 1 <= sizes[-1] <= size + 1
    assert sizes[-1] > 1 or examples == 1


def test_the_learning_rate_rises_then_falls_to_nearly_0():
    config = TrainConfig(learning_rate=2.0, warmup=0.25)
    rates = [config.rate(step, 8) for step in range(8)]
    assert rates == pytest.approx([1, 2, 2, 2 * 5 / 6, 2 * 4 / 6, 2 * 3 / 6, 2 * 2 / 6, 2 / 6])


@given(st.integers(1, 1000), st.floats(0, 1), st.sampled_from(Schedule), st.floats(1e-6, 10))
def test_the_learning_rate_has_its_peak_and_never_goes_above(steps, warmup, schedule, peak):
    config = TrainConfig(learning_rate=peak, warmup=warmup, schedule=schedule)
    rates = [config.rate(step, steps) for step in range(steps)]
    assert all(0 < rate <= peak for rate in rates)
    assert max(rates) == pytest.approx(peak)
    if schedule is Schedule.constant:
        assert rates[-1] == peak


PYTORCH = {
    Schedule.linear: lambda optimizer, n: lr_scheduler.LinearLR(optimizer, 1.0, 0.0, n),
    Schedule.cosine: lambda optimizer, n: lr_scheduler.CosineAnnealingLR(optimizer, n),
    Schedule.step: lambda optimizer, n: lr_scheduler.MultiStepLR(optimizer, [n // 2, 3 * n // 4]),
    Schedule.constant: lambda optimizer, n: lr_scheduler.ConstantLR(optimizer, 1.0, n),
}


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("rising", [0, 5])
def test_the_schedules_are_those_of_pytorch(schedule, rising):
    steps = 20 + rising
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    expected = PYTORCH[schedule](optimizer, 20)
    if rising:
        warmup = lr_scheduler.LinearLR(optimizer, 1 / rising, 1.0, rising - 1)
        expected = lr_scheduler.SequentialLR(optimizer, [warmup, expected], [rising])
    config = TrainConfig(learning_rate=0.3, warmup=rising / steps, schedule=schedule)
    for step in range(steps):
        assert config.rate(step, steps) == pytest.approx(expected.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        expected.step()


def test_the_last_epoch_is_always_evaluated():
    config = TrainConfig(epochs=7, evaluate_every=3)
    assert [epoch for epoch in range(1, 8) if config.evaluates(epoch)] == [3, 6, 7]
