"""`memtool stitch`: rows, saved models, stopped sweeps, torchrun."""

import csv
import io
import os
import subprocess
import sys

import pytest
import torch

from memtool import data, models
from memtool.checkpoints import Checkpoint
from memtool.layers import footprint
from memtool.stitching import sweep
from memtool.stitching.execution import Stitching
from memtool.tensors import load_tensors, read_metadata, save_tensors


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def stitch(run, runs):
    """`memtool stitch noisy clean --at block5 ...` as rows."""

    def call(*args: object, at: str = "block5") -> list[dict[str, str]]:
        result = run("stitch", runs.noisy, runs.clean, "--at", at, *args)
        assert result.code == 0, result.stderr
        return rows_of(result.stdout)

    return call


@pytest.fixture(scope="module")
def table_of_all(stitch):
    return stitch("--both", "--control", "--epochs", 1, at="block4,block5")


COLUMNS = """
front back direction front_layer back_layer front_model back_model data front_epoch back_epoch
front_noise_ratio back_noise_ratio front_noise_kind back_noise_kind front_noise_seed back_noise_seed
front_seed back_seed connector batch_norm
parameters init optimizer epochs epoch learning_rate batch_size seed n loss test_accuracy
front_accuracy back_accuracy agreement control_accuracy stitched
"""


def test_the_columns_are_an_interface(table_of_all):
    assert list(table_of_all[0]) == COLUMNS.split()


def test_a_row_for_each_cut_and_direction_with_its_conditions(table_of_all, runs):
    assert [(row["front_layer"], row["direction"]) for row in table_of_all] == [
        (cut, direction)
        for cut in ("block4", "block5")
        for direction in ("forward", "reverse", "control")
    ]
    first = table_of_all[0]
    assert (first["front"], first["back"]) == (str(runs.noisy), str(runs.clean))
    assert (first["front_noise_ratio"], first["back_noise_ratio"]) == ("0.5", "0.0")
    assert [row["connector"] for row in table_of_all[::3]] == ["conv1x1", "linear"]
    assert [row["parameters"] for row in table_of_all[::3]] == ["1056", "16512"]
    settings = ("optimizer", "epochs", "epoch", "learning_rate", "batch_size", "seed", "n")
    assert [first[name] for name in settings] == ["adam", "1", "1", "0.002", "128", "0", "500"]


def test_each_row_has_the_accuracy_of_the_control_at_its_cut(table_of_all):
    for rows in (table_of_all[:3], table_of_all[3:]):
        assert {row["control_accuracy"] for row in rows} == {rows[-1]["test_accuracy"]}


def test_all_passes_are_in_float32(run, runs, monkeypatch):
    """As training steps are: by itself PyTorch lets convolutions on CUDA take less."""
    allowed, forward = [], torch.nn.Conv2d.forward

    def seen(self, images):
        if len(images) > 4:  # a trace or a measurement, which computes nothing, has fewer
            allowed.append(torch.backends.cudnn.allow_tf32)
        return forward(self, images)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", seen)
    assert torch.backends.cudnn.allow_tf32
    assert run("stitch", runs.noisy, runs.clean, "--at", "block2", "--epochs", 1).code == 0
    assert allowed and not any(allowed)


def test_a_network_is_stitched_to_itself_but_once(run, runs, monkeypatch, progress_of):
    made = []
    original = sweep.Stitching
    monkeypatch.setattr(sweep, "Stitching", lambda *args: made.append(1) or original(*args))
    options = ("--at", "block5", "--both", "--control", "--epochs", 1)
    totals, steps = progress_of("memtool.cli.stitch")
    rows = rows_of(run("stitch", runs.clean, runs.clean, *options).stdout)
    assert len(made) == 1
    assert totals == [sum(steps)]
    assert [row.pop("direction") for row in rows] == ["forward", "reverse", "control"]
    assert rows[0] == rows[1] == rows[2]
    assert rows[0]["control_accuracy"] == rows[0]["test_accuracy"]


def test_without_a_control_its_column_is_empty(stitch):
    (row,) = stitch("--epochs", 0)
    assert row["control_accuracy"] == ""


def test_a_curve_begins_with_the_start_and_ends_with_the_trained_layer(stitch, table_of_all):
    (start,) = stitch("--epochs", 0)
    curve = stitch("--epochs", 1, "--curve")
    assert [row["epoch"] for row in curve] == ["0", "1"]
    assert curve[0]["test_accuracy"] == start["test_accuracy"]
    assert curve[0]["loss"] == start["loss"]
    assert curve[1]["loss"] == table_of_all[3]["loss"] != start["loss"]


def test_training_lowers_the_loss_of_a_random_start(stitch):
    curve = stitch("--epochs", 3, "--curve", "--init", "random", "--batch-norm")
    losses = [float(row["loss"]) for row in curve]
    assert losses[3] < losses[1] < losses[0]


def test_a_network_stitched_to_itself_by_nothing_or_the_identity_is_itself(run, runs):
    for how in (["--connector", "none"], ["--init", "identity", "--epochs", 0]):
        result = run("stitch", runs.noisy, runs.noisy, "--at", "block?", *how)
        for row in rows_of(result.stdout):
            assert row["test_accuracy"] == row["front_accuracy"] == row["back_accuracy"]
            assert row["agreement"] == "1.0"
            assert row["epoch"] == "0"


@pytest.mark.parametrize(
    ("how", "init"),
    {
        ("--connector", "none"): "",
        ("--epochs", 0): "lstsq",
        ("--epochs", 0, "--init", "random", "--batch-norm", "--curve"): "random",
    }.items(),
)
def test_how_it_was_trained_is_empty_where_nothing_was(stitch, tmp_path, how, init):
    (row,) = stitch(*how, "--save", tmp_path)
    names = ("init", "optimizer", "learning_rate", "batch_size")
    assert [row[name] for name in names] == [init, "", "", ""]
    assert (row["epochs"], row["epoch"], row["parameters"] == "0") == ("0", "0", not init)
    (path,) = tmp_path.iterdir()
    training = read_metadata(path, "checkpoint")["training"]
    assert {name: training[name] for name in names if name in training} == (
        {"init": init} if init else {}
    )


@pytest.mark.parametrize("args", [("--both",), ("--batch-norm", "--init", "random")])
def test_what_there_is_of_memory_changes_nothing_but_roundings(stitch, args):
    # With so little, nothing is kept and a dozen images are passed at a time.
    kept, again = (
        stitch("--epochs", 1, "--curve", *args, "--memory", size) for size in ("4GiB", "1MiB")
    )
    for mine, other in zip(kept, again, strict=True):
        assert float(mine["loss"]) == pytest.approx(float(other["loss"]), rel=1e-5)
        assert mine["test_accuracy"] == other["test_accuracy"]


def test_memory_too_small_for_a_single_image_is_told_before_the_work(run, runs):
    command = ("stitch", runs.noisy, runs.clean, "--memory", "20KiB", "--dry-run")
    result = run(*command)
    assert result.code == 1 and result.stdout == ""
    assert (
        f"{runs.noisy}: a forward pass, of one of two networks, takes 18.4 KiB for a single "
        "example, but may take 10.0 KiB; allow for more (--memory)"
    ) in result.stderr


def test_a_training_step_that_does_not_fit_is_told_before_the_work(run, runs, monkeypatch):
    command = ("stitch", runs.noisy, runs.clean, "--at", "block2,block5")
    monkeypatch.setattr("memtool.training.memory.memory_of", lambda device: 2**20)
    told = run(*command)
    assert told.code == 1 and told.stdout == ""
    assert "a training step with 128 images takes" in told.stderr
    assert "cpu has 1.0 MiB; choose a smaller --batch-size" in told.stderr


def test_a_training_step_has_to_fit_beside_the_images(run, runs, monkeypatch):
    command = ("stitch", runs.noisy, runs.clean, "--at", "block2", "--dry-run")
    monkeypatch.setattr("memtool.training.memory.memory_of", lambda device: 2**30)
    assert run(*command).code == 0
    taken = []

    def bytes_on_device(splits, device):
        taken.append(sum(len(split) for split in splits))
        return 2**30 - 2**20

    monkeypatch.setattr("memtool.stitching.sweep.bytes_on_device", bytes_on_device)
    told = run(*command)
    assert told.code == 1 and "128 images takes" in told.stderr and "has 1.0 MiB" in told.stderr
    assert taken == [1797]  # of both splits
    for fitting in (("--batch-size", 4, "--epochs", 1), ("--epochs", 0)):
        assert run(*command, *fitting).code == 0


# ---------------------------------------------------------------- stitched models are checkpoints


@pytest.fixture(scope="module")
def saved(run, runs, tmp_path_factory):
    """The folder of the model stitched at block5, and the table beside it."""
    folder = tmp_path_factory.mktemp("stitched")
    args = ("--at", "block5", "--epochs", 1, "--save", folder, "-o", folder / "table.csv")
    assert run("stitch", runs.noisy, runs.clean, *args).code == 0
    return folder


def test_a_stitched_model_holds_both_networks_as_they_were(saved, runs):
    tensors = load_tensors(saved / "r50--block5--r0.safetensors")
    for part, path in (("front", runs.noisy), ("back", runs.clean)):
        for name, tensor in load_tensors(path).items():
            assert torch.equal(tensors.pop(f"{part}.{name}"), tensor)
    assert sorted(tensors) == ["stitching.bias", "stitching.weight"]


def test_two_runs_give_equal_bytes(run, runs, saved, tmp_path):
    args = ("--at", "block5", "--epochs", 1, "--save", tmp_path, "-o", tmp_path / "table.csv")
    assert run("stitch", runs.noisy, runs.clean, *args).code == 0
    names = sorted(path.name for path in saved.iterdir())
    assert names == ["r50--block5--r0.safetensors", "table.csv"]
    for name in names:
        # But for the column that names the model.
        found, expected = ((at / name).read_bytes() for at in (tmp_path, saved))
        assert found.replace(bytes(tmp_path), bytes(saved)) == expected


def test_a_table_stands_for_the_models_that_it_names(run, runs, saved):
    model, table = saved / "r50--block5--r0.safetensors", saved / "table.csv"
    assert [row["stitched"] for row in rows_of(table.read_text())] == [str(model)]
    arguments = (runs.clean, "--layers", "block?", "--format", "csv")
    assert run("cka", table, *arguments).stdout == run("cka", model, *arguments).stdout
    result = run("cka", runs.noisy_table, *arguments)
    assert result.code == 1 and "names no stitched models" in result.stderr


def test_every_command_takes_a_stitched_model(run, runs, saved):
    model = saved / "r50--block5--r0.safetensors"
    info = run("info", model)
    assert rows_of(info.stdout)[0]["model"].startswith("stitched(digits-cnn")
    layers = [row["layer"] for row in rows_of(run("info", "--layers", model).stdout)]
    assert {"front.block5", "stitching", "back.block6"} <= set(layers)
    compared = rows_of(run("cka", model, runs.clean, "--layers", "*block?").stdout)
    assert [row["layer"] for row in compared if row["layer"].startswith("back")] == [
        "back.block5",
        "back.block6",
    ]


def test_the_memory_of_a_stitched_model_is_found_without_weights(saved, monkeypatch):
    checkpoint = Checkpoint.open(saved / "r50--block5--r0.safetensors")
    real = footprint(checkpoint.model(), checkpoint.image_shape)
    monkeypatch.setitem(footprint.__globals__, "SMALL_MODEL", 0)
    monkeypatch.delattr(Checkpoint, "model")
    found = checkpoint.footprint()
    assert real.per_example <= found.per_example <= 1.5 * real.per_example


@pytest.mark.parametrize("cut", ["front.block2=block2", "stitching=block5", "back.block6=block6"])
def test_a_stitched_model_is_stitched_again(run, runs, saved, cut):
    model = saved / "r50--block5--r0.safetensors"
    whole = rows_of((saved / "table.csv").read_text())[0]
    args = ("--at", cut, "--init", "lstsq", "--epochs", 0, "--both", "--control")
    result = run("stitch", model, runs.clean, *args)
    assert result.code == 0, result.stderr
    forward, reverse, control = rows_of(result.stdout)
    assert forward["front_accuracy"] == reverse["back_accuracy"] == whole["test_accuracy"]
    accuracy = float(whole["test_accuracy"])  # the least-squares map to itself is the identity
    assert float(control["test_accuracy"]) == pytest.approx(accuracy, abs=0.005)


# ---------------------------------------------------------------- other architectures


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A network of another architecture for the digits, untrained."""
    path = tmp_path_factory.mktemp("narrow") / "resnet.safetensors"
    torch.manual_seed(0)
    spec = models.parse("resnet18?width=4&channels=1&num_classes=10")
    metadata = {"model": spec.json(), "data": data.load("digits").metadata(), "training": {}}
    save_tensors(path, "checkpoint", models.build(spec).state_dict(), metadata)
    return path


def test_networks_of_different_architecture_meet_at_named_layers(run, runs, narrow):
    at = "block3=layer2,block4=layer2"
    refused = run("stitch", runs.clean, narrow, "--at", at, "--epochs", 0)
    assert refused.code == 1
    assert "(32, 2, 2) to 'layer2' of shape (8, 4, 4)" in refused.stderr
    result = run("stitch", runs.clean, narrow, "--at", at, "--epochs", 0, "--resize", "--both")
    assert result.code == 0, result.stderr
    assert [row["parameters"] for row in rows_of(result.stdout)] == ["264", "288"] * 2


ODD_NAMES = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        names = "a/b", "a=b", "w[0]", "q?", "qq"
        self.parts = nn.ModuleDict({name: nn.Linear(64, 64) for name in names})
        self.fc = nn.Linear(64, 10)

    def forward(self, images):
        x = images.flatten(1)
        for part in self.parts.values():
            x = part(x)
        return self.fc(x)
"""


def test_layers_may_have_any_name(run, tmp_path):
    """A name is no glob there, and no folder."""
    (tmp_path / "net.py").write_text(ODD_NAMES)
    path, folder = tmp_path / "net.safetensors", tmp_path / "kept"
    train = ("train", "--model", f"{tmp_path}/net.py:Net", "--data", "digits", "--epochs", 1)
    assert run(*train, "-o", path, "-q").code == 0
    options = ("--trust", "-q", "--connector", "none", "--format", "csv")

    def stitched(at, *more):
        result = run("stitch", path, path, "--at", at, *options, *more)
        assert result.code == 0, result.stderr
        return [(row["front_layer"], row["back_layer"]) for row in rows_of(result.stdout)]

    names = [f"parts.{name}" for name in ("a/b", "a=b", "w[0]", "q?", "qq")]
    assert stitched("all", "--save", folder) == [(name, name) for name in names]
    assert stitched("parts.w[0]") == [("parts.w[0]",) * 2]
    assert stitched("parts.q?") == [("parts.q?",) * 2]
    assert stitched("parts.a?b=parts.q?") == [(name, "parts.q?") for name in names[:2]]
    assert {file.name for file in folder.iterdir()} == {
        f"net--parts.{name}--net.safetensors" for name in ("a%2Fb", "a%3Db", "w[0]", "q?", "qq")
    }
    compared = run("cka", path, path, "--trust", "-q", "--layers", "parts.w[0]")
    assert [row["layer"] for row in rows_of(compared.stdout)] == ["parts.w[0]"]


def test_the_same_name_is_asked_for_where_there_is_none(run, runs, narrow):
    result = run("stitch", runs.clean, narrow, "--at", "block3")
    assert result.code == 1
    assert "has no layer 'block3'" in result.stderr and "--at block3=BACK_LAYER" in result.stderr


def test_both_networks_must_take_the_same_images(run, runs, tmp_path):
    path = tmp_path / "large.safetensors"
    spec = models.parse("digits-cnn?image_size=16")
    described = data.load("digits").metadata() | {"image_shape": [1, 16, 16]}
    metadata = {"model": spec.json(), "data": described, "training": {}}
    save_tensors(path, "checkpoint", models.build(spec).state_dict(), metadata)
    result = run("stitch", path, runs.clean)
    assert result.code == 1
    assert f"{path}: takes images" in result.stderr and "(1, 8, 8)" in result.stderr


def test_a_layer_inside_a_residual_branch_is_refused(run, narrow):
    result = run("stitch", narrow, narrow, "--at", "layer2.0.conv2")
    assert result.code == 1
    assert "'layer2.0.conv2' is not a cut" in result.stderr
    assert "the block around it, 'layer2.0', is" in result.stderr


# ---------------------------------------------------------------- stopped and resumed


def test_a_stopped_sweep_goes_on_and_ends_with_the_same_bytes(
    run, runs, tmp_path, monkeypatch, progress_of
):
    def args(name: str) -> tuple[object, ...]:
        at = ("--at", "block4,block5,block6", "--both", "--control", "--epochs", 1)
        return ("stitch", runs.noisy, runs.clean, *at, "-o", tmp_path / name)

    assert run(*args("whole.csv")).code == 0
    assert not list(tmp_path.glob("*.partial"))
    rows, calls = Stitching.rows, []

    def stopping(self: Stitching, *advance):
        calls.append(self.front_layer)
        if len(calls) == 5:  # in the middle of the second job
            raise KeyboardInterrupt
        return rows(self, *advance)

    monkeypatch.setattr(Stitching, "rows", stopping)
    assert run(*args("table.csv")).code == 130
    assert not (tmp_path / "table.csv").exists()
    partial = tmp_path / "table.csv.partial"
    with open(partial, "a") as file:
        file.write('{"front": "half a li')  # as a kill leaves it

    other = run(*args("table.csv"), "--seed", 1, "--resume")
    assert other.code == 1
    assert "is of a sweep with other settings: seed was 0, is 1; give those" in other.stderr
    totals, steps = progress_of("memtool.cli.stitch")
    assert run(*args("table.csv"), "--resume").code == 0
    # Eleven batches and a test for each cut and direction; the first job was done.
    assert totals == [3 * 3 * 12] and sum(steps) == 3 * 3 * 12
    assert steps[0] == 3 * 12 and set(steps[1:]) == {0, 1}
    assert calls[5:] == ["block5"] * 3 + ["block6"] * 3
    assert (tmp_path / "table.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not partial.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--resume"], "name the table"),
        (["--memory", "lots"], "'lots' is not a size"),
        (["--memory", "4 parsecs"], "not a size"),
    ],
)
def test_usage_errors(run, runs, args, message):
    result = run("stitch", runs.noisy, runs.clean, *args)
    assert result.code == 2
    assert message in result.stderr


def test_a_loss_that_is_not_finite_is_an_error(run, runs):
    rate = ("--learning-rate", "1e38", "--epochs", 1)
    result = run("stitch", runs.noisy, runs.clean, "--at", "block5", *rate)
    assert result.code == 1
    assert "lower --learning-rate" in result.stderr


def test_dry_run_tells_the_settings_and_writes_nothing(run, runs, tmp_path):
    output = tmp_path / "t.csv"
    result = run("stitch", runs.noisy, runs.clean, "--at", "block5", "--dry-run", "-o", output)
    assert result.code == 0
    assert '"block5=block5"' in result.stdout and '"connector": "auto"' in result.stdout
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_several_processes_is_told_once(run, runs, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert not run("stitch", runs.noisy, runs.clean, "--at", "block5", "--dry-run").stdout


# ---------------------------------------------------------------- several processes


@pytest.mark.slow
def test_processes_share_the_cuts_and_give_the_table_of_one(run, runs, tmp_path):
    def args(name: str) -> list[str]:
        cuts = ["--at", "block4,block5,block6", "--control", "--epochs", "1"]
        return ["stitch", str(runs.noisy), str(runs.clean), *cuts, "-o", str(tmp_path / name)]

    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "memtool", *args("two.csv")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert run(*args("one.csv")).code == 0
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    assert len(rows_of((tmp_path / "two.csv").read_text())) == 6
    assert len(list(tmp_path.iterdir())) == 2
