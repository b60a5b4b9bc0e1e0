"""memtool train: dry runs."""

import json


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
        "noise_ratio": 0.5,
        "noise_kind": "uniform",
        "noise_seed": 0,
        "epoch": 0,
        "steps": 0,
    }
