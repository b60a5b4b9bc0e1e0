"""Plans of comparisons: what fits, and who does what."""

import re
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtool import MemtoolError
from memtool.checkpoints import Checkpoint
from memtool.cli.options import size
from memtool.device import Processes
from memtool.errors import told_size
from memtool.layers import Footprint
from memtool.similarity import (
    CkaSettings,
    Estimator,
    Kernel,
    Pairs,
    even_batches,
    make_plan,
    selections,
)
from memtool.similarity.minibatch import CHUNK
from memtool.similarity.settings import Route


def selected(runs, *patterns):
    """Two checkpoints, and a reference."""
    epochs = [runs.folder / "r50" / f"epoch-{epoch:04d}.safetensors" for epoch in (1, 2)]
    opened = [Checkpoint.open(path) for path in (*epochs, runs.clean)]
    others, (reference,) = selections(opened[:2], opened[2:], patterns or ["all"])
    return others, reference


def test_auto_is_exact_while_one_pass_fits(runs):
    others, reference = selected(runs)
    settings = CkaSettings(batch_size=50)
    exact = make_plan(others, [reference], 500, settings)
    assert exact.estimator is Estimator.exact and exact.passes == 1 and len(exact.groups) == 1
    barely = replace(settings, memory=exact.memory.total - 1)
    minibatch = make_plan(others, [reference], 500, barely)
    assert minibatch.estimator is Estimator.minibatch
    more = make_plan(others, [reference], 10**6, settings)
    assert more.estimator is Estimator.minibatch
    assert more.memory.total < exact.memory.total * 2
    assert more.memory == make_plan(others, [reference], 10**7, settings).memory


REFUSED = re.compile(r"takes ([\d.]+ .iB) or more.* or images(?:, or --estimator (\w+))?$")


@pytest.mark.parametrize("kernel", Kernel)
@pytest.mark.parametrize("estimator", ["auto", "exact", "unbiased", "minibatch"])
def test_what_an_error_names_fits(runs, estimator, kernel):
    """The memory that it says is to be allowed for, and the estimator that it recommends: that,
    where one fits."""
    settings = CkaSettings(estimator=Estimator(estimator), kernel=kernel, batch_size=128)
    for patterns, memory in product((["all"], ["fc"]), (2**10, 2**22, 2**23, 2**24, 3 * 2**23)):
        others, reference = selected(runs, *patterns)
        planned = partial(make_plan, others, [reference], 1500)
        try:
            planned(settings := replace(settings, memory=memory))
            continue
        except MemtoolError as error:
            found = REFUSED.search(str(error))
        assert found
        allowed, recommended = size(found[1]), found[2]
        assert planned(replace(settings, memory=allowed)).memory.total <= allowed
        if recommended:
            assert planned(replace(settings, estimator=Estimator(recommended)))
        for other in {"exact", "minibatch"} - {recommended}:
            with pytest.raises(MemtoolError):
                planned(replace(settings, estimator=Estimator(other)))


def test_auto_is_exact_where_minibatch_does_not_fit(runs):
    others, reference = selected(runs, "fc")
    settings = CkaSettings(batch_size=1500)
    minibatch = make_plan(
        others, [reference], 1500, replace(settings, estimator=Estimator.minibatch)
    )
    settings = replace(settings, memory=minibatch.memory.total // 2)
    with pytest.raises(MemtoolError, match="or --estimator exact"):
        make_plan(others, [reference], 1500, replace(settings, estimator=Estimator.minibatch))
    for processes in (1, 2):
        made = make_plan(others, [reference], 1500, settings, processes)
        assert made.estimator is Estimator.exact and made.memory.total <= settings.memory


@pytest.mark.parametrize(
    ("n", "batches"), [(4, [1, 1]), (7, [1, 1]), (8, [2, 1]), (40, [10, 1]), (500, [10, 1])]
)
def test_exact_and_unbiased_take_ten_batches_for_their_standard_error(runs, n, batches):
    others, reference = selected(runs, "fc")
    for estimator in ("exact", "unbiased", "minibatch"):
        settings = CkaSettings(estimator=Estimator(estimator), batch_size=500)
        found = len(make_plan(others, [reference], n, settings).batches)
        assert found == batches[estimator == "minibatch"]


def test_biased_is_another_name_of_exact(runs):
    others, reference = selected(runs)
    plans = [
        make_plan(others, [reference], 500, CkaSettings(estimator=estimator))
        for estimator in (Estimator.biased, Estimator.exact)
    ]
    assert plans[0] == plans[1] and str(plans[0]).startswith("exact CKA")


@pytest.mark.parametrize(("n", "told"), [(40, "1 batch of 40: "), (80, "2 batches of 40: ")])
def test_the_plan_is_told_in_good_english(runs, n, told):
    others, reference = selected(runs)
    settings = CkaSettings(estimator=Estimator.minibatch, batch_size=40)
    assert f" {n} examples, {told}" in str(make_plan(others, [reference], n, settings))


def test_the_plan_keeps_within_its_budget(runs):
    others, reference = selected(runs)
    settings = CkaSettings(estimator=Estimator.exact)
    passes = []
    for memory in (2**33, 2**29, 2**28, 2**27):
        made = make_plan(others, [reference], 10_000, replace(settings, memory=memory))
        assert made.memory.total <= memory
        passes.append(made.passes * len(made.groups))
    assert passes == sorted(passes) and passes[0] == 1 and passes[-1] > 2


def test_what_fits_into_no_budget_says_how_much_it_takes(runs):
    others, reference = selected(runs)
    settings = CkaSettings(estimator=Estimator.exact, memory=2**20)
    with pytest.raises(MemtoolError, match="exact CKA of these layers takes .* MiB or more"):
        make_plan(others, [reference], 10_000, settings)


@pytest.mark.parametrize("kernel", Kernel)
def test_minibatch_centers_a_chunk_of_a_wide_layer_unless_the_kernel_takes_all_of_it(runs, kernel):
    others, reference = selected(runs, "fc")
    wide = dict.fromkeys(reference.widths, 10 * CHUNK)
    for one in (*others, reference):
        vars(one)["widths"] = wide
    settings = CkaSettings(estimator=Estimator.minibatch, kernel=kernel)
    made = make_plan(others, [reference], 500, settings)
    features = 10 * CHUNK if kernel is Kernel.rbf else 2 * CHUNK
    assert made.memory.centered == 3 * 4 * made.batch_size * features


def test_a_batch_takes_several_passes_where_one_does_not_fit(runs):
    others, reference = selected(runs, "block6", "fc")
    settings = CkaSettings(estimator=Estimator.minibatch)
    whole = make_plan(others, [reference], 2000, settings)
    footprint = reference.footprint
    assert whole.portion == whole.batch_size == 250
    assert whole.memory.passes == footprint.of(250) and whole.memory.kept == 0
    portions = []
    for memory in range(whole.memory.total, 0, -(2**19)):
        settings = replace(settings, memory=memory)
        try:
            made = make_plan(others, [reference], 2000, settings)
        except MemtoolError as error:
            assert "minibatch CKA of these layers takes" in str(error)
            assert f"a forward pass takes {told_size(footprint.of(1))} and" in str(error)
            break
        assert made.memory.total <= memory
        assert made.batches == whole.batches  # they are part of the definition
        portions.append(made.portion)
        if made.portion < 250:
            widths = reference.widths.values()
            assert made.memory.kept == 4 * 250 * (sum(widths) + max(widths))
            assert f"a forward pass of {made.portion} images takes" in str(made)
    assert portions == sorted(portions, reverse=True) and portions[0] == 250 > portions[-1] > 0


@pytest.mark.parametrize("estimator", [Estimator.exact, Estimator.unbiased])
def test_a_forward_pass_takes_several_batches_where_these_are_small(runs, estimator):
    others, reference = selected(runs)
    settings = CkaSettings(estimator=estimator)
    ample = make_plan(others, [reference], 360, settings)
    assert ample.batch_size == 36 and ample.portion == 7 * 36  # at most 256
    stretches = ample.stretches(Processes())
    assert [len(stretch) for stretch in stretches] == [7, 3]
    assert [visit for some in stretches for visit in some] == ample.visits(Processes())
    portions = []
    for memory in range(ample.memory.total, 0, -(2**18)):
        try:
            made = make_plan(others, [reference], 360, replace(settings, memory=memory))
        except MemtoolError:
            break
        assert made.memory.total <= memory and len(made.groups) <= 2
        if made.blocks == ample.blocks and len(made.groups) == 1:
            portions.append(made.portion)
    assert portions == sorted(portions, reverse=True) and {252, 36} <= {*portions}
    # No pass has more examples than there are.
    few = make_plan(others, [reference], 61, replace(settings, batch_size=500))
    assert few.portion == 61
    assert [len(stretch) for stretch in few.stretches(Processes())] == [10]
    assert few.memory.passes == max(one.footprint.of(61) for one in (*others, reference))
    # What the examples are asked to come in at a time is not exceeded.
    assert make_plan(others, [reference], 360, replace(settings, batch_size=36)).portion == 36


def test_exact_takes_smaller_batches_where_a_forward_pass_is_large(runs):
    others, reference = selected(runs, "fc")
    footprint = Footprint(0, 2**24)
    others, reference = ([replace(one, footprint=footprint) for one in others],
                         replace(reference, footprint=footprint))  # fmt: skip
    settings = CkaSettings(estimator=Estimator.exact, memory=2**30)
    made = make_plan(others, [reference], 10_000, settings)
    assert 25 <= made.batch_size <= 32 and len(made.batches) % 10 == 0
    assert made.portion == made.batch_size and made.memory.passes <= 2**29
    minibatch = make_plan(
        others, [reference], 10_000, replace(settings, estimator=Estimator.minibatch)
    )
    assert minibatch.batch_size == 250 and 32 <= minibatch.portion < 64


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("memory", [2**33, 2**27])
def test_processes_share_all_tiles(runs, processes, memory):
    others, reference = selected(runs)
    settings = CkaSettings(estimator=Estimator.exact, kernel=Kernel.rbf, memory=memory)
    made = make_plan(others, [reference], 10_000, settings, processes)
    tiles, kept = [], []
    for rank in range(processes):
        visits = made.visits(Processes(rank, processes))
        assert visits[0].batch == 0  # every process takes its origin there
        for visit in visits:
            before = [batch for batch in visit.block if batch <= visit.batch]
            tiles += [(batch, visit.batch) for batch in before]
        kept += made.kept_in_feature_space(Processes(rank, processes))
    count = len(made.batches)
    assert sorted(tiles) == [(i, j) for i in range(count) for j in range(i, count)]
    assert sorted(kept) == list(range(count))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_the_batches_of_feature_space(runs, processes):
    others, reference = selected(runs, "block6", "fc")
    settings = CkaSettings(Pairs.all, Estimator.exact)
    made = make_plan(others, [reference], 10_000, settings, processes)
    assert not made.blocks and made.passes == 1
    kept = []
    for rank in range(processes):
        mine = made.kept_in_feature_space(Processes(rank, processes))
        visits = made.visits(Processes(rank, processes))
        assert visits[0].batch == 0 and set(mine) <= {visit.batch for visit in visits}
        kept += mine
    assert sorted(kept) == list(range(len(made.batches)))


def test_layers_far_narrower_than_there_are_examples_are_compared_in_feature_space(runs):
    def narrow(n, pairs, **changes):
        others, reference = selected(runs, "block1", "fc")
        settings = replace(CkaSettings(pairs, Estimator.exact), **changes)
        made = make_plan(others, [reference], n, settings)
        return {layer for layer, _ in made.groups[0][0].pairs(Route.covariance)}

    assert narrow(500, Pairs.same) == {"fc"}  # 10 features; block1 has 1,024
    assert narrow(100_000, Pairs.same) == narrow(100_000, Pairs.all) == {"block1", "fc"}
    assert narrow(500, Pairs.all) == set()  # all pairs or none
    assert narrow(100_000, Pairs.same, kernel=Kernel.rbf, memory=2**36) == set()
    assert narrow(100_000, Pairs.same, estimator=Estimator.minibatch) == set()


def test_memory_counts_every_reference(runs):
    """Of Gram matrices, those of all references and of one more network; of weights, all."""
    others, reference = selected(runs)
    settings = CkaSettings(estimator=Estimator.minibatch)
    one = make_plan(others[:1], [reference], 500, settings)
    two = make_plan(others[:1], [reference, others[1]], 500, settings)
    again = make_plan(others, [reference, others[1]], 500, settings)
    assert (one.cost, two.cost, again.cost) == (2, 3, 3)
    assert two.memory.grams == one.memory.grams * 3 / 2
    assert two.memory.weights == again.memory.weights == one.memory.weights + others[1].weights
    assert again.memory.total == two.memory.total  # a reference that is compared runs once


def test_all_comparisons_of_a_checkpoint_are_in_one_group(runs):
    others, reference = selected(runs)
    references = [reference, others[1]]
    settings = CkaSettings(estimator=Estimator.minibatch)
    whole = make_plan(others[:1] * 3, references, 500, settings)
    least = make_plan(others[:1], references, 500, settings)
    assert [len(group) for group in whole.groups] == [6]
    copies = [replace(others[0]) for _ in range(3)]  # networks of their own
    made = make_plan(copies, references, 500, replace(settings, memory=least.memory.total))
    assert [[one.selection for one in group] for group in made.groups] == [
        [copy, copy] for copy in copies
    ]
    assert "of a reference 3" in str(made)


@given(n=st.integers(1, 3000), size=st.integers(1, 400), multiple=st.sampled_from([1, 10]))
def test_batches_cover_all_examples_evenly(n, size, multiple):
    found = even_batches(n, size, multiple)
    assert found[0][0] == 0 and found[-1][1] == n
    assert all(stop == start for (_, stop), (start, _) in zip(found, found[1:], strict=False))
    sizes = [stop - start for start, stop in found]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(n, 4)
    assert max(sizes) <= max(size, 7)
