"""What classifiers return, and which of it are the logits."""

import math
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from memtool.models import (
    described,
    logits_of,
    nearly_equal,
)

FEATURES, LOGITS = torch.zeros(2, 64), torch.zeros(2, 10)
Pair = namedtuple("Pair", "logits aux")


@dataclass
class Output:
    loss: None
    logits: Tensor


class Holder:
    logits = LOGITS


@pytest.mark.parametrize(
    "result",
    [
        LOGITS,
        (FEATURES, LOGITS),
        [LOGITS, FEATURES],
        {"features": FEATURES, "logits": LOGITS},
        {"features": torch.zeros(2, 10), "logits": LOGITS},  # of the same shape
        {"features": FEATURES, "out": LOGITS},
        Pair(LOGITS, torch.zeros(2, 10)),
        Output(None, LOGITS),
        Holder(),
        (None, torch.zeros(2, 10, 1, 1), LOGITS),
    ],
    ids=lambda result: type(result).__name__,
)
def test_the_logits_are_found(result):
    assert logits_of(result, 10) is LOGITS


@pytest.mark.parametrize(
    "result",
    [FEATURES, (FEATURES,), {}, None, "text", torch.zeros(2, 10, 8, 8), {"logits": FEATURES}],
    ids=lambda result: type(result).__name__,
)
def test_there_are_no_logits(result):
    assert logits_of(result, 10) is None


def test_without_a_number_of_classes_the_first_of_two_dimensions_will_do():
    assert logits_of((torch.zeros(2, 3, 4), FEATURES, LOGITS)) is FEATURES
    assert logits_of({"x": FEATURES, "logits": LOGITS}) is LOGITS


def test_what_is_returned_is_told_by_its_shapes():
    assert described(LOGITS) == "(2, 10)"
    assert described((FEATURES, [LOGITS])) == "((2, 64), ((2, 10)))"
    assert described(Pair(LOGITS, None)) == "{logits: (2, 10), aux: NoneType}"
    assert described("text") == "str"


@pytest.mark.parametrize("mask", [-1e4, 1e9, torch.finfo(torch.float32).min, -math.inf])
def test_nearly_equal_looks_at_what_is_not_masked(mask):
    values = torch.tensor([[0.5, 2.0, mask], [1.0, -3.0, mask]])
    assert nearly_equal(values, values + torch.tensor([0.002, 0, 0]))
    assert not nearly_equal(values, values + torch.tensor([0.02, 0, 0]))
    assert not nearly_equal(values, values.flip(1))


def test_nearly_equal_measures_large_values_by_themselves():
    values = torch.tensor([1e3, 2e4, 2e6])
    assert nearly_equal(values, values + torch.tensor([100.0, 0, 0]))
    assert nearly_equal(torch.full((3,), 2e6), torch.full((3,), 2e6 + 100))


@pytest.mark.parametrize("factor", [1e5, 1e6, 1e7])
def test_nearly_equal_looks_beside_an_outlier_and_not_at_rounding(factor):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 512, generator=generator) for n in (8, 16))
    weight[7] *= factor
    values, others = x @ weight.T, x.flip(1) @ weight.flip(1).T  # summed in another order
    assert not torch.equal(others, values) and nearly_equal(others, values)
    others[:, 0] += 0.01 * others[:, 1].abs().max()
    assert not nearly_equal(others, values)


def test_nearly_equal_takes_what_is_no_number_or_infinite_in_the_same_places():
    values = torch.tensor([1.0, 100.0, math.nan, math.inf])
    assert nearly_equal(values, values + torch.tensor([0.05, 0, 0, 0]))
    assert not nearly_equal(values, values + torch.tensor([0.2, 0, 0, 0]))
    assert not nearly_equal(values, values.flip(0))
    assert nearly_equal(torch.full((2,), math.nan), torch.full((2,), math.nan))


@pytest.mark.parametrize(
    ("convert", "dtype"),
    [
        (Tensor.to_sparse, torch.float32),
        (Tensor.to_sparse, torch.int64),
        (Tensor.to_sparse_csr, torch.float32),
        (Tensor.to_mkldnn, torch.float32),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_values_are_compared_however_they_are_stored(convert, dtype):
    values = torch.tensor([[0, 3], [1, 0]], dtype=dtype)
    assert nearly_equal(convert(values), convert(values.clone()))
    assert nearly_equal(convert(values), values)
    assert not nearly_equal(convert(values), convert(values + 1))
