"""HSIC in feature space, against that of Gram matrices and the published formula."""

import math
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memtool import cka
from memtool.similarity import CKA, Estimator, feature_space
from memtool.similarity.feature_space import FeatureRecorder, is_cheaper
from memtool.similarity.recorder import Visit

ESTIMATORS = ["exact", "unbiased"]


def in_feature_space(xs, ys, estimator, sizes):
    """CKA and standard error of each layer with its counterpart, (layers,), over batches."""
    ends = list(accumulate(sizes))
    batches = list(zip([0, *ends], ends, strict=False))
    sides = [
        FeatureRecorder(
            range(len(layers)), layers[0].device, batches, Estimator(estimator), range(len(sizes))
        )
        for layers in (xs, ys)
    ]
    sums = sides[0].sums_with(sides[1], [(i, i) for i in range(len(xs))])
    for number, (start, stop) in enumerate(batches):
        for side, layers in zip(sides, (xs, ys), strict=True):
            with side.batch(Visit(number, start, stop, range(0))) as batch:
                for i, layer in enumerate(layers):
                    batch.record(i, layer[start:stop].clone())
    return sums.hsic().cka()


def by_gram_matrices(x, y, estimator, sizes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memtool.similarity.streaming.is_cheaper", lambda *_: False)
        stream = CKA(estimator)
        for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
            stream.update([a], [b])
        return stream.compute().item(), stream.standard_error().item()


@pytest.mark.parametrize("sizes", [[300], [50] * 6])
@pytest.mark.parametrize("factor", [300, 1e3, 1e4])
@pytest.mark.parametrize("p", [1, 5])
def test_one_example_is_far_from_all_others(sizes, factor, p):
    # All but a part in factor^2 of the terms of the unbiased HSIC cancels.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, p, generator=generator)
    y = x + torch.randn(300, p, generator=generator)
    x[7] *= factor
    expected = by_gram_matrices(x.double(), y.double(), "unbiased", sizes)
    value, error = in_feature_space([x], [y], "unbiased", sizes)
    assert value.item() == pytest.approx(expected[0], abs=1e-5)
    assert error.item() == pytest.approx(expected[1], abs=1e-4, nan_ok=True)
    x[7] *= 1e6
    assert in_feature_space([x], [y], "unbiased", sizes)[0].isnan()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("place", [0, 7, 77])
@pytest.mark.parametrize("p", [1, 5, 40])
def test_one_example_far_away_in_whichever_batch_costs_the_others_no_digits(estimator, place, p):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, p, generator=generator)
    y = x + torch.randn(300, p, generator=generator)
    x[place] *= 1e5
    sizes = [50] * 6
    expected = by_gram_matrices(x.double(), y.double(), estimator, sizes)
    assert by_gram_matrices(x, y, estimator, sizes) == pytest.approx(expected, abs=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    estimator=st.sampled_from(ESTIMATORS),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=13).filter(lambda s: sum(s) >= 8),
    shape=st.sampled_from([(), (1,), (30,), (3, 4), (2, 3, 3)]),
    scale=st.sampled_from([1e-9, 1.0, 1e9]),
    offset=st.sampled_from([0.0, 1.0, 100.0]),
    part=st.sampled_from([1, 9, 10**6]),
    seed=st.integers(0, 3),
)
def test_equals_gram_matrices(estimator, sizes, shape, scale, offset, part, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), *shape, generator=generator, dtype=torch.float64)
    y = torch.randn(sum(sizes), 4, generator=generator, dtype=torch.float64)
    y[:, 0] += 2 * x.reshape(len(x), -1)[:, 0]
    x = (x + offset) * scale
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_space, "PART", part)
        value, error = (z.item() for z in in_feature_space([x], [y], estimator, sizes))
    expected, expected_error = by_gram_matrices(x, y, estimator, sizes)
    assert value == pytest.approx(expected, abs=1e-9, rel=1e-6, nan_ok=True)
    assert error == pytest.approx(expected_error, abs=1e-9, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("shift", [0, 10_000])
def test_equals_the_formula_of_kornblith(shift):
    """|Yc^T Xc|^2 / (|Xc^T Xc| |Yc^T Yc|), Kornblith et al. 2019, Eq. 5."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(700, 60, generator=generator)
    y = torch.randn(700, 40, generator=generator) + x[:, 20:]
    a, b = (z.double() - z.double().mean(0) for z in (x, y))
    expected = (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert is_cheaper(700, (60, 40), [(60, 40)])
    tolerance = 1e-4 if shift else 1e-7
    assert cka(x + shift, y - shift).item() == pytest.approx(expected.item(), abs=tolerance)
    by_batches, _ = in_feature_space([x + shift], [y - shift], "exact", [100] * 7)
    assert by_batches.item() == pytest.approx(expected.item(), abs=tolerance)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_layer_with_itself_is_1_and_a_constant_one_has_no_cka(estimator):
    x = torch.randn(60, 20, generator=torch.Generator().manual_seed(0))
    values, errors = in_feature_space(
        [x, torch.full((60, 9), 0.1)], [x, x], estimator, [20, 20, 20]
    )
    assert values[0].item() == pytest.approx(1, abs=1e-9)
    assert errors[0].item() == pytest.approx(0, abs=1e-9)
    assert math.isnan(values[1]) and math.isnan(errors[1])


def test_layers_of_different_precision():
    x = torch.randn(60, 20, generator=torch.Generator().manual_seed(0))
    y = x.square().double()
    for half in (x.half(), x.bfloat16(), x.double()):
        found, _ = in_feature_space([half], [y], "unbiased", [30, 30])
        expected, _ = by_gram_matrices(half, y, "unbiased", [30, 30])
        assert found.item() == pytest.approx(expected, abs=1e-6)


def test_autocast_plays_no_part():
    x = torch.randn(60, 20, generator=torch.Generator().manual_seed(0))
    plain = in_feature_space([x], [x.square()], "unbiased", [30, 30])
    with torch.autocast("cpu", torch.bfloat16):
        assert in_feature_space([x], [x.square()], "unbiased", [30, 30]) == plain


@pytest.mark.parametrize(
    ("n", "p", "q", "cheaper"),
    [(10_000, 10, 10, True), (10_000, 65_536, 10, False), (500, 65_536, 65_536, False)],
)
def test_what_is_cheaper_by_far(n, p, q, cheaper):
    assert is_cheaper(n, (p, q), [(p, q)]) is cheaper
    assert is_cheaper(n, (q, p), [(q, p)]) is cheaper


def test_ever_wider_layers_take_ever_more_examples():
    least = [
        next(n for n in range(100, 10**6, 100) if is_cheaper(n, (p, p), [(p, p)]))
        for p in (10, 100, 1000, 10_000)
    ]
    assert least == sorted(set(least))
