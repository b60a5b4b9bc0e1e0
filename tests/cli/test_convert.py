"""memtool convert: its options."""

import torch


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
