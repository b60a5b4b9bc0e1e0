"""CKA of tensors, against the formulas as they are published, in float64."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from memtool import MemtoolError
from memtool.similarity import CKA, Estimator, cka

ESTIMATORS = ["exact", "unbiased", "minibatch"]


def double(x):
    return x.double().flatten(1) if x.ndim > 1 else x.double()[:, None]


def linear(x):
    return double(x) @ double(x).T


def rbf(x, bandwidth=1.0):
    distances = torch.cdist(double(x), double(x), compute_mode="donot_use_mm_for_euclid_dist")
    n = len(x)
    median = distances[~torch.eye(n, dtype=torch.bool)].median()
    return torch.exp(-(distances**2) / (2 * (bandwidth * median) ** 2))


def biased_hsic(k, l):  # noqa: E741
    """trace(K H L H) / (n - 1)^2."""
    n = len(k)
    h = torch.eye(n, dtype=torch.float64) - 1 / n
    return (k @ h @ l @ h).trace() / (n - 1) ** 2


def unbiased_hsic(k, l):  # noqa: E741
    """Song et al. 2012, Eq. 5: of Gram matrices that are not centered."""
    n = len(k)
    one = torch.ones(n, dtype=torch.float64)
    k, l = k - k.diag().diag(), l - l.diag().diag()  # noqa: E741
    middle = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return ((k @ l).trace() + middle - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))


def reference(x, y, estimator, sizes=None, gram=linear):
    """CKA by the formulas; of batches of `sizes` for minibatch."""
    hsic = biased_hsic if estimator == "exact" else unbiased_hsic
    sizes = sizes if estimator == "minibatch" and sizes else [len(x)]
    parts = list(zip(x.split(sizes), y.split(sizes), strict=True))

    def total(a, b):
        return sum(len(pair[0]) * hsic(gram(pair[a]), gram(pair[b])) for pair in parts)

    return (total(0, 1) / (total(0, 0) * total(1, 1)).sqrt()).item()


def pair(n, p=12, q=7, seed=0):
    """Two sets of features that have something in common."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, p, generator=generator)
    y = torch.randn(n, q, generator=generator)
    common = min(p, q)
    y[:, :common] += x[:, :common]
    return x, y


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [4, 5, 33, 131])
def test_equals_the_published_formula(estimator, n):
    x, y = pair(n, 300, 40)
    value = cka(x, y, estimator)
    assert value.dtype == torch.float64 and value.shape == ()
    assert value.item() == pytest.approx(reference(x, y, estimator), abs=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("offset", [100, 1e4])
@pytest.mark.parametrize("p", [3, 300])
def test_rbf_of_groups_that_are_near_within_and_far_between(estimator, offset, p):
    # Inner products, about offset^2, leave no digit in float32 of a distance of 1.
    x, y = pair(90, p, p)
    x[::5] += offset
    expected = reference(x, y, estimator, gram=rbf)
    assert cka(x, y, estimator, "rbf").item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("bandwidth", [0.5, 1.0])
def test_rbf_kernel(estimator, bandwidth):
    x, y = pair(60)
    expected = reference(x, y, estimator, gram=lambda z: rbf(z, bandwidth))
    found = cka(x, y, estimator, "rbf", bandwidth)
    assert found.item() == pytest.approx(expected, abs=1e-5)
    assert abs(found - cka(x, y, estimator)) > 1e-3


@settings(deadline=None, max_examples=60)
@given(
    estimator=st.sampled_from(ESTIMATORS),
    sizes=st.lists(st.integers(4, 12), min_size=2, max_size=5),
    shape=st.sampled_from([(), (1,), (30,), (3, 4), (2, 3, 3)]),
    scale=st.sampled_from([1e-30, 1e-9, 1.0, 1e9, 1e30]),
    offset=st.sampled_from([0.0, 1.0, 100.0]),
    seed=st.integers(0, 3),
)
def test_any_shape_scale_offset_and_batches(estimator, sizes, shape, scale, offset, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), *shape, generator=generator)
    y = torch.randn(sum(sizes), 4, generator=generator) + x.reshape(len(x), -1)[:, :1] * 2
    x = (x + offset) * scale
    expected = reference(x, y, estimator, sizes)
    # With few examples an unbiased self-HSIC may be as good as zero, or negative.
    assume(math.isfinite(expected) and abs(expected) < 10)
    stream = CKA(estimator)
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        stream.update([a], [b])
    assert stream.compute().item() == pytest.approx(expected, abs=2e-4, rel=2e-3)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("width", [5, 120])  # in feature space, and by Gram matrices
@pytest.mark.parametrize("first", [0.0, 0.3, 1e-9])
def test_a_first_batch_that_does_not_vary_sets_no_scale(estimator, width, first):
    """Nor does one that varies far less than the others."""
    x, y = pair(48, width, 9)
    for scale in (1e-30, 1e-22, 1e5, 1e19):
        varied = x * scale
        varied[:16] = varied[:16] * first if first == 1e-9 else first
        exact = varied.double() / scale
        if estimator == "minibatch" and first == 0.3:  # each batch is centered by itself
            exact[:16] = 0
        expected = reference(exact, y, estimator, [16] * 3)
        stream = CKA(estimator)
        for a, b in zip(varied.split(16), y.split(16), strict=True):
            stream.update([a], [b])
        assert stream.compute().item() == pytest.approx(expected, abs=1e-4), scale


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("width", [5, 120])
@pytest.mark.parametrize("scale", [1e-290, 1e-200, 1e-90, 1e90, 1e200])
def test_float64_at_any_scale(estimator, width, scale):
    x, y = (z.double() for z in pair(48, width, 9))
    expected = reference(x, y, estimator, [16] * 3)
    found = cka(x * scale, y / scale, estimator, batch_size=16)
    assert found.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize(("first", "later"), [(1, 1e20), (1e-30, 1), (1e-9, 1e12), (1e20, 1)])
def test_batches_of_very_different_size(estimator, kernel, first, later):
    """Those far larger than the first may lie beyond float32, but in float64, and in one batch."""
    x, y = pair(60, 120, 9)
    x[:20] *= first
    x[20:] *= later
    wide = x.double(), y.double()
    for features, size in ((x, 20), (x.double(), 20), (x, 60)):
        found = cka(features, y, estimator, kernel, batch_size=size).item()
        expected = reference(*wide, estimator, [size] * (60 // size))
        if kernel == "rbf":
            expected = cka(*wide, estimator, kernel, batch_size=size).item()
        may_be_beyond = features is x and size == 20 and later > 1e9 * first
        assert found == pytest.approx(expected, abs=1e-4) or may_be_beyond and math.isnan(found)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_invariances(estimator, kernel):
    x, y = pair(80)
    value = cka(x, y, estimator, kernel)
    rotation = torch.linalg.qr(torch.randn(12, 12))[0]
    for same in (x @ rotation, 1e-6 * x, 1e-37 * x, 1e36 * x, x + 5, x.flip(1)):
        assert cka(same, y, estimator, kernel).item() == pytest.approx(value.item(), abs=1e-5)
    far_apart = cka(1e-30 * x, 1e30 * y, estimator, kernel)
    assert far_apart.item() == pytest.approx(value.item(), abs=1e-5)
    assert cka(y, x, estimator, kernel).item() == pytest.approx(value.item(), abs=1e-12)
    assert cka(x, x, estimator, kernel).item() == pytest.approx(1, abs=1e-12)
    general = x @ torch.diag(torch.arange(1.0, 13.0))
    assert abs(cka(general, y, estimator, kernel) - value) > 0.01


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("batch_size", [64, 300])
def test_an_offset_changes_nothing(estimator, batch_size):
    x, y = pair(256, 50, 30)
    value = cka(x, y, estimator, batch_size=batch_size)
    shifted = cka(x + 10_000, y - 10_000, estimator, batch_size=batch_size)
    assert shifted.item() == pytest.approx(value.item(), abs=1e-4)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_sigma_does_not_depend_on_the_size_of_batches(estimator):
    """That of a fixed sample: of the examples, not of the batches that they come in."""
    x, y = pair(60)
    sigmas = []
    for size in (60, 20, 10):
        stream = CKA(estimator, "rbf")
        for a, b in zip(x.split(size), y.split(size), strict=True):
            stream.update([a], [b])
        if estimator == "minibatch":
            sigmas.append(stream._sums_of_kept().x.sigma.item())
        else:  # the values themselves do not depend on it either
            sigmas.append(stream.compute().item())
    assert sigmas == pytest.approx([sigmas[0]] * 3, abs=1e-6)


def permuted_cka(x, y, estimator, gram, permutations):
    """The mean CKA, in float64, of x with y in each of the orders (m, n)."""
    n = len(x)
    h = torch.eye(n, dtype=torch.float64) - 1 / n
    k, l = h @ gram(x) @ h, h @ gram(y) @ h  # noqa: E741
    shuffled = l[permutations[:, :, None], permutations[:, None, :]]
    traces = (k * shuffled).sum((1, 2))
    if estimator == "exact":
        return (traces.mean() / (k.norm() * l.norm())).item()
    a, b = k - k.diag().diag(), l - l.diag().diag()
    shuffled = b[permutations[:, :, None], permutations[:, None, :]]
    middle = a.sum() * b.sum() / ((n - 1) * (n - 2))
    values = (a * shuffled).sum((1, 2)) + middle
    values -= 2 / (n - 2) * torch.einsum("ij,pjk->p", a, shuffled)
    return (
        values.mean() / (n * (n - 3) * (unbiased_hsic(k, k) * unbiased_hsic(l, l)).sqrt())
    ).item()


NULL_GRAMS = [("linear", linear), ("rbf", rbf)]


@pytest.mark.parametrize(("kernel", "gram"), NULL_GRAMS)
@pytest.mark.parametrize("estimator", ["exact", "unbiased"])
def test_the_null_is_the_mean_over_all_permutations(kernel, gram, estimator):
    x, y = pair(6, 3, 2)
    every = torch.tensor(list(itertools.permutations(range(6))))
    expected = permuted_cka(x, y, estimator, gram, every)
    stream = CKA(estimator, kernel)
    stream.update([x], [y])
    assert stream.null().item() == pytest.approx(expected, abs=1e-6)
    assert (expected > 0.1) if estimator == "exact" else abs(expected) < 1e-12


@pytest.mark.parametrize("is_cheaper", [True, False], ids=["features", "grams"])
@pytest.mark.parametrize(("kernel", "gram"), NULL_GRAMS)
def test_the_null_of_two_thousand_permutations(kernel, gram, is_cheaper, monkeypatch):
    monkeypatch.setattr("memtool.similarity.streaming.is_cheaper", lambda *_: is_cheaper)
    x, y = (side * 3 + 100 for side in pair(24))
    generator = torch.Generator().manual_seed(0)
    permutations = torch.rand(2000, 24, generator=generator).argsort(1)
    stream = CKA("exact", kernel)
    for a, b in zip(x.split(7), y.split(7), strict=True):
        stream.update([a, x[: len(a), :1] * 0], [b])
    value, constant = stream.null().flatten().tolist()
    assert value == pytest.approx(permuted_cka(x, y, "exact", gram, permutations), rel=0.01)
    assert value < stream.compute()[0, 0] - 0.05
    assert math.isnan(constant)


@pytest.mark.parametrize("is_cheaper", [True, False], ids=["features", "grams"])
def test_the_null_of_another_formula_follows_from_it(is_cheaper, monkeypatch):
    monkeypatch.setattr("memtool.similarity.streaming.is_cheaper", lambda *_: is_cheaper)
    monkeypatch.setattr("memtool.similarity.hsic._formula", lambda _, s, d, t, n: s / (n * (n - 1)))
    x, y = pair(6, 3, 2)
    h = torch.eye(6, dtype=torch.float64) - 1 / 6
    a, b = ((h @ linear(side) @ h).fill_diagonal_(0) for side in (x, y))
    orders = torch.tensor(list(itertools.permutations(range(6))))
    shuffled = b[orders[:, :, None], orders[:, None, :]]
    expected = (a * shuffled).sum((1, 2)).mean() / (a.norm() * b.norm())
    stream = CKA("unbiased")
    stream.update([x], [y])
    assert stream.null().item() == pytest.approx(expected.item(), abs=1e-6)
    assert expected > 0.1


def test_minibatch_has_a_null_of_0():
    stream = CKA("minibatch")
    stream.update(*([side] for side in pair(24)))
    assert stream.null().item() == 0


def test_minibatch_with_one_batch_is_unbiased():
    x, y = pair(50)
    one = cka(x, y, "minibatch", batch_size=50).item()
    assert one == pytest.approx(cka(x, y, "unbiased").item(), abs=1e-7)
    assert cka(x, y, "minibatch", batch_size=10).item() != pytest.approx(one, abs=1e-4)


def test_gram_form_is_feature_form():
    """||Yc^T Xc||^2 / (||Xc^T Xc|| ||Yc^T Yc||), Kornblith et al. 2019, Eq. 5."""
    x, y = pair(70)
    a, b = double(x) - double(x).mean(0), double(y) - double(y).mean(0)
    expected = (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert cka(x, y).item() == pytest.approx(expected.item(), abs=1e-6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memtool.similarity.streaming.is_cheaper", lambda *_: False)
        assert cka(x, y).item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("estimator", ["exact", "unbiased"])
def test_tiles_make_up_the_whole(estimator):
    x, y = pair(97, 40, 20)
    whole = cka(x, y, estimator).item()
    for size in (96, 40, 13, 1):
        stream = CKA(estimator)
        for a, b in zip(x.split(size), y.split(size), strict=True):
            stream.update([a], [b])
        assert stream.compute().item() == pytest.approx(whole, abs=1e-6)


def test_batches_count_by_their_sizes():
    x, y = pair(47)
    stream = CKA("minibatch")
    for a, b in zip(x.split([20, 20, 7]), y.split([20, 20, 7]), strict=True):
        stream.update([a], [b])
    expected = reference(x, y, "minibatch", [20, 20, 7])
    assert stream.compute().item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_batch_too_small_for_unbiased_hsic_is_refused(size):
    x, y = pair(size)
    stream = CKA("minibatch")
    with pytest.raises(MemtoolError, match=f"4 examples or more in each batch, not {size}"):
        stream.update([x], [y])
    CKA("exact").update([x], [y])


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_empty_batch_changes_nothing(estimator, kernel):
    x, y = pair(20)
    without, among = CKA(estimator, kernel), CKA(estimator, kernel)
    for size in (0, 12, 0, 8, 0):
        part = slice(among.n, among.n + size)
        among.update([x[part]], [y[part]])
        if size:
            without.update([x[part]], [y[part]])
    assert among.n == 20 and among.compute() == without.compute()
    assert among.standard_error() == without.standard_error()


def test_each_layer_with_each():
    x, y = pair(60)
    stream = CKA("minibatch")
    for a, b in zip(x.split(20), y.split(20), strict=True):
        stream.update([a, b, a.square()], [b, a])
    matrix = stream.compute()
    expected = [
        [reference(one, other, "minibatch", [20, 20, 20]) for other in (y, x)]
        for one in (x, y, x.square())
    ]
    assert torch.allclose(matrix, torch.tensor(expected, dtype=torch.float64), atol=1e-5)


@pytest.mark.parametrize("look", [CKA.compute, CKA.null, CKA.standard_error])
def test_a_look_at_what_there_is_so_far_changes_nothing(look):
    x, y = pair(80)
    y = y * torch.linspace(1, 9, 80)[:, None]  # sigma depends on the examples
    streams = [CKA("minibatch", "rbf") for _ in range(2)]
    for part in torch.arange(80).split(20):
        for stream in streams:
            stream.update([x[part]], [y[part]])
        look(streams[0])
    assert streams[0].compute().item() == streams[1].compute().item()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("constant", [0.0, 0.1, -1234.567, 1e-12])
def test_a_constant_layer_has_no_cka(estimator, kernel, constant):
    x, _ = pair(101, 33)
    dead = torch.full((101, 64), constant)
    stream = CKA(estimator, kernel)
    for a, b in zip(x.split(37), dead.split(37), strict=True):
        stream.update([a, b], [a])
    alive, none = stream.compute().flatten().tolist()
    assert alive == pytest.approx(1, abs=1e-6)
    assert math.isnan(none)


@pytest.mark.parametrize("is_cheaper", [True, False], ids=["features", "grams"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("mask", [-1e9, 1e15, torch.finfo(torch.float32).min])
def test_features_that_are_masked_for_all_examples_do_not_count(
    mask, kernel, estimator, is_cheaper, monkeypatch
):
    monkeypatch.setattr("memtool.similarity.streaming.is_cheaper", lambda *_: is_cheaper)
    x, y = pair(90, 20, 20)
    masked = torch.full((2, 90, 300), mask)
    for side, features in zip(masked, (x, y), strict=True):
        side[:, ::15] = features
    expected = cka(x, y, estimator, kernel, batch_size=30)
    found = cka(*masked, estimator, kernel, batch_size=30)
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)


def without_own_hsic():
    """Layers whose unbiased HSIC with themselves is 0, by name."""
    generator = torch.Generator().manual_seed(0)
    one = torch.zeros(200, 6)
    one[50] = torch.rand(6, generator=generator)
    rotation = torch.linalg.qr(torch.randn(40, 40, generator=generator))[0]
    lengths = 1 + torch.rand(40, generator=generator)
    return {
        "one example": one,
        "one example, far away": 1e-12 * one + 3e-12,
        "one example of a single feature": one[:, :1],
        "all at one distance": torch.eye(30),
        "at right angles": lengths[:, None] * rotation,
    }


@pytest.mark.parametrize("is_cheaper", [True, False], ids=["features", "grams"])
@pytest.mark.parametrize("estimator", ["unbiased", "minibatch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", without_own_hsic())
def test_rounding_of_an_hsic_of_0_gives_no_cka(name, dtype, estimator, is_cheaper, monkeypatch):
    monkeypatch.setattr("memtool.similarity.streaming.is_cheaper", lambda *_: is_cheaper)
    x = without_own_hsic()[name].to(dtype)
    other = torch.randn(len(x), 5, generator=torch.Generator().manual_seed(1))
    for size in (len(x), len(x) // 2):
        stream = CKA(estimator)
        for a, b in zip(x.split(size), other.split(size), strict=True):
            stream.update([a, b], [2.7 * a, b])
        for found in (stream.compute(), stream.null()):
            assert found.isnan().tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("estimator", ["unbiased", "minibatch"])
@pytest.mark.parametrize(
    ("n", "width", "times"), [(10, 3000, 1), (4, 50_000, 1), (300, 400, 10), (300, 400, 1000)]
)
def test_a_small_hsic_of_a_layer_with_itself_is_no_rounding(n, width, times, estimator):
    """Of few examples with many features, or where one is far larger than the others."""
    x, y = pair(n, width, width)
    x[1] *= times
    expected = reference(x, y, estimator)
    assert cka(x, y, estimator).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("estimator", ["unbiased", "minibatch"])
@pytest.mark.parametrize("bandwidth", [0.2, 20.0])
def test_narrow_and_broad_kernels_have_a_cka(bandwidth, estimator):
    x, y = pair(150, 3, 3)
    expected = reference(x, y, "unbiased", gram=lambda z: rbf(z, bandwidth))
    found = cka(x, y, estimator, "rbf", bandwidth)
    assert found.item() == pytest.approx(expected, abs=1e-3)


def test_small_differences_on_a_large_offset_are_no_constant():
    x, y = pair(64)
    assert cka(x.double() * 1e-9 + 1, y.double()).item() == pytest.approx(
        reference(x, y, "exact"), abs=1e-5
    )


@pytest.mark.parametrize("is_cheaper", [True, False], ids=["features", "grams"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("unit", [1.0, 2.0**-70, 2.0**40])
def test_batches_that_vary_less_than_others_on_a_large_offset_count(
    unit, kernel, estimator, is_cheaper, monkeypatch
):
    """By no more than rounding can make of a constant, each for itself."""
    monkeypatch.setattr("memtool.similarity.streaming.is_cheaper", lambda *_: is_cheaper)
    common = torch.randn(60, 1, generator=torch.Generator().manual_seed(0)).clamp(-1.5, 1.5)
    x = 1e5 + 0.2 * common.expand(-1, 90)
    x[20:40, 0] += 0.4 * (-1) ** torch.arange(20)
    y = pair(60)[1] + common
    gram = linear if kernel == "linear" else rbf
    expected = reference(x.double() - 1e5, y, estimator, [20] * 3, gram)
    if kernel == "rbf" and estimator == "minibatch":  # sigma is that of all examples
        expected = cka(x.double() - 1e5, y.double(), estimator, kernel, batch_size=20).item()
    found = cka(x * unit, y, estimator, kernel, batch_size=20)
    assert found.item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_a_layer_that_differs_by_rounding_alone_has_no_cka(estimator, kernel):
    x, _ = pair(60)
    rounded = 1e5 + 0.05 * x.clamp(-2, 2)
    assert len(rounded.unique()) > 9
    assert cka(rounded, x, estimator, kernel, batch_size=20).isnan()


@pytest.mark.parametrize("estimator", ["exact", "unbiased"])
def test_standard_error_leaves_out_batches_one_at_a_time(estimator):
    x, y = pair(55)
    parts = list(torch.arange(55).split(11))
    stream = CKA(estimator)
    for part in parts:
        stream.update([x[part]], [y[part]])
    left_out = []
    for part in parts:
        rest = torch.ones(55, dtype=torch.bool)
        rest[part] = False
        left_out.append(reference(x[rest], y[rest], estimator))
    expected = torch.tensor(left_out).std(correction=0) * math.sqrt(len(parts) - 1)
    assert stream.standard_error().item() == pytest.approx(expected.item(), rel=1e-3)


def test_standard_error_of_minibatch():
    x, y = pair(60)
    stream = CKA("minibatch")
    for a, b in zip(x.split(12), y.split(12), strict=True):
        stream.update([a], [b])
    left_out = []
    for skipped in range(5):
        rest = [torch.cat([p for i, p in enumerate(z.split(12)) if i != skipped]) for z in (x, y)]
        left_out.append(reference(*rest, "minibatch", [12] * 4))
    expected = torch.tensor(left_out).std(correction=0) * 2
    assert stream.standard_error().item() == pytest.approx(expected.item(), rel=1e-3)


def test_standard_error_says_how_far_estimates_scatter():
    """Of 40 sets of examples from one population."""
    found = []
    for seed in range(40):
        x, y = pair(200, seed=seed)
        stream = CKA("minibatch")
        for a, b in zip(x.split(20), y.split(20), strict=True):
            stream.update([a], [b])
        found.append((stream.compute().item(), stream.standard_error().item()))
    values, errors = torch.tensor(found).T
    assert 0.6 < errors.mean() / values.std() < 1.6


def test_one_batch_has_no_standard_error():
    stream = CKA("exact")
    stream.update([pair(20)[0]], [pair(20)[1]])
    assert math.isnan(stream.standard_error().item())


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_of_the_features(estimator, dtype):
    x, y = (z.to(dtype) for z in pair(64, 500, 100))
    found = cka(x, y, estimator).item()
    assert found == pytest.approx(
        reference(x, y, estimator), abs=1e-12 if dtype == torch.float64 else 1e-5
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint32, np.uint64])
def test_whole_numbers_keep_their_small_differences(kind, kernel, estimator):
    x, y = pair(24)
    small = (20 * x).round().long()
    large = (small + 2**30 + 1).numpy().astype(kind)
    expected = cka(small, y, estimator, kernel).item()
    assert cka(large, y, estimator, kernel).item() == pytest.approx(expected, abs=1e-6)


def by_channel(x, zero_points):
    """x (n, p), quantized in steps of its own in each column."""
    steps = torch.linspace(0.05, 0.1, x.shape[1])
    return torch.quantize_per_channel(x, steps, zero_points, 1, torch.quint8)


@pytest.mark.filterwarnings("ignore:.*quantize")
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    "stored",
    [
        lambda x: x.to(torch.float8_e4m3fn),
        lambda x: x.to(torch.float8_e5m2),
        lambda x: torch.quantize_per_tensor(x, 0.05, 3, torch.qint8),
        lambda x: by_channel(x, torch.zeros(x.shape[1], dtype=torch.long)),
        lambda x: by_channel(x, torch.full(x.shape[1:], 0.5)),
    ],
    ids=["e4m3", "e5m2", "qint8", "by channel", "by channel, with zeros between"],
)
def test_types_without_arithmetic_are_those_of_their_values(stored, estimator):
    x, y = pair(24)
    kept = stored(x)
    values = kept.dequantize() if kept.is_quantized else kept.float()
    assert cka(kept, y, estimator).item() == pytest.approx(cka(values, y, estimator).item())
    stream = CKA(estimator)
    stream.update([kept], [y])
    assert stream.compute().item() == pytest.approx(cka(values, y, estimator).item())


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_a_batch_that_ends_in_an_error_does_not_count(estimator, kernel):
    x, y = pair(24)
    stream = CKA(estimator, kernel)
    bits = torch.zeros(8, 7, dtype=torch.float4_e2m1fn_x2)
    for bad in ([bits], [torch.ones(7, 7)], [bits, bits]):
        with pytest.raises(MemtoolError):
            stream.update([x[:8]], bad)
        assert stream.n == 0
    for a, b in zip(x.split(8), y.split(8), strict=True):
        stream.update([a], [b])
        with pytest.raises(MemtoolError, match="cannot be read as numbers .Tensor"):
            stream.update([a], [bits])
    expected = cka(x, y, estimator, kernel, batch_size=8)
    assert stream.n == 24 and stream.compute().item() == pytest.approx(expected.item())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_layers_of_different_precision(estimator):
    x, y = pair(64, 500, 100)
    layers = [x, x.half(), x.double(), x.bfloat16()]
    stream = CKA(estimator)
    stream.update(layers, [y.double(), y])
    for layer, found in zip(layers, stream.compute(), strict=True):
        expected = reference(layer, y, estimator)
        assert found.tolist() == pytest.approx([expected, expected], abs=1e-5)


def test_channels_last_changes_nothing_even_for_some_batches():
    x = torch.randn(48, 6, 5, 4)
    y = x.flatten(1)[:, :30] + torch.randn(48, 30)
    for estimator in ESTIMATORS:
        expected = cka(x, y, estimator, batch_size=16).item()
        for last in ({0, 1, 2}, {0, 2}, {1}):
            stream = CKA(estimator)
            for i, (a, b) in enumerate(zip(x.split(16), y.split(16), strict=True)):
                a = a.contiguous(memory_format=torch.channels_last) if i in last else a
                stream.update([a], [b])
            assert stream.compute().item() == pytest.approx(expected, abs=1e-6)


def test_activations_may_change_after_update():
    x, y = pair(60)
    for estimator in ESTIMATORS:
        expected = cka(x, y, estimator, batch_size=20).item()
        stream = CKA(estimator)
        for a, b in zip(x.clone().split(20), y.clone().split(20), strict=True):
            stream.update([a], [b])
            a.zero_()
            b.zero_()
        assert stream.compute().item() == pytest.approx(expected, abs=1e-6)


def test_gradients_and_autocast_play_no_part():
    x, y = pair(50, 100)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = cka(x, y)
    assert not value.requires_grad
    assert value.item() == pytest.approx(reference(x.detach(), y, "exact"), abs=1e-5)


def test_values_that_are_not_finite_give_nan():
    x, y = pair(30)
    x[3, 3] = math.inf
    assert all(math.isnan(cka(x, y, estimator).item()) for estimator in ESTIMATORS)


@pytest.mark.parametrize(("estimator", "n"), [("exact", 1), ("unbiased", 3), ("minibatch", 3)])
def test_too_few_examples(estimator, n):
    with pytest.raises(MemtoolError, match=f"{estimator} needs . examples or more, not {n}"):
        cka(*pair(n), estimator)


def test_numbers_of_examples_that_differ():
    with pytest.raises(MemtoolError, match="same examples"):
        cka(torch.randn(5, 2), torch.randn(6, 2))


def test_auto_is_exact_for_tensors():
    x, y = pair(30)
    assert CKA("auto").estimator is Estimator.exact
    assert cka(x, y, "auto").item() == cka(x, y, "exact").item()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_no_synchronization_on_cuda():
    """Of `minibatch`: the others only keep what comes."""
    x, y = (z.cuda() for z in pair(256, 100, 50))
    stream = CKA("minibatch")
    stream.update([x[:64]], [y[:64]])
    try:
        torch.cuda.set_sync_debug_mode("error")
        for start in range(64, 256, 64):
            stream.update([x[start : start + 64]], [y[start : start + 64]])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = cka(x.cpu(), y.cpu(), "minibatch", batch_size=64).item()
    assert stream.compute().item() == pytest.approx(expected, abs=1e-5)


def test_arrays_of_numpy_are_taken():
    x, y = torch.randn(20, 4), torch.randn(20, 3)
    assert cka(x.numpy(), y.numpy()) == cka(x, y)
    stream = CKA()
    stream.update([x.numpy()], [y])
    assert stream.compute()[0, 0] == cka(x, y, "minibatch")


@pytest.mark.parametrize(
    "other",
    [
        lambda x: np.flip(np.flip(x).copy()),
        lambda x: np.repeat(x, 2, 1)[:, ::2],
        lambda x: x.astype(">f8"),
        lambda x: np.frombuffer(x.tobytes()).reshape(x.shape),
        lambda x: x.tolist(),
        lambda x: np.ma.masked_greater(x, np.inf),
    ],
    ids=["negative strides", "strides", "big-endian", "read-only", "lists", "nothing masked"],
)
@pytest.mark.parametrize("estimator", ["exact", "minibatch"])
def test_arrays_that_pytorch_does_not_take_as_they_are(other, estimator):
    x, y = (side.double().numpy() for side in pair(20))
    assert cka(other(x), other(y), estimator) == cka(x, y, estimator)


def test_no_number_in_a_list_is_asked_for_a_mask(monkeypatch):
    asked = []
    monkeypatch.setattr(np.ma, "is_masked", asked.append)
    row = [1, 2.0, True, np.float32(4)]
    cka([row, *np.eye(4).tolist()], [(row, row), ([0, 1, 0, 0], row)] * 2 + [(row, row)])
    assert asked == []


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (None, "as numbers .NoneType"),
        ("abcd", "as numbers .str"),
        (np.array([[1.0, None]] * 4), "as numbers .ndarray"),
        (np.zeros((4, 2), "M8[s]"), "as numbers .ndarray"),
        ([[1.0], [2.0, 3.0]], "as numbers .list"),
        (np.ma.masked_greater(np.eye(4), 0.5), "masked values"),
        ([np.ma.masked_greater(np.eye(4)[i], 0.5) for i in range(4)], "masked values"),
        ([[1.0, 2.0], (3.0, np.ma.masked), [5.0, 6.0], [7.0, 8.0]], "masked values"),
        (3.0, r"tensor of shape \(\)"),
        (torch.tensor(3.0), r"tensor of shape \(\)"),
        (torch.eye(4).to_sparse(), r"torch.sparse_coo, on cpu; give its .to_dense\(\)"),
        (np.eye(4, dtype=np.longdouble), r"lacks dtype \w+\d+, so give its .astype\(float\) if"),
        (np.eye(4)[:, :2].astype(object), r"lacks dtype object, so give its .astype\(float\) if"),
        (torch.ones(4, 2, device="meta"), "on meta"),
    ],
)
def test_what_is_no_numbers_is_refused(layer, told):
    with pytest.raises(MemtoolError, match=told):
        cka(layer, torch.ones(4, 2))
    with pytest.raises(MemtoolError, match=told):
        CKA().update([torch.ones(4, 2)], [layer])


@pytest.mark.parametrize(("xs", "ys"), [([], [torch.ones(4, 2)]), ([torch.ones(4, 2)], ())])
def test_a_side_without_layers_is_refused(xs, ys):
    with pytest.raises(MemtoolError, match="one for each layer, not a (list|tuple) of none"):
        CKA().update(xs, ys)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"batch_size": 0}, "batch_size should be a positive whole number, not 0"),
        ({"batch_size": 2.5}, "batch_size should be a positive whole number, not 2.5"),
        ({"bandwidth": -1}, "bandwidth should be a positive number, not -1"),
        ({"bandwidth": "1"}, "bandwidth should be a positive number, not '1'"),
        ({"estimator": ["exact"]}, "no estimator"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, told):
    with pytest.raises(MemtoolError, match=told):
        cka(torch.eye(8), torch.eye(8), **options)


@pytest.mark.parametrize(
    ("xs", "told"),
    [
        (torch.randn(5, 4), "a list of tensors, one for each layer, not a Tensor"),
        ({"a": torch.randn(5, 4)}, "not a dict"),
        (
            [torch.randn(5, 6)],
            r"have \[\[6\], \[4\]\] features, those of the first \[\[4\], \[4\]\]",
        ),
        ([torch.randn(5, 4)] * 2, "give the same layers in each"),
    ],
)
@pytest.mark.parametrize("estimator", ["exact", "minibatch"])
def test_other_layers_than_before_are_refused(xs, told, estimator):
    stream = CKA(estimator)
    stream.update([torch.randn(5, 4)], [torch.randn(5, 4)])
    with pytest.raises(MemtoolError, match=told):
        stream.update(xs, [torch.randn(5, 4)])


def test_an_estimator_that_there_is_not_is_told():
    with pytest.raises(MemtoolError, match="no estimator 'foo'; there are auto, exact"):
        CKA("foo")
    with pytest.raises(MemtoolError, match="no kernel 'poly'; there are linear, rbf"):
        cka(torch.ones(5, 1), torch.ones(5, 1), kernel="poly")


@pytest.mark.parametrize("estimator", ["exact", "minibatch"])
def test_shorter_products_that_others_chose_are_not_taken(estimator):
    x, y = torch.randn(64, 300), torch.randn(64, 200)
    expected = cka(x, y, estimator)
    switch = torch.backends.mkldnn.matmul
    switch.fp32_precision = "bf16"
    try:
        assert torch.equal(cka(x, y, estimator), expected)
        assert switch.fp32_precision == "bf16"
    finally:
        switch.fp32_precision = "none"


@pytest.mark.parametrize("seed", range(6))
def test_what_roundings_bring_above_1_is_a_value(seed):
    """Features far from 0, of which float32 keeps few digits, and all but the same ones."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -3, 100)
    x = torch.randn(1000, 100, generator=generator) * spread
    x += 1e4 * torch.randn(1, 100, generator=generator)
    assert cka(x, x * (1 + 1e-7)).item() == pytest.approx(1, abs=1e-5)
