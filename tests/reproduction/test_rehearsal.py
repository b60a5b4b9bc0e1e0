"""What a reproduction refuses before the work, though a later command would find it."""

import dataclasses

import pytest

from memtool import MemtoolError
from memtool.cli import main
from memtool.reproduction import (
    RECIPES,
    Record,
    Study,
    adopt_trained,
    check_unrecorded,
    rehearse,
    run_steps,
    steps_for,
)

DIGITS = RECIPES[Study.digits]


@pytest.mark.parametrize(
    "option, choice, told",
    [
        ("--layers", "blok?", "cka r0-s0 (--layers, --cka): model {}: no layer matches 'blok?'"),
        ("--cka", "--layers-reference blok?", "cka r0-s0 (--layers, --cka): model {}: no layer"),
        ("--cuts", "blok?", "stitching r0-s0 (--cuts, --stitch): model {}: no layer matches"),
        ("--stitch", "--foo", "stitching r0-s0 (--cuts, --stitch): Error: No such option"),
        ("--train", "--augment foo", "train r0-s0 (--data, --model, --train): Error: Invalid"),
    ],
)
def test_what_a_later_step_refuses_is_told_before_anything_is_trained(
    run, tmp_path, option, choice, told
):
    out, model = tmp_path / "new" / "out", "digits-cnn?channels=1"
    result = run("reproduce", "digits", "--model", model, "-o", out, option, choice)
    assert result.code == 1 and told.format(model) in result.stderr
    assert ("nearest: block" in result.stderr) is ("blok?" in choice)
    assert result.stderr.count("\n") == 1 and str(tmp_path) not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_works_is_not_refused_and_leaves_nothing(tmp_path):
    chosen = DIGITS.but(layers="fc", cuts="block4", train="--save-every 7")
    rehearse(chosen, tmp_path, main)  # and trains nothing
    assert list(tmp_path.iterdir()) == []


def test_the_commands_of_a_study_need_no_rehearsal():
    assert DIGITS.but(seeds=3, ratios=(0, 50), epochs=4).is_tried
    for name, value in (("layers", "fc"), ("model", "cnn"), ("stitch", "--epochs 1")):
        assert not dataclasses.replace(DIGITS, **{name: value}).is_tried
    assert not DIGITS.small().is_tried


def test_a_network_that_make_trained_anew_is_known_by_its_settings(run, tiny_recipe, tmp_path):
    recipe = tiny_recipe.but(data="digits?samples_train=60", epochs=1, saved=())
    labels, train, *_ = steps_for(recipe, tmp_path)
    steps, path = [labels, train], tmp_path / "steps.csv"
    list(run_steps(steps, 1, main, Record(path)))

    def is_taken():
        record = Record(path)
        check_unrecorded(steps, record.commands, main)
        adopt_trained(steps, record, main)
        return not train.is_stale(Record(path).commands)

    digest = Record(path).rows[train.key]["digest"]
    path.write_text(path.read_text().replace(digest, "of other bytes"))
    assert is_taken()
    (tmp_path / train.key).unlink()
    assert run(*train.arguments, "--batch-size", 30).code == 0
    assert not is_taken()
    path.unlink()
    with pytest.raises(MemtoolError, match="other settings: training.batch_size was 30, is 64"):
        is_taken()
