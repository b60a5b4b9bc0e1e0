"""Choosing examples: every class in proportion."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtool import MemtoolError
from memtool.data.listing import Examples, Listing
from memtool.data.splitting import divided, sampled, stratified, with_fewer


@given(st.lists(st.integers(0, 6), min_size=1, max_size=200), st.data())
def test_every_class_has_its_share(labels: list[int], drawn: st.DataObject) -> None:
    size = drawn.draw(st.integers(0, len(labels)))
    array = np.array(labels)
    chosen = stratified(array, size)
    assert chosen.sum() == size
    for label in set(labels):
        share = (array == label).sum() * size / len(labels)
        assert abs(chosen[array == label].sum() - share) < 1


LABELS = np.repeat([0, 1], [20, 10])
LISTING = Listing(("ant", "bee"), None, Examples(np.arange(30), LABELS))


@pytest.mark.parametrize("size", [0.8, 24], ids=["fraction", "number"])
def test_a_listing_is_divided_into_two_without_loss(size: float) -> None:
    found = divided(LISTING, size, "x")
    assert np.bincount(found.train.labels).tolist() == [16, 8]
    assert np.bincount(found.test.labels).tolist() == [4, 2]
    for part in (found.train, found.test):
        assert (LABELS[part.items] == part.labels).all()
        assert (np.diff(part.items) > 0).all()
    assert sorted([*found.train.items, *found.test.items]) == list(range(30))


def test_items_without_labels_are_refused() -> None:
    Examples(np.arange(30), LABELS).check("x")
    with pytest.raises(MemtoolError, match="^x: has 31 images, but 30 labels of them$"):
        Examples(np.arange(31), LABELS).check("x")


@pytest.mark.parametrize("size", [0, 30, 31, 0.01, 0.99])
def test_neither_part_of_a_division_is_empty(size: float) -> None:
    with pytest.raises(MemtoolError, match="^x: of its 30 images, split_at leaves"):
        divided(LISTING, size, "x")


def test_what_is_split_is_not_divided_again() -> None:
    with pytest.raises(MemtoolError, match="^x: has a training split"):
        divided(divided(LISTING, 0.5, "x"), 0.5, "x")


def test_a_sample_leaves_no_training_examples() -> None:
    found = sampled(divided(LISTING, 0.5, "x"), 6)
    assert found.train is None
    assert np.bincount(found.test.labels).tolist() == [4, 2]
    assert len(sampled(LISTING, 99).test.items) == 30


def test_fewer_training_examples_leave_the_test_examples() -> None:
    whole = divided(LISTING, 0.8, "x")
    found = with_fewer(whole, 6)
    assert np.bincount(found.train.labels).tolist() == [4, 2]
    assert (LABELS[found.train.items] == found.train.labels).all()
    assert found.test is whole.test
    assert len(with_fewer(whole, 99).train.items) == 24
    assert with_fewer(LISTING, 6) is LISTING
