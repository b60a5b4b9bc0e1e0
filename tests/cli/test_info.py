"""memtool info: rows of files and of layers."""

import json

from safetensors.torch import save_file

from memtool.models import build, parse


def test_layers_of_a_checkpoint_are_listed_in_order_of_execution(run, runs):
    result = run("info", "--layers", runs.clean)
    lines = [line.split(",") for line in result.stdout.splitlines()]
    assert lines[0] == ["checkpoint", "layer", "type", "shape", "cut", "same_as"]
    assert [line[1] for line in lines[1:4]] == ["block1.conv", "block1.norm", "block1.relu"]
    assert lines[4][1:5] == ["block1", "Sequential", "16x8x8", "true"]
    assert lines[-1][1:5] == ["fc", "Linear", "10", "false"]


def test_shapes_follow_the_size_of_the_images(run, tmp_path):
    weights = tmp_path / "resnet.safetensors"
    save_file(build(parse("resnet18?width=4&num_classes=3")).state_dict(), weights)
    options = ("--layers", "--image-size", 20, "--format", "jsonl")
    shapes = [json.loads(line) for line in run("info", weights, *options).stdout.splitlines()]
    assert {row["layer"]: row["shape"] for row in shapes}["layer2"] == "8x10x10"


def test_a_size_that_the_network_cannot_take_is_an_error_of_one_line(run, runs):
    result = run("info", "--layers", runs.clean, "--image-size", 16)
    assert result.code == 1 and result.stdout == ""
    assert "(1, 16, 16)" in result.stderr and result.stderr.count("\n") == 1


def test_rows_of_several_files_stand_in_their_order(run, runs):
    result = run("info", runs.noisy_labels, runs.clean, "--format", "jsonl")
    kinds = [json.loads(line)["kind"] for line in result.stdout.splitlines()]
    assert kinds == ["labels", "checkpoint"]
