"""memtool convert: its options."""

import shutil

import torch
from safetensors.torch import load_file, save_file

from memtool.checkpoints import Checkpoint


def test_the_output_is_a_file(run, tmp_path):
    torch.save({"fc.weight": torch.ones(2, 3)}, tmp_path / "w.pth")
    assert run("convert", tmp_path / "w.pth", "-o", "-").code == 2
    assert run("convert", tmp_path / "w.pth", "-o", tmp_path).code == 2
    assert run("convert", tmp_path / "w.pth").code == 2


def test_a_model_spec_that_cannot_be_read_is_named(run, tmp_path):
    torch.save({"fc.weight": torch.ones(2, 3)}, tmp_path / "w.pth")
    output = ("-o", tmp_path / "out.safetensors")
    result = run("convert", tmp_path / "w.pth", "--model", "resnet18?depth", *output)
    assert result.code == 1 and "depth" in result.stderr and result.stderr.count("\n") == 1


def test_only_checkpoints_that_were_converted_are_replaced(run, tmp_path, runs):
    weights, output = tmp_path / "w.safetensors", tmp_path / "out.safetensors"
    save_file(load_file(runs.clean), weights)
    spec = Checkpoint.open(runs.clean).spec
    convert = ("convert", weights, "--model", str(spec), "-o")
    assert run(*convert, output).code == run(*convert, output).code == 0
    trained, other = tmp_path / "run.safetensors", tmp_path / "other.safetensors"
    shutil.copy(runs.clean, trained)
    other.write_text("notes")
    for file, why in (
        (weights, "is what is read"),
        (trained, "was trained by memtool, and is not replaced"),
        (other, "it is not replaced"),
    ):
        before = file.read_bytes()
        result = run(*convert, file)
        assert result.code == 1 and f"{file}: " in result.stderr and why in result.stderr
        assert file.read_bytes() == before
