"""memtool train: dry runs."""

import csv
import io
import json

import torch
from safetensors.torch import load_file

from memtool.data import LabelFile
from memtool.training.defaults import told


def test_a_dry_run_checks_the_settings_and_writes_nothing(run, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(
        *("train", "--model", "digits-cnn", "--labels", runs.noisy_labels, "--save-every", 1),
        *("-o", "runs/r50.safetensors", "--table", "runs/r50.csv", "--dry-run"),
    )
    assert (result.code, result.stderr, list(tmp_path.iterdir())) == (0, "", [])
    settings = json.loads(result.stdout)
    assert settings["output"] == "runs/r50.safetensors"
    assert settings["data"]["name"] == "digits"
    assert settings["model"]["name"] == "digits-cnn"
    assert settings["training"] == {
        "epochs": 20,
        "batch_size": 64,
        "optimizer": "adamw",
        "learning_rate": 0.003,
        "weight_decay": 0.01,
        "schedule": "linear",
        "warmup": 0.1,
        "seed": 0,
        "augment": "none",
        "clip_norm": None,
        "decay_norm": False,
        "sync_batch_norm": False,
        "precision": "float32",
        "compile": False,
        "evaluate_every": 1,
        "labels": LabelFile.load(runs.noisy_labels).fingerprint,
        "saved_epochs": list(range(1, 21)),
        "processes": 1,
        "noise_ratio": 0.5,
        "noise_kind": "uniform",
        "noise_seed": 0,
        "epoch": 0,
        "steps": 0,
    }


def test_without_epochs_the_initial_model_is_kept(run, tmp_path):
    train = ("train", "--model", "digits-cnn", "--data", "digits", "--seed", 3, "-q")
    first, trained = tmp_path / "0.safetensors", tmp_path / "1.safetensors"
    for _ in range(2):
        result = run(*train, "--epochs", 0, "--resume", "-o", first, "--format", "csv")
        assert (result.code, result.stderr) == (0, "")
        assert result.stdout.startswith("checkpoint,") and result.stdout.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
    assert run(*train, "--epochs", 1, "--save-at", 0, "-o", trained).code == 0
    initial = load_file(tmp_path / "1" / "epoch-0000.safetensors")
    assert all(torch.equal(tensor, initial[key]) for key, tensor in load_file(first).items())
    (row,) = csv.DictReader(io.StringIO(run("info", first).stdout))
    assert (row["epoch"], row["steps"], row["test_accuracy"]) == ("0", "0", "")


def test_the_defaults_are_those_of_the_network(run, folder, tmp_path):
    train = ("train", "--data", f"folder:{folder}", "-o", tmp_path / "r.safetensors", "--dry-run")
    chosen = ("--augment", "crop-flip", "--schedule", "step", "--clip-norm", 2, "--decay-norm")
    training = {}
    for model, more in (("resnet18?width=4", ()), ("cnn", chosen), ("digits-cnn", chosen)):
        result = run(*train, "--model", model, *more)
        assert result.code == 0, result.stderr
        training[model] = json.loads(result.stdout)["training"]
    resnet, cnn, digits = training.values()
    assert (resnet["optimizer"], resnet["learning_rate"], resnet["epochs"]) == ("sgd", 0.1, 50)
    assert (resnet["schedule"], resnet["batch_size"]) == ("cosine", 16)  # of 64 images
    assert (cnn["schedule"], cnn["epochs"], cnn["clip_norm"]) == ("step", 200, 2.0)
    assert (digits["optimizer"], digits["epochs"], digits["decay_norm"]) == ("adamw", 20, True)


def test_the_help_names_the_defaults(run):
    text = "".join(run("train", "--help").stdout.split())
    for name in ("epochs", "learning_rate", "weight_decay", "batch_size", "optimizer", "schedule"):
        assert "".join(told(name).split()) in text
