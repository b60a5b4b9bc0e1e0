"""What a reproduction refuses before the work, though a later command would find it."""

import dataclasses

import pytest

from memtool.cli import main
from memtool.reproduction import RECIPES, Study, rehearse

DIGITS = RECIPES[Study.digits]


@pytest.mark.parametrize(
    "option, choice, told",
    [
        ("--layers", "blok?", "cka r0-s0: {}/runs/r0-s0.safetensors: no layer matches 'blok?'"),
        ("--cuts", "blok?", "stitching r0-s0: {}/runs/r0-s0.safetensors: no layer matches"),
    ],
)
def test_what_a_later_step_refuses_is_told_before_anything_is_trained(
    run, tmp_path, option, choice, told
):
    out = tmp_path / "out"
    result = run("reproduce", "digits", "-o", out, option, choice)
    assert result.code == 1 and told.format(out) in result.stderr
    assert "nearest: block" in result.stderr and result.stderr.count("\n") == 1
    assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == []


def test_what_works_is_not_refused_and_leaves_nothing(tmp_path):
    chosen = DIGITS.but(layers="fc", cuts="block4", train="--save-every 7")
    rehearse(chosen, tmp_path, main)  # and trains nothing
    assert list(tmp_path.iterdir()) == []


def test_the_commands_of_a_study_need_no_rehearsal():
    assert DIGITS.but(seeds=3, ratios=(0, 50), epochs=4).is_tried
    for name, value in (("layers", "fc"), ("model", "cnn"), ("stitch", "--epochs 1")):
        assert not dataclasses.replace(DIGITS, **{name: value}).is_tried
    assert not DIGITS.small().is_tried
