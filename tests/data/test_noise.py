"""Label noise: how many labels are redrawn, which, and to what."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtool import MemtoolError
from memtool.data.noise import NoiseKind, checked_transition_matrix, redraw, transition_matrix

DRAWN = [NoiseKind.uniform, NoiseKind.symmetric, NoiseKind.pairflip]
ratios = st.floats(0, 1)
class_counts = st.integers(2, 12)
seeds = st.integers(0, 2**32 - 1)


def labels_of(examples: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + 1).integers(0, classes, examples)


# A matrix that gives every redrawn example a class apart shows which examples were redrawn.
@given(st.integers(0, 400), ratios, seeds)
def test_exactly_round_rn_examples_are_redrawn(examples, ratio, seed):
    to_class_1 = np.array([[0.0, 1.0], [0.0, 1.0]])
    noisy = redraw(np.zeros(examples, np.int64), to_class_1, ratio, seed)
    assert noisy.sum() == round(ratio * examples)


@given(class_counts, ratios, ratios, seeds, st.sampled_from(DRAWN))
@settings(max_examples=60)
def test_one_seed_gives_nested_sets(classes, one, other, seed, kind):
    true = labels_of(200, classes)
    few, many = sorted((one, other))
    transition = transition_matrix(kind, classes)
    less, more = (redraw(true, transition, ratio, seed) for ratio in (few, many))
    mislabelled = less != true
    assert (more[mislabelled] == less[mislabelled]).all()


@pytest.mark.parametrize("kind", DRAWN)
def test_one_seed_gives_one_labelling(kind):
    true, transition = labels_of(500, 10), transition_matrix(kind, 10)
    labelling = redraw(true, transition, 0.5, seed=3)
    assert (redraw(true, transition, 0.5, seed=3) == labelling).all()
    assert (redraw(true, transition, 0.5, seed=4) != labelling).any()


@pytest.mark.parametrize("kind", DRAWN)
def test_the_true_labels_are_not_written_to_and_stay_at_ratio_0(kind):
    true = labels_of(500, 10)
    before = true.copy()
    assert (redraw(true, transition_matrix(kind, 10), 0, seed=0) == before).all()
    redraw(true, transition_matrix(kind, 10), 1, seed=0)
    assert (true == before).all()


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_every_class_that_can_be_drawn_is_and_no_other(kind, classes):
    true = np.repeat(np.arange(classes), 400)
    transition = transition_matrix(kind, classes)
    noisy = redraw(true, transition, 1, seed=0)
    drawn = np.zeros((classes, classes), bool)
    drawn[true, noisy] = True
    assert (drawn == (transition > 0)).all()


def test_what_each_kind_may_draw():
    assert transition_matrix(NoiseKind.uniform, 4) == pytest.approx(np.full((4, 4), 0.25))
    assert transition_matrix(NoiseKind.symmetric, 3) == pytest.approx(
        np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    )
    assert (
        transition_matrix(NoiseKind.pairflip, 3) == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    ).all()  # rows are true classes: the last one goes to the first


@given(class_counts, seeds)
@settings(max_examples=30)
def test_symmetric_and_pairflip_never_draw_the_true_class(classes, seed):
    true = labels_of(300, classes, seed)
    for kind in (NoiseKind.symmetric, NoiseKind.pairflip):
        assert (redraw(true, transition_matrix(kind, classes), 1, seed) != true).all()


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("ratio", [0.25, 1.0])
def test_uniform_noise_mislabels_r_times_1_minus_1_over_c(classes, ratio):
    examples = 40_000
    true = labels_of(examples, classes)
    noisy = redraw(true, transition_matrix(NoiseKind.uniform, classes), ratio, seed=0)
    expected = ratio * (1 - 1 / classes)
    assert (noisy != true).mean() == pytest.approx(expected, abs=4 * (0.25 / examples) ** 0.5)


def test_draws_follow_the_transition_matrix():
    transition = np.array([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5], [0.05, 0.0, 0.95]])
    true = np.repeat(np.arange(3), 20_000)
    noisy = redraw(true, transition, 1, seed=0)
    shares = np.array([np.bincount(noisy[true == label], minlength=3) for label in range(3)])
    assert shares / 20_000 == pytest.approx(transition, abs=0.015)
    assert (shares[transition == 0] == 0).all()


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30).filter(lambda row: sum(row) > 0.1))
def test_a_row_that_sums_to_nearly_1_in_floating_point_gives_no_class_of_probability_0(weights):
    row = np.array([0.0, *weights, 0.0])
    row /= row.sum()  # seldom exactly 1, as summed by cumsum
    transition = np.tile(row, (len(row), 1))
    noisy = redraw(labels_of(300, len(row)), transition, 1, seed=0)
    assert (row[noisy] > 0).all()


@pytest.mark.parametrize("ratio", [-0.01, 1.01, float("nan")])
def test_a_ratio_outside_0_to_1_is_an_error(ratio):
    with pytest.raises(MemtoolError, match="outside"):
        redraw(labels_of(10, 2), transition_matrix(NoiseKind.uniform, 2), ratio, 0)


@pytest.mark.parametrize("kind", [NoiseKind.symmetric, NoiseKind.pairflip])
def test_another_class_needs_two(kind):
    with pytest.raises(MemtoolError, match="two classes"):
        transition_matrix(kind, 1)


@pytest.mark.parametrize(
    "matrix, problem",
    [
        (np.eye(3), "2 x 2"),
        (np.array([[0.5, 0.5], [0.5, 0.4]]), "row 1"),
        (np.array([[1.5, -0.5], [0, 1]]), "row 0"),
        (np.array([[np.nan, 1], [0, 1]]), "row 0"),
    ],
    ids=["shape", "sum", "negative", "nan"],
)
def test_what_is_no_transition_matrix(matrix, problem):
    with pytest.raises(MemtoolError, match=problem):
        checked_transition_matrix(matrix, 2)


def test_rows_that_were_rounded_are_rescaled():
    exact = transition_matrix(NoiseKind.symmetric, 7)
    for rounded in (exact.round(3), exact.round(4), 0.99 * exact, 1.01 * exact):
        found = checked_transition_matrix(rounded, 7)
        assert found.sum(axis=1) == pytest.approx(np.ones(7), abs=1e-12)
        assert found == pytest.approx(exact, abs=1e-12)
    assert (checked_transition_matrix(exact, 7) == exact).all()
