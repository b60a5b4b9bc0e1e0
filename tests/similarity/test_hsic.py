"""The formulas of HSIC and CKA, against their published forms."""

import math
import tracemalloc

import pytest
import torch

from memtool.similarity import Estimator, Hsic
from memtool.similarity.hsic import PairProducts, hsic_from_sums, replicate_groups


def grams(n, seed=0):
    """Two Gram matrices that are not centered, float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 12, generator=generator, dtype=torch.float64) + 1
    y = torch.randn(n, 7, generator=generator, dtype=torch.float64) + x[:, :7]
    return x @ x.T, y @ y.T


def sums_of(k, l):  # noqa: E741
    """S, D and T of Gram matrices as they are."""
    k, l = k - k.diag().diag(), l - l.diag().diag()  # noqa: E741
    return (k * l).sum(), k.sum(1) @ l.sum(1), k.sum() * l.sum()


@pytest.mark.parametrize("n", [2, 3, 20])
def test_exact_is_gretton_et_al(n):
    """tr(K H L H) / (n - 1)^2."""
    k, l = grams(n)  # noqa: E741
    h = torch.eye(n, dtype=torch.float64) - 1 / n
    expected = (k @ h @ l @ h).trace() / (n - 1) ** 2
    found = hsic_from_sums(Estimator.exact, *sums_of(h @ k @ h, h @ l @ h), n)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("n", [4, 5, 20])
@pytest.mark.parametrize("centered", [True, False])
def test_unbiased_is_song_et_al_whether_centered_or_not(n, centered):
    k, l = grams(n)  # noqa: E741
    one = torch.ones(n, dtype=torch.float64)
    a, b = k - k.diag().diag(), l - l.diag().diag()
    middle = (one @ a @ one) * (one @ b @ one) / ((n - 1) * (n - 2))
    expected = ((a @ b).trace() + middle - 2 / (n - 2) * (one @ a @ b @ one)) / (n * (n - 3))
    h = torch.eye(n, dtype=torch.float64) - (1 / n if centered else 0)
    found = hsic_from_sums(Estimator.unbiased, *sums_of(h @ k @ h, h @ l @ h), n)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize(("estimator", "n"), [(Estimator.exact, 1), (Estimator.unbiased, 3)])
def test_too_few_examples_have_no_hsic(estimator, n):
    one = torch.ones((), dtype=torch.float64)
    assert math.isnan(hsic_from_sums(estimator, one, one, one, n))


def test_cka_and_its_jackknife():
    xy = torch.tensor([[0.5, 2.0], [0.4, 2.0], [0.6, 2.0], [0.5, 2.0]])
    xx, yy = torch.full((4, 2), 4.0), torch.ones(4, 2)
    value, error = Hsic(xy, xx, yy, xy[0]).cka()
    assert value.tolist() == [0.25, 1.0]
    left_out = torch.tensor([0.2, 0.3, 0.25])
    expected = math.sqrt(2 / 3 * (left_out - left_out.mean()).square().sum())
    assert error.tolist() == pytest.approx([expected, 0.0])


@pytest.mark.parametrize("own", [0.0, -1.0, math.nan, math.inf])
def test_no_cka_without_a_positive_finite_hsic_with_itself(own):
    value, error = Hsic(*torch.tensor([[[0.5]], [[own]], [[1.0]]]), torch.zeros(1)).cka()
    assert math.isnan(value) or value == 0 and own == math.inf
    assert math.isnan(error)


def test_no_cka_beyond_what_it_can_be():
    own, between = torch.ones(3, 2).double(), torch.tensor([[1 + 1e-9, 9.0]] * 3).double()
    exact, unbiased = (Hsic(between, own, own, own[0], *most) for most in ([1.0], []))
    assert exact.cka()[0].tolist() == pytest.approx([1.0, math.nan], abs=0, rel=0, nan_ok=True)
    assert unbiased.cka()[0].tolist() == between[0].tolist()


def test_products_of_pairs_of_rows():
    a, b = torch.randn(3, 5), torch.randn(4, 5)
    every = [(i, j) for i in range(3) for j in range(4)]
    for pairs in (every, every[::-1], [(0, 0), (1, 1), (2, 2)], [(2, 3), (0, 1)], [(1, 2)]):
        expected = [(a[i] @ b[j]).item() for i, j in pairs]
        assert PairProducts(pairs)(a, b).tolist() == pytest.approx(expected, abs=1e-5)


def test_pairs_of_thousands_of_rows_take_no_table_of_all_of_them():
    tracemalloc.start()
    PairProducts([(i, i) for i in range(3000)])
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_no_group_is_left_out_where_there_is_one_alone():
    assert [len(replicate_groups(batches)) for batches in (1, 2, 10, 11)] == [1, 3, 11, 11]
