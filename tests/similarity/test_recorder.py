"""What recorders of all kinds have in common."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from memtool import MemtoolError
from memtool.similarity import Estimator, even_batches
from memtool.similarity.feature_space import FeatureRecorder
from memtool.similarity.minibatch import MinibatchRecorder
from memtool.similarity.recorder import Visit, add_up, features, mean_of, varies
from memtool.similarity.tiles import TileRecorder

CPU = torch.device("cpu")
KINDS = ["minibatch", "tiles", "features"]


def recorder(kind, layers, batches, mine=None, capacity=None, device=CPU):
    n = batches[-1][1]
    if kind == "minibatch":
        return MinibatchRecorder(layers, device)
    if kind == "tiles":
        return TileRecorder(layers, device, batches, Estimator.unbiased, capacity or n)
    mine = range(len(batches)) if mine is None else mine
    return FeatureRecorder(layers, device, batches, Estimator.unbiased, mine)


def run(sums, visits, x: dict[str, Tensor], y: dict[str, Tensor]):
    for visit in visits:
        part = slice(visit.start, visit.stop)
        with sums.x.batch(visit) as a, sums.y.batch(visit) as b:
            for batch, layers in ((a, x), (b, y)):
                for name, layer in layers.items():
                    batch.record(name, layer[part].clone())
        sums.add(a, b)


def networks(n=53):
    generator = torch.Generator().manual_seed(0)
    x = {"a": torch.randn(n, 9, generator=generator), "b": torch.randn(n, 40, generator=generator)}
    y = {"c": x["a"].square(), "d": x["b"] + 3}
    return x, y


PAIRS = [(0, 0), (0, 1), (1, 1)]


def sums_of(kind, visits, x, y, batches, **options):
    sides = [recorder(kind, list(side), batches, **options) for side in (x, y)]
    sums = sides[0].sums_with(sides[1], PAIRS)
    run(sums, visits, x, y)
    return sums


def states(sums):
    return [sums.state, sums.x.state, sums.y.state]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 1e-22, 1e19])
def test_sums_over_processes_are_those_of_one(kind, scale):
    """Without torchrun: two processes' states, added up by hand. The first batch that the second
    process sees is so small that it is scaled up; and each process finds a scale of its own, as the
    batch that all see does not vary."""
    x, y = networks()
    batches = even_batches(53, 6, multiple=3)
    for start, stop in batches[1::2]:
        x["b"][start:stop] *= 1e-12
    if scale != 1:
        x["a"] *= scale
        x["a"][slice(*batches[0])] = 0
    blocks = [range(0, 5), range(5, len(batches))] if kind == "tiles" else [range(len(batches))]
    visits = [
        [Visit(b, *batches[b], block) for b in range(block.start, len(batches))] for block in blocks
    ]
    alone = sums_of(kind, [visit for part in visits for visit in part], x, y, batches)
    parts = visits
    if kind != "tiles":
        parts = [[v for v in visits[0] if v.batch % 2 == rank] for rank in (0, 1)]
    shared = []
    for rank, part in enumerate(parts):
        origin = [] if kind == "minibatch" or not rank else [Visit(0, *batches[0], range(0))]
        mine = {} if kind != "features" else {"mine": [visit.batch for visit in part]}
        shared.append(sums_of(kind, [*origin, *part], x, y, batches, **mine))
    first, second = map(states, shared)
    for state, other in zip(first, second, strict=True):
        remaining = iter(other.values())
        add_up(state, lambda tensor, remaining=remaining: tensor.add_(next(remaining)))
    for found, expected in zip(shared[0].hsic().cka(), alone.hsic().cka(), strict=True):
        assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_agree_with_each_other_on_one_batch(kind):
    x, y = networks()
    visits = [Visit(0, 0, 53, range(1))]
    found = sums_of(kind, visits, x, y, [(0, 53)]).hsic().cka()[0]
    expected = sums_of("tiles", visits, x, y, [(0, 53)]).hsic().cka()[0]
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


class Copies(TorchDispatchMode):
    """Counts the tensors that are made of Python's numbers: a GPU is waited for to copy each."""

    def __init__(self):
        super().__init__()
        self.made = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.made += func is torch.ops.aten.lift_fresh.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 1e-22])
def test_no_numbers_are_copied_to_the_device_for_each_batch(kind, scale):
    x, y = ({name: scale * layer for name, layer in side.items()} for side in networks(60))
    batches = [(0, 20), (20, 40), (40, 60)]
    first, *later = (Visit(i, *batch, range(3)) for i, batch in enumerate(batches))
    sums = sums_of(kind, [first], x, y, batches)
    with Copies() as copies:
        run(sums, later, x, y)
    assert copies.made == 0
    assert not sums.hsic().cka()[0].isnan().any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 1e-22])
def test_no_batch_but_the_first_waits_for_a_gpu(kind, scale):
    x, y = ({name: scale * layer for name, layer in side.items()} for side in networks(60))
    batches = [(0, 20), (20, 40), (40, 60)]
    first, *later = visits = [Visit(i, *batch, range(3)) for i, batch in enumerate(batches)]
    expected = sums_of(kind, visits, x, y, batches).hsic().cka()[0]
    x, y = ({name: layer.cuda() for name, layer in side.items()} for side in (x, y))
    sums = sums_of(kind, [first], x, y, batches, device=torch.device("cuda"))
    try:
        torch.cuda.set_sync_debug_mode("error")
        run(sums, later, x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sums.hsic().cka()[0].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_is_not_called_for_a_batch_is_an_error(kind):
    """As in a network that runs one branch or the other."""
    batches = [(0, 10), (10, 20)]
    one = recorder(kind, ["a", "b"], batches)
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    with one.batch(Visit(0, 0, 10, range(2))) as batch:
        batch.record("a", x)
        batch.record("b", x)
    with pytest.raises(MemtoolError, match="layer 'b' is not called for every batch"):
        with one.batch(Visit(1, 10, 20, range(2))) as batch:
            batch.record("a", x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_with_another_number_of_rows_in_one_batch_has_no_cka(kind):
    x, y = networks()
    batches = [(0, 20), (20, 53)]
    visits = [Visit(i, *batch, range(2)) for i, batch in enumerate(batches)]
    expected = sums_of(kind, visits, x, y, batches).hsic().cka()[0]
    sides = [recorder(kind, list(side), batches) for side in (x, y)]
    sums = sides[0].sums_with(sides[1], PAIRS)
    for visit in visits:
        part = slice(visit.start, visit.stop)
        with sides[0].batch(visit) as a, sides[1].batch(visit) as b:
            a.record("a", x["a"][part])
            a.record("b", x["b"][part][: 40 if visit.batch == 0 else 7])
            for name in y:
                b.record(name, y[name][part])
        sums.add(a, b)
    found = sums.hsic().cka()[0]
    assert found[:2].tolist() == expected[:2].tolist()  # those of "a"
    assert found[2].isnan() and sides[0].unaligned().tolist() == [False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_one_feature_that_varies_beside_a_hundred_thousand_that_do_not(kind):
    """Whether a layer is constant is judged feature by feature."""
    constant = torch.full((20, 100_001), 1000.0)
    for place in (0, 70, 3000, 100_000):
        x = constant.clone()
        x[:, place] = torch.linspace(1, 1 + 1e-3, 20)
        one = recorder(kind, ["all", "but one"], [(0, 20)])
        with one.batch(Visit(0, 0, 20, range(1))) as batch:
            batch.record("all", constant)
            batch.record("but one", x)
        assert one.constant().tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.1, -1e9, "min", "max"])
def test_the_mean_of_a_constant_feature_is_its_value(dtype, value):
    limits = torch.finfo(dtype)
    x = torch.full((53, 3), limits.min, dtype=dtype)
    if isinstance(value, float):
        x.fill_(max(value, limits.min))
    elif value == "max":
        x.fill_(limits.max)
    assert torch.equal(mean_of(x), x[0].to(mean_of(x)))
    assert mean_of(x[:0]).shape == (3,)
    x[7, 1] = math.nan
    assert mean_of(x).isnan().tolist() == [False, True, False]


def test_what_varies():
    mean = torch.tensor([0.0, 1000.0])
    assert not varies(torch.zeros(3, 2), mean)
    assert not varies(torch.tensor([[0.0, 1e-4], [0.0, -1e-4]]), mean)  # rounding of 1000
    assert varies(torch.tensor([[1e-30, 0.0], [0.0, 0.0]]), mean)
    assert varies(torch.tensor([[0.0, 0.1], [0.0, 0.0]]), mean)
    assert varies(torch.tensor([[0.0, math.nan], [0.0, 0.0]]), mean)


def test_features_of_activations():
    x = torch.randn(2, 3, 4, 5)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(features(x), x.flatten(1))
    assert torch.equal(features(last), x.flatten(1))
    assert features(last, channels_last=True).data_ptr() == last.data_ptr()
    assert features(torch.tensor([[1, 2]], dtype=torch.int16)).dtype == torch.float32
    assert features(torch.tensor([[1, 2]])).dtype == torch.float64
    assert features(torch.randn(2, 3, dtype=torch.complex64)).shape == (2, 6)
    assert features(torch.randn(2)).shape == (2, 1)
