"""memtool make-noisy: dry runs, transition matrices from files."""

import numpy as np
import pytest

from memtool.data import LabelFile


def test_a_matrix_file_is_used_and_recorded(run, tmp_path):
    next_class = np.roll(np.eye(10), 1, axis=1)
    matrix, labels = tmp_path / "next.txt", tmp_path / "labels.safetensors"
    np.savetxt(matrix, next_class, delimiter=",")
    assert run("make-noisy", "digits", "-r", "1", "--matrix", matrix, "-o", labels).code == 0
    file = LabelFile.load(labels)
    assert (file.given == (file.true + 1) % 10).all()
    assert file.metadata["noise"] == {
        "ratio": 1.0,
        "kind": "matrix",
        "seed": 0,
        "matrix": next_class.tolist(),
    }


@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "not a transition matrix"),
        ("0.5 0.5\n", "10 x 10"),
        ("0.5 0.5\n1\n", "not a transition matrix"),
        ("a b\n", "not a transition matrix"),
        ("\x80", "not a transition matrix"),
    ],
    ids=["empty", "shape", "ragged", "words", "binary"],
)
def test_a_bad_matrix_file_is_an_error_that_names_it(run, tmp_path, text, problem):
    matrix, labels = tmp_path / "t.txt", tmp_path / "labels.safetensors"
    matrix.write_bytes(text.encode("latin-1"))
    result = run("make-noisy", "digits", "-r", "1", "--matrix", matrix, "-o", labels)
    assert result.code == 1
    assert result.stderr.startswith(f"memtool: error: {matrix}: ") and problem in result.stderr
    assert result.stderr.count("\n") == 1
    assert not labels.exists()


def test_a_dry_run_checks_the_settings_and_writes_nothing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("make-noisy", "digits", "-r", "0,37.5%", "--seed", 3, "--dry-run")
    result = run(*arguments, "-o", "labels/r{ratio}.safetensors")
    assert (result.code, result.stderr, list(tmp_path.iterdir())) == (0, "", [])
    assert result.stdout == (
        '{"output": "labels/r0.safetensors", "data": "digits", "ratio": 0.0, '
        '"kind": "uniform", "seed": 3}\n'
        '{"output": "labels/r37.5.safetensors", "data": "digits", "ratio": 0.375, '
        '"kind": "uniform", "seed": 3}\n'
    )
