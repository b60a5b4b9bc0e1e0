"""Gram matrices of batches, of which half is computed."""

import pytest
import torch

from memtool import cka
from memtool.layers.footprint import LiveBytes
from memtool.similarity.minibatch import CHUNK, MinibatchRecorder, _Strips
from memtool.similarity.recorder import Visit


@pytest.mark.parametrize("n", [4, 31, 32, 33, 100, 257])
def test_strips_make_up_the_matrix(n):
    x = torch.randn(n, 70, generator=torch.Generator().manual_seed(n))
    y = torch.randn(n, 50, generator=torch.Generator().manual_seed(n + 1))
    strips = _Strips(n, torch.device("cpu"))
    vectors = torch.full((2, strips.size), torch.nan)
    for vector, z in zip(vectors, (x, y), strict=True):
        strips.add(vector, z[:, :30], first=True)
        strips.add(vector, z[:, 30:], first=False)
    whole = torch.stack([(z.double() @ z.double().T).fill_diagonal_(0) for z in (x, y)])
    vectors = vectors.double()
    assert torch.allclose(strips.row_sums(vectors), whole.sum(2), atol=1e-2)
    weighed = strips.weigh(vectors)
    expected = whole.flatten(1) @ whole.flatten(1).T
    assert torch.allclose(weighed @ weighed.T, expected, rtol=1e-4)
    assert strips.size < n * n or n <= 32


def test_one_example_far_larger_than_the_others():
    """Rounding of its products must not spoil what the others say: sums over rows are taken of the
    Gram matrix as it is, not as it would be in exact arithmetic."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 200, generator=generator)
    y = torch.randn(32, 100, generator=generator) + x[:, :100]
    for scale in (1.0, 1e3, 1e4):
        big, other = x.clone(), y.clone()
        big[5] *= scale
        other[9] *= scale
        expected = cka(big.double(), other.double(), "minibatch").item()
        assert cka(big, other, "minibatch").item() == pytest.approx(expected, abs=1e-4)


def test_a_wide_layer_takes_the_memory_of_a_few_chunks():
    x = torch.randn(16, 30 * CHUNK, generator=torch.Generator().manual_seed(0))
    recorder = MinibatchRecorder(["wide"], x.device)
    live = LiveBytes()
    with live, recorder.batch(Visit(0, 0, 16, range(0))) as batch:
        batch.record("wide", x)
    assert max(live.history) < 4 * 16 * 3 * CHUNK


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_the_scale_is_that_of_all_features(scale):
    """Of a chunk alone, the others would vanish or outgrow float32."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(12, 2 * CHUNK + 5, generator=generator) for _ in range(2))
    expected = cka(x[:, CHUNK:], y, "minibatch")
    x[:, :CHUNK] *= 1e-15
    assert cka(x * scale, y, "minibatch").item() == pytest.approx(expected.item(), abs=1e-5)
