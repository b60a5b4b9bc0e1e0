"""Plans of comparisons: what fits, and who does what."""

from dataclasses import replace

import pytest

from memtool.checkpoints.checkpoint import Checkpoint
from memtool.device import Processes
from memtool.similarity.pairs import Form, selections
from memtool.similarity.plan import Settings, plan
from memtool.similarity.settings import Estimator, Kernel, Pairs


def selected(runs, *patterns):
    opened = [Checkpoint.open(path) for path in (runs.noisy, runs.noisy, runs.clean)]
    *others, reference = selections(opened, patterns or ["all"])
    return others, reference


def test_auto_is_exact_while_one_pass_fits(runs):
    others, reference = selected(runs)
    settings = Settings()
    exact = plan(others, reference, 500, settings)
    assert exact.estimator is Estimator.exact and exact.passes == 1 and len(exact.groups) == 1
    minibatch = plan(others, reference, 500, replace(settings, memory=exact.bytes - 1))
    assert minibatch.estimator is Estimator.minibatch
    more = plan(others, reference, 10**6, settings)
    assert more.estimator is Estimator.minibatch and more.bytes < exact.bytes * 2
    assert more.bytes == plan(others, reference, 10**7, settings).bytes


def test_the_plan_keeps_within_its_budget(runs):
    others, reference = selected(runs)
    settings = Settings(estimator=Estimator.exact)
    passes = []
    for memory in (2**33, 2**29, 2**28, 2**27):
        made = plan(others, reference, 10_000, replace(settings, memory=memory))
        assert made.bytes <= memory
        passes.append(made.passes * len(made.groups))
    assert passes == sorted(passes) and passes[0] == 1 and passes[-1] > 2


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("memory", [2**33, 2**27])
def test_processes_share_all_tiles(runs, processes, memory):
    others, reference = selected(runs)
    settings = Settings(estimator=Estimator.exact, kernel=Kernel.rbf, memory=memory)
    made = plan(others, reference, 10_000, settings, processes)
    tiles, new = [], []
    for rank in range(processes):
        steps = made.steps(Processes(rank, processes))
        assert steps[0].batch == 0  # every process takes its origin there
        kept: list[int] = []
        for step in steps:
            kept = [] if step.first else kept
            kept += [step.batch] if step.keep else []
            tiles += [(one, step.batch) for one in kept]
            new += [step.batch] if step.new else []
    count = len(made.batches)
    assert sorted(tiles) == [(i, j) for i in range(count) for j in range(i, count)]
    assert sorted(new) == list(range(count))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_the_batches_of_feature_space(runs, processes):
    others, reference = selected(runs, "block6", "fc")
    settings = Settings(Pairs.all, Estimator.exact)
    made = plan(others, reference, 10_000, settings, processes)
    assert not made.blocks and made.passes == 1
    new = []
    for rank in range(processes):
        steps = made.steps(Processes(rank, processes))
        assert steps[0].batch == 0
        new += [step.batch for step in steps if step.new]
    assert sorted(new) == list(range(len(made.batches)))


def test_layers_narrower_than_examples_are_compared_in_feature_space(runs):
    def narrow(n, pairs, **changes):
        others, reference = selected(runs, "block?", "fc")
        settings = replace(Settings(pairs, Estimator.exact), **changes)
        made = plan(others, reference, n, settings)
        return made.groups[0][0].tensors(Form.features)

    every = ["block1", "block2", "block3", "block4", "block5", "block6", "fc"]
    assert narrow(500, Pairs.same) == ["block4", "block5", "block6", "fc"]
    assert narrow(10_000, Pairs.same) == narrow(10_000, Pairs.all) == every
    assert narrow(500, Pairs.all) == []
    assert narrow(10_000, Pairs.same, kernel=Kernel.rbf) == []
    assert narrow(10_000, Pairs.same, estimator=Estimator.minibatch) == []
