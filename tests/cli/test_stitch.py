"""memtool stitch: dry runs."""

import json


def test_a_dry_run_checks_the_settings_and_writes_nothing(run, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(
        *("stitch", runs.noisy, runs.clean, "--at", "block1,block6", "--both", "--dry-run"),
        *("-o", "rows.csv", "--save", "stitched"),
    )
    assert (result.code, result.stderr, list(tmp_path.iterdir())) == (0, "", [])
    settings = json.loads(result.stdout)
    assert settings["back"] == str(runs.clean)
    assert settings["cuts"] == {str(runs.noisy): ["block1=block1", "block6=block6"]}
    assert (settings["init"], settings["epochs"], settings["learning_rate"]) == ("lstsq", 5, 0.002)
