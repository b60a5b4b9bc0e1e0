"""Steps: what they need, when they are done, and how they look as commands."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from memtool import MemtoolError
from memtool.reproduction import RECIPES, Step, Study, pending, steps_for

DIGITS = RECIPES[Study.digits]
NOTHING: dict[str, str] = {}  # is known of the commands that made the files


def test_a_step_is_done_when_its_outputs_are_not_older_than_its_inputs(tmp_path):
    source, first, second = (tmp_path / name for name in ("source", "first", "second"))
    one = Step("x", ("a",), (Path("source"),), (Path("first"), Path("second")), tmp_path)
    source.touch()
    first.touch()
    assert not one.is_done(NOTHING)
    second.touch()
    assert one.is_done(NOTHING)
    os.utime(second, ns=(0, source.stat().st_mtime_ns - 1))
    assert not one.is_done(NOTHING)
    second.touch()
    source.unlink()
    assert not one.is_done(NOTHING)


def test_a_step_is_not_done_by_another_command(tmp_path):
    words = ("cka", Path("a.safetensors"), "--layers", "block?")
    one = Step("x", words, (), (Path("x"),), tmp_path)
    (tmp_path / "x").touch()
    elsewhere = replace(one, root=Path("elsewhere"))
    assert elsewhere.recorded == one.recorded == "memtool cka a.safetensors --layers 'block?'"
    assert one.command == f"memtool cka {tmp_path}/a.safetensors --layers 'block?'"
    assert one.is_done({"x": elsewhere.recorded})
    assert not one.is_done({"x": "memtool cka b.safetensors --layers 'block?'"})


def test_every_step_comes_after_those_it_needs():
    steps = steps_for(DIGITS.but(seeds=2), Path("out"))
    made = set()
    for one in steps:
        assert made.issuperset(one.inputs)
        assert made.isdisjoint(one.outputs)
        made |= {*one.outputs}


def test_what_needs_a_pending_step_is_pending(tmp_path):
    a, b, c = (Path(name) for name in "abc")
    steps = [Step(str(out), (), inputs, (out,), tmp_path) for inputs, out in (((), a), ((a,), b))]
    steps.append(Step("c", (), (), (c,), tmp_path))
    for path in (a, b, c):
        (tmp_path / path).touch()
    assert not list(pending(steps, NOTHING))
    assert [one.name for one in pending(steps, {"a": "memtool other"})] == ["a", "b"]


def test_a_changed_option_changes_what_depends_on_it_alone():
    def commands(recipe):
        return {one.name: one.recorded for one in steps_for(recipe, Path("out"))}

    def changed(**chosen):
        before, after = commands(DIGITS), commands(DIGITS.but(**chosen))
        assert before.keys() == after.keys()
        return {name.split()[0] for name in before if before[name] != after[name]}

    assert changed(cuts="block1") == changed(stitch="--epochs 1") == {"stitching"}
    assert changed(layers="fc") == changed(cka="--estimator minibatch") == {"cka", "supplement"}
    assert changed(train="--augment crop-flip") == changed(model="cnn") == {"train"}
    assert changed(epochs=21) == {"train", "cka"}
    assert changed(data="digits?samples_train=100") == {"labels", "train"}
    # More noise ratios, or seeds, change the figures alone.
    more = DIGITS.but(ratios=(*DIGITS.ratios, 80), supplement=DIGITS.supplemented, seeds=2)
    before, after = commands(DIGITS), commands(more)
    assert {n for n in before if before[n] != after[n]} == {n for n in before if " " not in n}


def test_the_supplement_is_made_of_a_few_noise_ratios_unless_others_are_chosen():
    def supplements(recipe):
        names = [one.name for one in steps_for(recipe, Path("out"))]
        return [
            name.removeprefix("supplement ") for name in names if name.startswith("supplement ")
        ]

    assert supplements(DIGITS) == ["r5-s0", "r15-s0", "r37.5-s0", "r67.5-s0"]
    assert supplements(DIGITS.but(ratios=(0, 25, 50))) == ["r25-s0", "r50-s0"]
    assert supplements(DIGITS.but(ratios=(0,))) == ["r0-s0"]
    assert supplements(DIGITS.but(supplement=(50.0, 0))) == ["r0-s0", "r50-s0"]
    with pytest.raises(MemtoolError, match="--supplement 40%: the noise ratios are 0 5 10"):
        DIGITS.but(supplement=(40,))


def test_the_ceiling_is_the_clean_network_in_another_order():
    (first, ceiling) = (
        next(one for one in steps_for(DIGITS.but(seeds=4), Path("out")) if one.name == name)
        for name in ("train r0-s3", "train ceiling-s3")
    )
    at = ceiling.words.index("--order-seed")
    assert ceiling.words[at + 1] == "13"
    same = [
        str(word).replace("ceiling", "r0")
        for word in (*ceiling.words[:at], *ceiling.words[at + 2 :])
    ]
    assert same == [*map(str, first.words)]


def test_checkpoints_are_compared_with_their_own_run_and_the_clean_one():
    recipe = DIGITS.but(ratios=(0, 50), saved=(1, 8))
    steps = {one.name: one.command for one in steps_for(recipe, Path("out"))}
    assert steps["cka r50-s0"] == (
        "memtool cka out/runs/r50-s0/epoch-0001.safetensors out/runs/r50-s0/epoch-0008.safetensors "
        "out/runs/r50-s0.safetensors --reference out/runs/r50-s0.safetensors "
        "--reference out/runs/r0-s0.safetensors --layers 'block?,fc' --estimator exact "
        "--memory 48MiB -q -o out/tables/cka-r50-s0.csv"
    )
