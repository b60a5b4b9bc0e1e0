"""The rbf kernel and its sigma."""

import math

import pytest
import torch

from memtool import cka
from memtool.similarity.rbf import SAMPLE, median_distance, rbf, sample


def distances(x):
    return torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")


def test_values_and_distances():
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)) + 100
    x = x - x.mean(0)
    norms = x.square().sum(1)
    expected = torch.exp(-(distances(x) ** 2) / (2 * 1.5**2))
    assert torch.allclose(rbf(x, x, norms, norms, torch.tensor(1.5)).double(), expected, atol=1e-5)


@pytest.mark.parametrize("n", [2, 3, 50])
def test_the_median_is_that_of_different_examples(n):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(0)) + 100
    apart = distances(x)[~torch.eye(n, dtype=torch.bool)]
    assert median_distance(x).item() == pytest.approx(apart.median().item(), rel=1e-4)


@pytest.mark.parametrize("n", [2, SAMPLE, SAMPLE + 1, 26_032])
def test_the_sample_is_spread_over_all_examples(n):
    chosen = sample(n)
    assert len(set(chosen)) == len(chosen) == min(n, SAMPLE)
    assert chosen == sorted(chosen) and 0 <= chosen[0] and chosen[-1] < n
    assert chosen[-1] >= n - 1 - n // SAMPLE


@pytest.mark.parametrize("estimator", ["exact", "minibatch"])
@pytest.mark.parametrize("p", [3, 64, 300, 5000])
@pytest.mark.parametrize("type_", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_there_is_no_cka_where_most_examples_coincide(estimator, p, type_, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(p, generator=generator).repeat(40, 1)
    x[torch.randperm(40, generator=generator)[:5]] = torch.rand(5, p, generator=generator)
    x, y = x.to(type_), torch.randn(40, 3, generator=generator, dtype=type_)
    assert math.isnan(cka(x, y, estimator, "rbf"))
    assert not math.isnan(cka(x, y, estimator, "linear"))
