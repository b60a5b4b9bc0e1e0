"""Descriptions of files and of layers, as memtool info prints them."""

import subprocess
import sys

import pytest
import torch

from memtool.checkpoints import file_rows
from memtool.tensors import load_tensors, read_metadata, save_tensors


def test_the_row_of_a_file_counts_its_parameters_without_buffers(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {
        "weight": torch.zeros(3, 4),
        "half": torch.zeros(5, dtype=torch.float16),
        "norm.running_mean": torch.zeros(7),
        "norm.num_batches_tracked": torch.tensor(0),
        "mask": torch.zeros(2, dtype=torch.bool),
        "image": torch.zeros(2, dtype=torch.uint8),
        "eighth": torch.zeros(2).to(torch.float8_e5m2),
    }
    save_tensors(path, "other", tensors, {})
    (row,) = file_rows([path], None)
    assert (row["kind"], row["model"], row["model_from"]) == ("other", None, None)
    assert (row["parameters"], row["tensors"]) == (19, 7)
    assert row["types"] == "bool float16 float32 float8_e5m2 int64 uint8"
    assert row["bytes"] == path.stat().st_size


def test_the_row_of_a_checkpoint_says_how_its_model_is_known(runs):
    (row,) = file_rows([runs.noisy], None)
    assert row["model_from"] == "metadata" and row["noise_ratio"] == 0.5 and row["epoch"] == 2
    (labels,) = file_rows([runs.noisy_labels], None)
    assert labels["kind"] == "labels" and labels["noise_ratio"] == 0.5 and labels["model"] is None


@pytest.mark.parametrize(
    "name, changed",
    [
        ("data", {"data": None}),
        ("noise", {"noise": 3}),
        ("seed", {"noise": {"ratio": 0.5, "kind": "uniform", "seed": "x"}}),
        ("ratio", {"noise": {"ratio": [], "seed": 0}}),
    ],
)
def test_metadata_of_labels_that_lie_are_one_error(run, runs, tmp_path, name, changed):
    path = tmp_path / "labels.safetensors"
    metadata = {**read_metadata(runs.noisy_labels), **changed}
    save_tensors(path, "labels", load_tensors(runs.noisy_labels), metadata)
    result = run("info", path)
    assert result.code == 1 and result.stderr.startswith(f"memtool: error: {path}: its ")
    assert f"{name!r}" in result.stderr and result.stderr.count("\n") == 1


def test_sections_of_another_kind_are_not_read(runs, tmp_path):
    path = tmp_path / "labels.safetensors"
    metadata = {
        **read_metadata(runs.noisy_labels),
        "training": 3,
        "model": 3,
        "metrics": {"loss": ""},
    }
    save_tensors(path, "labels", load_tensors(runs.noisy_labels), metadata)
    ((row,), (before,)) = (list(file_rows([file], None)) for file in (path, runs.noisy_labels))
    differing = {"file", "bytes"}
    assert {key for key in row if row[key] != before[key]} <= differing


def test_a_file_of_memtools_own_is_described_without_torch(runs):
    code = (
        "import sys; from pathlib import Path; from memtool.checkpoints import file_rows; "
        "assert list(file_rows([Path(sys.argv[1])], None)); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code, str(runs.clean)]).returncode == 0
