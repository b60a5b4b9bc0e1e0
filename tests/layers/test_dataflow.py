"""The graph of a forward pass."""

import random
from itertools import product

import numpy as np
import pytest
import torch

from memtool.layers.dataflow import DataFlow, dominators, layout_of


def by_brute_force(parents, output, source):
    """The nodes without which there is no path."""

    def reaches(without):
        found, stack = set(), [output]
        while stack:
            node = stack.pop()
            if node != without and node not in found:
                found.add(node)
                stack += parents[node]
        return source in found

    if not reaches(None):
        return set()
    return {node for node in range(len(parents)) if not reaches(node)}


def test_dominators_of_random_graphs_are_those_of_brute_force():
    draw, several = random.Random(0), 0
    for _ in range(500):
        size = draw.randint(1, 12)
        parents = [
            {draw.randrange(node) for _ in range(draw.randint(0, 3))} if node else set()
            for node in range(size)
        ]
        for source, output in product(range(size), repeat=2):
            if source > output:
                continue
            found = dominators(parents, output, source)
            assert found == by_brute_force(parents, output, source), (parents, output, source)
            several += len(found) > 2
    assert several > 500


def test_paths_without_number_are_counted_exactly():
    """As in a DenseNet: 2^200 paths, and one node that all of them go through."""
    parents = [set()]
    for _ in range(100):
        parents += [{len(parents) - 1}, {len(parents) - 1}]
        parents.append({len(parents) - 1, len(parents) - 2})
    last = len(parents) - 1
    assert {0, last} <= dominators(parents, last, 0)
    assert dominators([*parents, {last, 0}], last + 1, 0) == {0, last + 1}


def nodes_after(work):
    """Whether the result of `work(x)` depends on x, and whether it does so through the first result
    of `work` alone."""
    with torch.no_grad(), DataFlow() as flow:
        x = torch.randn(4, 6)
        source = flow.source(x)
        middle, result = work(x)
        last = flow.node(result)
    if last is None:
        return False, False
    return True, flow.node(middle) in dominators(flow.parents, last, source)


def in_place(x):
    y = x.exp()
    middle = y.clone()
    y.add_(1)
    return middle, middle + y


def through_a_view(x):
    middle = x.exp()
    middle[:, :3].mul_(2)
    return middle, middle[:, 3:] + 1


def written_in_parts(x):
    middle = x.exp()
    result = torch.empty(4, 12)
    result[:, :6] = middle
    result[:, 6:] = middle.sin()
    return middle, result


@pytest.mark.parametrize(
    ("work", "depends", "alone"),
    [
        (lambda x: (y := x.exp(), y.sin()), True, True),
        (lambda x: (y := x.exp(), y + x), True, False),
        (lambda x: (y := x.exp(), y + x.detach()), True, False),
        (lambda x: (y := x.exp(), y.data.sin()), True, True),
        (lambda x: (x.exp(), torch.ones(3)), False, False),
        (lambda x: (y := x.max(1)[0], y + 1), True, True),
        (lambda x: (x.max(1)[0], x.max(1)[1]), True, False),
        (lambda x: ((both := x.max(1))[0], both[0] + both[1]), True, False),
        (in_place, True, False),
        (through_a_view, True, True),
        (written_in_parts, True, True),
    ],
)
def test_what_is_computed_from_what(work, depends, alone):
    assert nodes_after(work) == (depends, alone)


def test_layouts_are_grouped_along_elementwise_operations():
    with torch.no_grad(), DataFlow() as flow:
        x = torch.randn(4, 6)
        same = [x.clone(), x.relu(), x + torch.ones(6), x.exp().mul_(2)]
        others = [x.T, x @ torch.ones(6, 6), x.sum(1, keepdim=True), torch.ones(4, 6)]
    group = flow.group(layout_of(x))
    assert all(flow.group(layout_of(tensor)) == group for tensor in same)
    assert not any(flow.group(layout_of(tensor)) == group for tensor in others)


@pytest.mark.parametrize(
    ("work", "reads"),
    [
        (lambda x: x[0, 0].item(), True),
        (lambda x: bool(x.any()), True),
        (lambda x: x.tolist(), True),
        (lambda x: x[0].cpu().numpy(), True),
        (lambda x: np.asarray(x), True),
        (lambda x: np.from_dlpack(x), True),
        (lambda x: x[x > 0], True),
        (lambda x: x[:, torch.ones(6, dtype=torch.uint8)], True),
        (lambda x: x.nonzero(), True),
        (lambda x: x[:, torch.tensor([1, 0])], False),
        (lambda x: x[..., x.argmax(1), :1], False),
        (lambda x: x.masked_fill(x > 0, 0).shape[0], False),
    ],
)
@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
def test_whether_values_are_read(work, reads):
    x = torch.eye(6)
    with torch.no_grad(), DataFlow() as flow:
        work(x)
    assert flow.reads_values == reads
    work(x)
    assert flow.reads_values == reads  # what happens after the block is no concern of it
