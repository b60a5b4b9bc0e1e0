"""memtool make-noisy: dry runs, transition matrices and labels from files."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from memtool.data import LabelFile, load
from memtool.tensors import read_metadata


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


@pytest.mark.parametrize("name", ["t.npy", "t.csv"])
def test_a_matrix_as_papers_print_it_is_rescaled_and_told(run, tmp_path, name):
    matrix, labels = tmp_path / name, tmp_path / "labels.safetensors"
    printed = np.full((10, 10), 0.0444)
    np.fill_diagonal(printed, 0.6)
    if name == "t.npy":
        np.save(matrix, printed.astype(np.float32))
    else:
        np.savetxt(matrix, printed, fmt="%.4f", delimiter=",")
    result = run("make-noisy", "digits", "-r", "1", "--matrix", matrix, "-o", labels)
    assert f"{matrix}: 10 of its rows do not sum to 1" in result.stderr
    recorded = np.array(LabelFile.load(labels).metadata["noise"]["matrix"])
    assert recorded.sum(axis=1) == pytest.approx(np.ones(10), abs=1e-12)


def test_a_matrix_with_names_is_told_how_to_be_saved(run, tmp_path):
    matrix, labels = tmp_path / "t.csv", tmp_path / "labels.safetensors"
    rows = [",".join([str(label), *["0.1"] * 10]) for label in range(10)]
    for text in ("," + ",".join("abcdefghij") + "\n" + "\n".join(rows), "\n".join(rows)):
        matrix.write_text(text)
        result = run("make-noisy", "digits", "-r", "1", "--matrix", matrix, "-o", labels)
        assert result.code == 1 and "without a header or an index" in result.stderr
        assert "usecols" not in result.stderr


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


@pytest.fixture
def others(tmp_path):
    """The true labels of the digits and some that others made, of which 130 differ."""
    true = load("digits").train.labels
    given = true.copy()
    given[:130] = (true[:130] + 1) % 10
    np.savez(tmp_path / "others.npz", given=given, true=true)
    return tmp_path / "others.npz", given


def test_labels_that_others_made_are_taken_and_recorded(run, tmp_path, others):
    source, given = others
    labels, trained = tmp_path / "l.safetensors", tmp_path / "r.safetensors"
    result = run("make-noisy", "digits", "--from", f"{source}:given", "-o", labels)
    assert (result.code, result.stdout) == (0, "")
    assert result.stderr == f"{labels}: 130 of 1297 mislabelled\n"
    file = LabelFile.load(labels)
    assert (file.given == given).all() and file.mislabelled.sum() == 130
    noise = file.metadata["noise"]
    assert (noise["ratio"], noise["kind"], noise["seed"]) == (130 / 1297, "given", None)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert noise["source"] == {"file": "others.npz", "key": "given", "sha256": digest}
    options = ("--model", "digits-cnn", "--labels", labels, "--epochs", 1, "-o", trained)
    rows = run("train", *options, "--format", "jsonl").stdout
    assert '"noise_kind": "given"' in rows and f'"noise_ratio": {130 / 1297}' in rows
    assert read_metadata(trained)["training"]["noise_source"] == noise["source"]
    assert "given" in run("info", labels, trained).stdout
    assert run("cka", trained, trained, "--layers", "fc").code == 0


def test_labels_of_all_images_serve_a_part_of_them(run, tmp_path, others):
    source, given = others
    spec, labels = "digits?samples_train=500", tmp_path / "l.safetensors"
    result = run("make-noisy", spec, "--from", f"{source}:given", "-o", labels)
    assert result.code == 0, result.stderr
    assert "has labels of 1297 examples, of which 500 are chosen" in result.stderr
    chosen = load(spec).chosen
    assert (LabelFile.load(labels).given == given[chosen]).all()


def test_labels_that_others_made_take_the_place_of_random_ones(run, tmp_path, others):
    source = f"{others[0]}:given"
    target = tmp_path / "l.safetensors"
    for more in (["-r", "5%"], ["--kind", "pairflip"], ["--matrix", "m.txt"]):
        result = run("make-noisy", "digits", "--from", source, *more, "-o", target)
        assert result.code == 2 and "--from" in result.stderr
    dry = run("make-noisy", "digits", "--from", source, "-o", target, "--dry-run")
    assert json.loads(dry.stdout)["source"]["key"] == "given" and not target.exists()


def test_train_says_what_to_do_with_labels_that_others_made(run, tmp_path, others):
    options = ("--model", "digits-cnn", "-o", tmp_path / "r.safetensors")
    for source in (others[0], f"{others[0]}:given"):
        result = run("train", *options, "--labels", source)
        assert result.code == 1
        assert f"memtool make-noisy DATASET --from {source} -o" in result.stderr


def test_only_label_files_are_replaced(run, tmp_path, runs):
    data, trained = tmp_path / "data.safetensors", tmp_path / "run.safetensors"
    save_file({"images": np.zeros((9, 8, 8), np.uint8), "labels": np.arange(9) % 3}, data)
    shutil.copy(runs.clean, trained)
    labels = tmp_path / "labels.safetensors"
    noisy = ("make-noisy", f"{data}?split_at=6", "-r", "50%")
    assert run(*noisy, "-o", labels).code == run(*noisy, "-o", labels).code == 0
    again = (*noisy[:2], "--from", f"{labels}:given", "-o", labels)
    for command, file, why in (
        ((*noisy, "-o", data), data, "memtool did not write it; it is not replaced"),
        ((*noisy, "-o", trained), trained, "is a checkpoint file, not a labels file; it is not"),
        (again, labels, "is what is read; choose another -o"),
    ):
        before = file.read_bytes()
        result = run(*command)
        assert result.code == 1 and f"{file}: " in result.stderr and why in result.stderr
        assert file.read_bytes() == before
