"""memtool cka: its options, and the rows that it writes."""

import csv
import io
import json
import sys

import pytest

from memtool.cli import options


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def values(result):
    assert result.code == 0, result.stderr
    return {(r["layer"], r["reference_layer"]): float(r["cka"]) for r in rows(result.stdout)}


def test_rows_go_by_the_layers_own_names_in_order_of_execution(run, runs):
    result = run("cka", runs.noisy, runs.clean, "--layers", "fc,block2*", "--pairs", "all")
    names = ["block2.conv", "block2.norm", "block2.relu", "block2.pool", "block2", "fc"]
    assert [(r["layer"], r["reference_layer"]) for r in rows(result.stdout)] == [
        (a, b) for a in names for b in names
    ]
    assert values(result)["block2.pool", "fc"] == values(result)["block2", "fc"]


def test_every_condition_is_a_column(run, runs):
    command = ("cka", runs.noisy, runs.clean, "--layers", "fc", "--seed", 3)
    exact, rbf = (
        rows(run(*command, *more).stdout)[0]
        for more in ((), ("--estimator", "minibatch", "--kernel", "rbf", "--bandwidth", 0.5))
    )
    assert (exact["estimator"], exact["kernel"], exact["bandwidth"]) == ("exact", "linear", "")
    assert (rbf["estimator"], rbf["kernel"], rbf["bandwidth"]) == ("minibatch", "rbf", "0.5")
    assert (exact["n"], exact["sample_seed"], exact["precision"]) == ("500", "3", "float32")
    assert (exact["batch_size"], rbf["batch_size"]) == ("50", "250")
    assert 0 < float(exact["cka_se"]) < 0.1 and 0 < float(rbf["cka_se"])


def test_a_dry_run_checks_the_settings_and_writes_nothing(run, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ("cka", runs.noisy, runs.clean, "--layers", "block?,fc", "--pairs", "all")
    result = run(*command, "--dry-run", "-o", "rows.csv", "--estimator", "minibatch", "-q")
    assert (result.code, result.stderr, list(tmp_path.iterdir())) == (0, "", [])
    settings = json.loads(result.stdout)
    layers = [*(f"block{n}" for n in range(1, 7)), "fc"]
    assert settings["compared"] == [
        {
            "checkpoint": str(runs.noisy),
            "reference": str(runs.clean),
            "layers": layers,
            "reference_layers": layers,
            "rows": 49,
        }
    ]
    assert (settings["pairs"], settings["estimator"], settings["n"]) == ("all", "minibatch", 500)
    assert settings["batch_size"] == 250
    assert run("cka", runs.noisy, runs.clean, "--layers", "fcc", "--dry-run").code == 1


@pytest.mark.parametrize(
    "size", ["4", "GiB", "-1GiB", "4XiB", "\u0664GiB", "4.GiB", ".G", "4i", "4G\u0131B"]
)
def test_sizes_that_are_none(run, runs, size):
    assert run("cka", runs.noisy, runs.clean, f"--memory={size}").code == 2


@pytest.mark.parametrize(
    "text, size",
    [
        ("12B", 12),
        ("3KiB", 3 * 2**10),
        ("3KB", 3000),
        ("1.5 GB", 1_500_000_000),
        ("1.5G", 3 * 2**29),
        ("2Gi", 2**31),
        ("1TB", 10**12),
        ("5gib", 5 * 2**30),
        ("6kb", 6000),
        ("7m", 7 * 2**20),
        (".25K", 256),
        (" 8  MiB ", 2**23),
        ("9" * 400 + "T", sys.maxsize),
    ],
)
def test_sizes_are_in_powers_of_1000_or_1024_as_their_units_say(text, size):
    assert options.size(text) == size


def test_layers_of_other_names(run, runs):
    command = ("cka", runs.noisy, runs.clean, "--layers", "block1,block2", "--layers-reference")
    found = values(run(*command, "block2,block3"))
    assert list(found) == [("block1", "block2"), ("block2", "block3")]
    assert list(values(run(*command, "fc", "--pairs", "all"))) == [
        ("block1", "fc"),
        ("block2", "fc"),
    ]
    assert "2 layers chosen, but 1 of" in run(*command, "fc").stderr
    assert "no layer matches 'blok'" in run(*command, "blok").stderr


@pytest.mark.parametrize("bandwidth", ["0", "-1", "nan"])
def test_a_bandwidth_is_positive(run, runs, bandwidth):
    result = run("cka", runs.noisy, runs.clean, "--kernel", "rbf", f"--bandwidth={bandwidth}")
    assert result.code == 2 and "is not positive" in result.stderr


def test_numbers_that_no_table_or_checkpoint_holds_are_refused(run, runs, tmp_path):
    train = ("train", "--model", "digits-cnn", "--data", "digits", "-o", tmp_path / "r.safetensors")
    for command, option in (
        (("cka", runs.noisy, runs.clean, "--kernel", "rbf"), "--bandwidth"),
        (train, "--learning-rate"),
        (train, "--weight-decay"),
    ):
        result = run(*command, option, "inf")
        assert result.code == 2 and f"Invalid value for {option}" in result.stderr.replace("'", "")


def test_biased_is_another_name_of_exact(run, runs):
    command = ("cka", runs.noisy, runs.clean, "--layers", "block?", "--estimator")
    assert run(*command, "biased").stdout == run(*command, "exact").stdout
