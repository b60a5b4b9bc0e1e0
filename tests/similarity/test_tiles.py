"""Tiles of Gram matrices, in blocks and passes of any shape."""

import pytest
import torch

from memtool.similarity import Estimator, even_batches
from memtool.similarity.recorder import Visit
from memtool.similarity.tiles import TileRecorder


def cka_by_blocks(x, y, estimator, batches, blocks, sigma=None):
    capacity = max(batches[b[-1]][1] - batches[b[0]][0] for b in blocks)
    sides = [TileRecorder("z", z.device, batches, estimator, capacity, sigma) for z in (x, y)]
    sums = sides[0].sums_with(sides[1], [(0, 0)])
    for block in blocks:
        for number in range(block.start, len(batches)):
            visit = Visit(number, *batches[number], block)
            with sums.x.batch(visit) as a, sums.y.batch(visit) as b:
                a.record("z", x[visit.start : visit.stop])
                b.record("z", y[visit.start : visit.stop])
            sums.add(a, b)
    return [number.item() for number in sums.hsic().cka()]


@pytest.mark.parametrize("estimator", [Estimator.exact, Estimator.unbiased])
@pytest.mark.parametrize("sigma", [None, 3.0])
def test_the_division_into_blocks_changes_nothing(estimator, sigma):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, 30, generator=generator, dtype=torch.float64)
    y = torch.randn(90, 20, generator=generator, dtype=torch.float64) + x[:, :20]
    batches = even_batches(90, 7)
    last = len(batches)
    sigma = None if sigma is None else torch.tensor([sigma])
    expected = cka_by_blocks(x, y, estimator, batches, [range(last)], sigma)
    for cuts in ([5], [1, 2, 9], list(range(1, last))):
        ends = [0, *cuts, last]
        blocks = [range(a, b) for a, b in zip(ends, ends[1:], strict=False)]
        found = cka_by_blocks(x, y, estimator, batches, blocks, sigma)
        assert found == pytest.approx(expected, abs=1e-10)
