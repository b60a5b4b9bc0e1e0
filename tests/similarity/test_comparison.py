"""Comparing checkpoints: the command and its rows."""

import csv
import io
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import memtool
from memtool import models
from memtool.checkpoints.checkpoint import Checkpoint
from memtool.data.datasets import load, normalize
from memtool.similarity import measuring
from memtool.similarity.measuring import TRIED
from memtool.tensors import load_tensors, read_metadata, save_tensors

ROOT = Path(memtool.__file__).parents[1]


NUMBERS = ("cka", "cka_se", "cka_null")
LOOK = 18 + 2 * TRIED  # images that it takes to see what suits a network, and whose its rows are


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def values(result):
    assert result.code == 0, result.stderr
    return {(r["layer"], r["reference_layer"]): float(r["cka"]) for r in rows(result.stdout)}


def close(found, expected, tolerance=1e-6):
    assert found.keys() == expected.keys()
    assert max(abs(found[key] - expected[key]) for key in found) < tolerance


def rewritten(path, target, change):
    """A copy of a checkpoint with its tensors changed."""
    tensors, metadata = load_tensors(path), read_metadata(path)
    change(tensors)
    save_tensors(target, metadata.pop("kind"), tensors, metadata)
    return target


@pytest.fixture(scope="module")
def other(runs):
    """Another network than either run's."""
    generator = torch.Generator().manual_seed(1)

    def change(tensors):
        for key, tensor in tensors.items():
            if tensor.is_floating_point() and key.endswith("weight") and tensor.ndim > 1:
                noise = torch.randn(tensor.shape, generator=generator)
                tensors[key] = tensor + noise * tensor.std()

    return rewritten(runs.clean, runs.folder / "other.safetensors", change)


@pytest.fixture
def counted(monkeypatch):
    """How many images each network's forward passes saw, by file."""
    seen: dict[str, int] = {}
    original = Checkpoint.network

    def network(self, device):
        result = original(self, device)
        result.model.register_forward_pre_hook(
            lambda module, inputs: seen.update(
                {self.path.name: seen[self.path.name] + len(inputs[0])}
            )
        )
        seen.setdefault(self.path.name, 0)
        return result

    monkeypatch.setattr(Checkpoint, "network", network)
    return seen


@pytest.mark.parametrize("estimator", ["exact", "unbiased", "minibatch"])
@pytest.mark.parametrize("pairs", ["same", "all"])
def test_values_are_those_of_an_out_of_place_twin_in_float64(run, runs, other, estimator, pairs):
    """In-place ReLUs change nothing: the reference keeps all activations of models without any."""
    names, features = None, []
    for path in (runs.noisy, other):
        checkpoint = Checkpoint.open(path)
        network = checkpoint.network(torch.device("cpu"))
        for module in network.model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        images = torch.from_numpy(load("digits").test.images)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        found = {}
        hooks = [
            module.register_forward_hook(
                lambda module, inputs, output, name=name, found=found: found.update(
                    {name: output.detach()}
                )
            )
            for name, module in network.model.named_modules()
            if name
        ]
        network(images[order])
        for hook in hooks:
            hook.remove()
        names = list(found)
        features.append({name: found[name].double().flatten(1) for name in names})
    sizes = [250, 250] if estimator == "minibatch" else [500]

    @cache
    def grams(side, layer):
        """Those of each batch, centered as their features are."""
        return [(x := part - part.mean(0)) @ x.T for part in features[side][layer].split(sizes)]

    def hsic(a, b):
        total = 0
        for k, l in zip(grams(*a), grams(*b), strict=True):  # noqa: E741
            n = len(k)
            if estimator == "exact":
                total += (k * l).sum()
                continue
            k, l = k - k.diag().diag(), l - l.diag().diag()  # noqa: E741
            middle = k.sum() * l.sum() / ((n - 1) * (n - 2))
            total += (k * l).sum() + middle - 2 / (n - 2) * (k.sum(1) @ l.sum(1))
        return total

    command = ("cka", runs.noisy, other, "--estimator", estimator, "--pairs", pairs)
    found = values(run(*command))
    chosen = found if pairs == "same" else {k: found[k] for k in list(found)[:: len(names) + 3]}
    for layer, reference_layer in chosen:
        x, y = (0, layer), (1, reference_layer)
        expected = hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()
        assert found[layer, reference_layer] == pytest.approx(expected.item(), abs=1e-5)
    assert len({round(value, 2) for value in found.values()}) > 5


@pytest.mark.parametrize("estimator", ["exact", "unbiased", "minibatch"])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_a_network_with_itself_gives_1(run, runs, estimator, kernel):
    options = ("--estimator", estimator, "--kernel", kernel, "--pairs", "all")
    found = values(run("cka", runs.clean, runs.clean, *options))
    assert all(abs(value - 1) < 1e-6 for (a, b), value in found.items() if a == b)
    assert any(value < 0.9 for value in found.values())


def test_the_order_of_examples_does_not_matter_to_exact(run, runs):
    command = ("cka", runs.noisy, runs.clean, "--seed")
    close(values(run(*command, 0)), values(run(*command, 1)))
    minibatch = ("--estimator", "minibatch", "--batch-size", 50)
    first, second = (values(run(*command, seed, *minibatch)) for seed in (0, 1))
    assert any(abs(first[key] - second[key]) > 1e-5 for key in first)


@pytest.mark.parametrize("estimator", ["exact", "minibatch"])
def test_each_network_runs_once(run, runs, other, counted, estimator):
    result = run("cka", runs.noisy, other, runs.clean, "--estimator", estimator)
    assert counted.keys() == {"r50.safetensors", "other.safetensors", "r0.safetensors"}
    for images in counted.values():  # and a few to see what suits the network
        assert 500 <= images <= 500 + LOOK
    assert f"{estimator} CKA of 500 examples" in result.stderr
    assert "1 forward pass of each network" in result.stderr


@pytest.mark.parametrize(
    "estimator, kernel, pairs",
    [
        ("exact", "linear", "same"),
        ("exact", "rbf", "all"),
        ("unbiased", "linear", "all"),
        ("minibatch", "linear", "all"),
        ("minibatch", "rbf", "same"),
    ],
)
def test_several_references_give_the_rows_of_each_in_one_pass(
    run, runs, other, counted, estimator, kernel, pairs
):
    """One of them is compared, too, and one is named twice."""
    options = ("--estimator", estimator, "--kernel", kernel, "--pairs", pairs, "--format", "csv")
    options += ("--layers", "block?,fc", "--batch-size", 100)
    compared, references = (runs.noisy, other), (runs.clean, other)
    named = [part for one in (*references, other) for part in ("--reference", one)]
    found = run("cka", *compared, *named, *options)
    assert found.code == 0, found.stderr
    for images in counted.values():  # and those that sigma and a look at the network take
        assert 500 <= images <= LOOK + (500 if kernel == "linear" else 1000)
    single = [
        rows(run("cka", one, reference, *options).stdout)
        for one in compared
        for reference in references
    ]
    for a, b in zip(rows(found.stdout), sum(single, []), strict=True):
        for column in ("cka", "cka_se", "cka_null"):
            assert float(a.pop(column)) == pytest.approx(float(b.pop(column)), abs=1e-6)
        assert a == b


def test_a_reference_alone_has_nothing_to_be_compared_with(run, runs):
    assert run("cka", runs.noisy).code == run("cka", "--reference", runs.noisy).code == 2


@pytest.mark.parametrize("pairs", ["same", "all"])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_blocks_and_groups_equal_one_pass(run, runs, other, counted, pairs, kernel):
    options = ("--estimator", "exact", "--pairs", pairs, "--kernel", kernel)
    command = ("cka", runs.noisy, other, runs.clean, *options, "--format", "csv")
    whole, small = run(*command), run(*command, "--memory", "12MiB")
    assert "blocks of examples" in small.stderr
    assert counted["r0.safetensors"] > 1000
    for a, b in zip(rows(whole.stdout), rows(small.stdout), strict=True):
        for column in NUMBERS:
            assert float(a.pop(column)) == pytest.approx(float(b.pop(column)), abs=1e-6)
        assert a == b


@pytest.mark.parametrize(("estimator", "memory"), [("exact", "1MiB"), ("minibatch", "100KiB")])
def test_a_budget_too_small_for_anything(run, runs, estimator, memory):
    result = run("cka", runs.noisy, runs.clean, "--estimator", estimator, "--memory", memory)
    assert result.code == 1 and result.stdout == ""
    assert f"--memory: {estimator} CKA of these layers takes" in result.stderr
    assert "of which a forward pass takes" in result.stderr
    assert "iB and the weights of the networks " in result.stderr
    assert "or --estimator" not in result.stderr  # no other fits either


def test_a_pass_of_part_of_a_batch_changes_no_more_than_roundings(run, runs):
    command = ("cka", runs.noisy, runs.clean, "--layers", "fc", "--estimator", "minibatch")
    command += ("--batch-size", 250, "--format", "csv")
    whole, parts = run(*command), run(*command, "--memory", "6MiB")
    assert "a forward pass takes" in whole.stderr and "a forward pass of" in parts.stderr
    (one,), (other,) = rows(whole.stdout), rows(parts.stdout)
    assert one["batch_size"] == other["batch_size"] == "250"
    assert float(one["cka"]) == pytest.approx(float(other["cka"]), abs=1e-6)
    assert float(one["cka_se"]) == pytest.approx(float(other["cka_se"]), abs=1e-6)


@pytest.mark.parametrize("estimator", ["exact", "unbiased"])
def test_feature_space_gives_the_values_of_gram_matrices(run, runs, other, estimator):
    command = ("cka", runs.noisy, other, "--estimator", estimator, "--pairs", "all", "--layers")
    found = run(*command, "block6,fc")
    by_grams = rows(run(*command, "all").stdout)
    assert len(rows(found.stdout)) == 4
    for row in rows(found.stdout):
        pair = row["layer"], row["reference_layer"]
        (expected,) = [one for one in by_grams if (one["layer"], one["reference_layer"]) == pair]
        for column in NUMBERS:
            assert float(row[column]) == pytest.approx(float(expected[column]), abs=1e-6)


def test_stitched_models_are_compared_by_the_names_of_their_parts_layers(run, runs, tmp_path):
    made = run(
        *("stitch", runs.noisy, runs.clean, "--at", "block3", "--control", "--epochs", 0),
        *("--save", tmp_path),
    )
    assert made.code == 0, made.stderr
    files = sorted(tmp_path.glob("*.safetensors"))
    result = run("cka", *files, runs.noisy, runs.clean, "--layers", "block?,fc", "--format", "csv")
    assert result.code == 0 and "never calls" not in result.stderr
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows(result.stdout):
        found.setdefault(Path(row["checkpoint"]).stem, []).append(row)
    assert [len(group) for group in found.values()] == [8, 8, 7]
    noisy = {row["layer"]: float(row["cka"]) for row in found["r50"]}
    for name, back_ratio in (("r50--block3--r0", "0.0"), ("r50--block3--r50", "0.5")):
        group = found[name]
        assert [row["layer"] for row in group] == [
            *("front.block1", "front.block2", "front.block3"),
            *("back.block3", "back.block4", "back.block5", "back.block6", "back.fc"),
        ]
        for row in group:
            assert row["reference_layer"] == row["layer"].partition(".")[2]
            assert (row["front_noise_ratio"], row["back_noise_ratio"]) == ("0.5", back_ratio)
        gaps = [abs(float(row["cka"]) - noisy[row["reference_layer"]]) for row in group]
        assert max(gaps[:3]) < 1e-6  # the front is the noisy network's own
        # A stitching layer from a network to itself, not trained, is the identity.
        assert max(gaps[3:]) < 1e-6 if back_ratio == "0.5" else min(gaps[3:]) > 1e-4


def test_a_dead_layer_is_told_once_and_its_cells_are_empty(run, runs, tmp_path):
    def kill(tensors):
        tensors["block3.norm.weight"].zero_()
        tensors["block3.norm.bias"].fill_(-1)

    dead = rewritten(runs.clean, tmp_path / "dead.safetensors", kill)
    half = run("cka", dead, runs.clean, "--layers", "block3", "--precision", "bf16")
    assert half.code == 0 and "no CKA of block3: the same for all images" in half.stderr
    result = run("cka", dead, runs.clean, "--pairs", "all")
    assert result.code == 0
    empty = {row["layer"] for row in rows(result.stdout) if row["cka"] == ""}
    assert {"block3.norm", "block3.relu", "block3"} <= empty and "block2" not in empty
    assert "nan" not in result.stdout.lower()
    assert result.stderr.count("warning: ") == 1
    assert "no CKA of block3.norm, block3.relu, block3, block4.conv, " in result.stderr


class Dead(nn.Module):
    """`body` has eight layers whose output is constant."""

    def __init__(self, num_classes=10, scale=0.0) -> None:
        super().__init__()
        self.scale, self.body = scale, nn.Sequential(*(nn.Linear(64, 64) for _ in range(7)))
        self.fc = nn.Linear(64, num_classes)

    def forward(self, images):
        x = images.flatten(1)
        return self.fc(x + self.body(x * self.scale))


@pytest.mark.parametrize(
    "scale, named",
    [
        (0.0, "body.0, body.1, body.2, body.3, body.4 and 3 more: the same for all images"),
        (1e39, "body.0 with body.0, body.1 with body.1, body.2 with body.2, "),
    ],
)
def test_one_warning_names_the_first_of_many_layers_without_cka(run, tmp_path, scale, named):
    """Layers that are constant, and pairs of layers that are not finite."""
    save_file(Dead().state_dict(), path := tmp_path / "dead.safetensors")
    command = ("cka", path, path, "--data", "digits", "--layers", "body*", "--format", "csv")
    result = run(*command, "--model", f"{__file__}:Dead?scale={scale}")
    assert result.code == 0, result.stderr
    assert len(found := rows(result.stdout)) == 8 and not any(row["cka"] for row in found)
    (told,) = [line for line in result.stderr.splitlines() if "warning: " in line]
    assert f"dead.safetensors: no CKA of {named}" in told and " and 3 more: " in told


NO_FEATURES = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.body, self.rest, self.fc = nn.Linear(64, 8), nn.Identity(), nn.Linear(8, num_classes)

    def forward(self, images):
        x = self.body(images.flatten(1))
        self.rest(x[:, 8:])
        return self.fc(x)
"""


@pytest.mark.parametrize("estimator", ["exact", "unbiased", "minibatch"])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_cells_of_a_layer_without_features_are_empty(run, tmp_path, estimator, kernel):
    (tmp_path / "net.py").write_text(NO_FEATURES)
    weights = {"body.weight": torch.randn(8, 64), "fc.weight": torch.randn(10, 8)}
    weights |= {"body.bias": torch.zeros(8), "fc.bias": torch.zeros(10)}
    save_file(weights, path := tmp_path / "net.safetensors")
    command = ("cka", path, path, "--model", f"{tmp_path}/net.py:Net", "--data", "digits")
    result = run(*command, "--pairs", "all", "--estimator", estimator, "--kernel", kernel)
    assert result.code == 0 and "no CKA of rest: the same for all images" in result.stderr
    cells = {(row["layer"], row["reference_layer"]): row["cka"] for row in rows(result.stdout)}
    assert {pair for pair, value in cells.items() if not value} == {
        pair for pair in cells if "rest" in pair
    }


class Odd(nn.Module):
    """Reuses a module, returns tuples and dicts, never calls one module."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.split = Split()
        self.idle = nn.Linear(2, 2)
        self.fc = nn.Linear(256, num_classes)

    def forward(self, x):
        x = self.relu(self.body(x))
        x = self.split(x)["first"]
        return self.fc(self.relu(x - 0.1).flatten(1))


class Viewing(nn.Module):
    """Takes its features as if they lay in memory channels first."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(256, num_classes)

    def forward(self, x):
        x = self.last(self.norm(self.conv(x)))
        return self.fc(x.view(len(x), -1))


def test_a_model_that_cannot_have_its_channels_last(run, tmp_path):
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_file(Viewing().state_dict(), tmp_path / f"{seed}.safetensors")
    command = ("cka", tmp_path / "0.safetensors", tmp_path / "1.safetensors", "--data", "digits")
    found = values(run(*command, "--model", f"{__file__}:Viewing"))
    assert [layer for layer, _ in found] == ["conv", "norm", "last", "fc"]
    assert all(0 < value < 1 for value in found.values())


class Split(nn.Module):
    def forward(self, x):
        return {"first": x * 2, "second": x + 1}


class Experts(nn.Module):
    """Each image is seen by one expert, with the others that it sees; `sorted` sees them all, the
    darkest first; how many tokens `tokens` gets depends on the batch."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem, self.gate = nn.Linear(64, 16), nn.Linear(16, 3)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.tokens, self.sorted = nn.Linear(1, 1), nn.Linear(16, 16)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x):
        x = x.flatten(1)
        x = x + self.tokens(x[:, : 32 + int(x[0, 20] > x[0, 44]), None]).mean((1, 2))[:, None]
        x = self.stem(x)
        best, order = self.gate(x).argmax(1), x.sum(1).argsort()
        for number, expert in enumerate(self.experts):
            mine = best == number
            if mine.any():
                x = x.index_put((mine,), expert(x[mine]))
        return self.fc(self.sorted(x[order])[order.argsort()].relu())


@pytest.mark.parametrize("estimator", ["exact", "minibatch", "unbiased"])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("pairs", ["same", "all"])
def test_layers_that_do_not_see_all_images_in_order_have_no_cka(
    run, tmp_path, estimator, kernel, pairs
):
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_file(Experts().state_dict(), tmp_path / f"{seed}.safetensors")
    command = ("cka", tmp_path / "0.safetensors", tmp_path / "1.safetensors", "--data", "digits")
    command += ("--model", f"{__file__}:Experts", "--estimator", estimator, "--kernel", kernel)
    result = run(*command, "--pairs", pairs, "--batch-size", 50)
    assert result.code == 0, result.stderr
    table = rows(result.stdout)
    full = {"stem", "gate", "fc"}
    for row in table:
        has_cka = {row["layer"], row["reference_layer"]} <= full
        assert (row["cka"] != "") == has_cka, row
    others = {row["layer"] for row in table} - full
    assert {"tokens", "sorted"} <= others
    named = [name for name in dict.fromkeys(row["layer"] for row in table) if name in others]
    told = f"0.safetensors: no CKA of {', '.join(named)}: not one row for each image"
    assert result.stderr.count(told) == 1
    assert "not positive" not in result.stderr
    alone = run(*command, "--pairs", pairs, "--batch-size", 50, "--layers", "stem,gate,fc")
    expected = {(row["layer"], row["reference_layer"]): row["cka"] for row in rows(alone.stdout)}
    found = {(row["layer"], row["reference_layer"]): row["cka"] for row in table}
    for pair, value in expected.items():
        assert float(found[pair]) == pytest.approx(float(value), abs=1e-9)


class Rows(nn.Module):
    """`sorted` sees the images of a rare expert last, `mixed` parts of all images in each row."""

    def __init__(self, num_classes=10) -> None:
        super().__init__()
        self.stem, self.sorted, self.mixed = nn.Linear(8, 6), nn.Tanh(), nn.Tanh()
        self.fc = nn.Linear(6, num_classes)

    def forward(self, x):
        is_rare = (x.flatten(1).mean(1) - 0.3).abs() < 0.17  # one in ten
        order = is_rare.to(torch.int8).argsort(stable=True)
        x = self.stem(x[:, 0])
        x = self.sorted(x[order])[order.argsort()].transpose(0, 1)
        return self.fc(self.mixed(x.reshape(x.shape[1], 8, 6)).view(x.shape).mean(0))


def test_rows_that_rarely_are_those_of_other_images_and_rows_that_mix_them(run, tmp_path):
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_file(Rows().state_dict(), tmp_path / f"{seed}.safetensors")
    command = ("cka", tmp_path / "0.safetensors", tmp_path / "1.safetensors", "--data", "digits")
    result = run(*command, "--model", f"{__file__}:Rows")
    assert {row["layer"] for row in rows(result.stdout) if row["cka"] == ""} == {"sorted"}
    assert "0.safetensors: no CKA of sorted: not one row for each image" in result.stderr
    assert "0.safetensors: CKA of mixed depends on the other images of a batch" in result.stderr
    assert result.stderr.count("warning") == 4  # of both networks


class Chunked(nn.Module):
    """`body` sees 64 images at a time, `first` four of each batch."""

    def __init__(self, num_classes=10) -> None:
        super().__init__()
        self.first, self.body = nn.Linear(64, 64), nn.Linear(64, 16)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x):
        x = x.flatten(1)
        x = torch.cat([self.first(x[:4]), x[4:]])
        return self.fc(torch.cat([self.body(some) for some in x.split(64)]).relu())


class InChunks(nn.Module):
    """`body` sees so many images at a time."""

    def __init__(self, num_classes: int = 10, size: int = 64) -> None:
        super().__init__()
        self.size, self.body, self.fc = size, nn.Linear(64, 16), nn.Linear(16, num_classes)

    def forward(self, x):
        x = torch.cat([self.body(some) for some in x.flatten(1).split(self.size)])
        return self.fc(x.relu())


@pytest.mark.parametrize("estimator", ["exact", "unbiased", "minibatch"])
def test_sigma_is_that_of_a_layer_that_sees_so_many_images_at_a_time(run, tmp_path, estimator):
    paths = [tmp_path / f"{seed}.safetensors" for seed in (0, 1)]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        save_file(InChunks().state_dict(), path)
    command = ("cka", *paths, "--data", "digits", "--batch-size", 50, "--kernel", "rbf")
    command += ("--estimator", estimator, "--layers", "body", "--model")
    found, expected = (
        float(rows(run(*command, f"{__file__}:InChunks?size={size}").stdout)[0]["cka"])
        for size in (64, 1000)
    )
    assert found == pytest.approx(expected, abs=1e-6) and expected < 0.99


def test_a_layer_whose_sigma_is_not_known_has_no_cka(run, runs, monkeypatch):
    monkeypatch.setattr(measuring, "_median_distances", lambda *_: {})
    result = run("cka", runs.noisy, runs.clean, "--layers", "fc", "--kernel", "rbf")
    assert rows(result.stdout)[0]["cka"] == ""
    assert "no CKA of fc: not one row for each image" in result.stderr


@pytest.mark.parametrize("estimator", ["exact", "unbiased"])
def test_a_layer_that_sees_so_many_images_at_a_time_has_cka_in_small_batches(
    run, tmp_path, counted, estimator
):
    paths = [tmp_path / f"{seed}.safetensors" for seed in (0, 1)]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        save_file(Chunked().state_dict(), path)
    command = ("cka", *paths, "--data", "digits", "--model", f"{__file__}:Chunked")
    command += ("--estimator", estimator)
    found = run(*command)  # batches of 50, five of which share a forward pass where they can
    images = dict(counted)
    small = run(*command, "--batch-size", 60)
    assert found.stdout == small.stdout
    assert {row["layer"]: row["cka"] == "" for row in rows(found.stdout)} == {
        "first": True,
        "body": False,
        "fc": False,
    }
    for seen in images.values():  # the first pass again, and its first batch once more
        assert 500 + 250 + 50 <= seen <= 500 + 250 + 50 + LOOK
    counted.clear()
    run(*command, "--layers", "first,fc")
    for seen in counted.values():  # those that no batch gives alone, either, are asked for once
        assert 500 + 50 <= seen <= 500 + 50 + LOOK


class Gated(nn.Module):
    """By its weights, `enc` sees the images sorted, and `fc` what is left of the batch's mean."""

    def __init__(self, num_classes=10) -> None:
        super().__init__()
        self.gate, self.enc = nn.Linear(64, 2), nn.Linear(64, 32)
        self.fc = nn.Linear(32, num_classes)
        self.centering = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        x = x.flatten(1)
        order = self.gate(x).argmax(1).argsort(stable=True)
        x = self.enc(x[order]).relu()[order.argsort()]
        return self.fc(x - self.centering * x.mean(0))


def test_each_network_is_tried_though_others_are_equal_but_for_their_weights(run, tmp_path):
    torch.manual_seed(0)
    for name, value in (("plain", 0), ("sorts", 1), ("centers", 2)):
        model = Gated()
        with torch.no_grad():
            model.gate.bias[0] = 0 if value == 1 else 1000
            model.centering.fill_(value == 2)
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
    plain, sorts, centers = (tmp_path / f"{n}.safetensors" for n in ("plain", "sorts", "centers"))
    model = ("--model", f"{__file__}:Gated", "--data", "digits")
    for pair in ((sorts, plain), (plain, sorts)):
        result = run("cka", *pair, *model)
        assert {row["layer"] for row in rows(result.stdout) if row["cka"] == ""} == {"enc"}
        assert f"{sorts}: no CKA of enc: not one row for each image" in result.stderr
    looked: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        look = measuring.misplaced
        patch.setattr(measuring, "misplaced", lambda *some: looked.append(1) or look(*some))
        result = run("cka", sorts, centers, plain, *model, "--memory", "680KiB", "--dry-run")
        assert "of a reference 2" in result.stderr
        run("cka", sorts, centers, plain, *model, "--memory", "680KiB")
    assert len(looked) == 3  # once, however many groups a reference is in
    for pair in ((centers, plain), (plain, centers)):
        told = f"{centers}: gives results for an image that depend on the batch around it"
        assert told in run("cka", *pair, *model).stderr


def test_modules_of_all_kinds(run, runs, tmp_path):
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_file(Odd().state_dict(), tmp_path / f"{seed}.safetensors")
    model = ("--model", f"{__file__}:Odd", "--data", "digits")
    command = ("cka", tmp_path / "0.safetensors", tmp_path / "1.safetensors", *model)
    result = run(*command)
    assert [layer for layer, _ in values(result)] == ["body", "relu", "split", "relu_1", "fc"]
    assert "idle left out: not called by the model" in result.stderr
    reference = (runs.clean, "--model-reference", "digits-cnn", "--pairs", "all")
    found = values(run(*command[:2], *reference, *model))
    assert len(found) == 5 * 28 and ("relu_1", "block3.relu") in found
    assert run(*command, "-q").stderr == ""
    for layers in ("idle", "body,id*"):
        named = run(*command, "--layers", layers)
        assert named.code == 1 and "nearest" not in named.stderr
        pattern = layers.split(",")[-1]
        assert f"no activations of layer '{pattern}': not called by the model" in named.stderr
        assert f"others: memtool info --layers {tmp_path / '0.safetensors'}" in named.stderr


def test_bf16_stays_within_a_thousandth(run, runs):
    command = ("cka", runs.noisy, runs.clean, "--layers", "block?")
    whole, half = (run(*command, "--precision", one) for one in ("float32", "bf16"))
    close(values(half), values(whole), 1e-3)
    assert values(half) != values(whole)
    assert {row["precision"] for row in rows(half.stdout)} == {"bf16"}


@pytest.mark.parametrize("estimator", ["exact", "minibatch"])
def test_bf16_that_changes_cka_is_not_used(run, runs, tmp_path, estimator):
    """The features lie on an offset that leaves bf16 no digits for what they differ in."""

    def lift(tensors):
        tensors["block5.norm.bias"] += 1000

    lifted = rewritten(runs.noisy, tmp_path / "lifted.safetensors", lift)
    command = ("cka", lifted, runs.clean, "--layers", "block5", "--estimator", estimator)
    whole, half = (run(*command, "--precision", one) for one in ("float32", "bf16"))
    assert half.stdout == whole.stdout
    assert "--precision bf16 changes CKA of block5 by" in half.stderr
    assert "more than 0.001: computing in float32" in half.stderr


# The estimators and pairs that two processes share, all in one torchrun and one process group: each
# start takes many seconds, since three processes import torch.
SHARED = {"exact": "all", "unbiased": "same", "minibatch": "all"}
SEVERAL = """
import json, sys
from torch import distributed
from memtool.cli import app, main
distributed.init_process_group("gloo")
distributed.init_process_group = distributed.destroy_process_group = lambda *_, **__: None
*first, last = json.loads(sys.argv[1])
for arguments in first:
    app(arguments, standalone_mode=False)
main(last)
"""


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one(run, runs, other, tmp_path):
    networks = [str(path) for path in (runs.noisy, other, runs.clean)]
    commands = [
        ["cka", *networks, "--estimator", estimator, "--pairs", pairs]
        + ["--reference", networks[0], "--reference", networks[2]]
        + ["--batch-size", "100", "--format", "csv"]
        for estimator, pairs in SHARED.items()
    ]
    (tmp_path / "worker.py").write_text(SEVERAL)
    shared = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        + [tmp_path / "worker.py", json.dumps(commands)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert shared.returncode == 0, shared.stderr
    header, _ = shared.stdout.split("\n", 1)
    tables = [rows(header + text) for text in shared.stdout.split(header)[1:]]
    for command, table in zip(commands, tables, strict=True):
        for a, b in zip(rows(run(*command).stdout), table, strict=True):
            for column in NUMBERS:
                assert float(a.pop(column)) == pytest.approx(float(b.pop(column)), abs=1e-6)
            assert a == b
    for estimator in SHARED:
        assert shared.stderr.count(f"{estimator} CKA of 500 examples") == 1


def test_a_second_clean_network_is_told_from_the_first(run, runs, tmp_path):
    path = tmp_path / "second.safetensors"
    metadata = read_metadata(runs.clean)
    metadata["training"]["order_seed"] = 7
    save_tensors(path, metadata.pop("kind"), load_tensors(runs.clean), metadata)
    arguments = ("cka", runs.clean, path, "--layers", "fc", "--format", "csv")
    (row,) = rows(run(*arguments).stdout)
    assert (row["seed"], row["order_seed"]) == ("0", "")
    assert (row["reference_seed"], row["reference_order_seed"]) == ("0", "7")
    assert rows(run("info", path, "--format", "csv").stdout)[0]["order_seed"] == "7"


GATED = """
import torch
from torch import nn

class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.alpha = nn.Linear(16, 16), nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x if self.alpha.item() == 0 else x + self.alpha * self.linear(x).tanh()

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.stem, self.gate = nn.Linear(64, 16), Gated()
        self.next, self.fc = Gated(), nn.Linear(16, num_classes)

    def forward(self, images):
        return self.fc(self.next(self.gate(self.stem(images.flatten(1)).relu())).relu())
"""


def test_a_network_that_goes_by_its_weights_has_layers_of_its_own(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(GATED)
    torch.manual_seed(0)
    model = models.build(models.parse("net.py:Net"))
    save_file(model.state_dict(), "closed.safetensors")
    torch.nn.init.constant_(model.next.alpha, 0.8)
    torch.nn.init.constant_(model.gate.alpha, 0.5)
    save_file(model.state_dict(), "open.safetensors")
    files = ("closed.safetensors", "open.safetensors")
    found = {}
    for one, other in (files, files[::-1]):
        command = ("cka", one, other, "--model", "net.py:Net", "--data", "digits")
        result = run(*command, "--pairs", "all", "--layers", "gate,next")
        assert "no activations" not in result.stderr
        found[one] = values(result)
    assert found[files[0]] == {
        (b, a): pytest.approx(value, abs=1e-12) for (a, b), value in found[files[1]].items()
    }
    assert found[files[0]]["gate", "gate"] != found[files[0]]["gate", "next"]
    assert found[files[0]]["gate", "next"] == found[files[0]]["next", "next"]  # closed: one tensor


LARGE = """
from torch import nn

class Large(nn.Module):
    def forward(self, x):
        return x * (1 + (x[:, :1] > 0.3) * 1e20)

def make(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 999), Large(), nn.Linear(999, num_classes))
"""


@pytest.mark.parametrize("estimator", ["exact", "unbiased", "minibatch"])
def test_activations_too_large_for_the_scale_of_the_first_batch_are_told(
    run, tmp_path, monkeypatch, estimator
):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(LARGE)
    torch.manual_seed(0)
    save_file(models.build(models.parse("net.py:make")).state_dict(), "net.safetensors")
    command = ("cka", *["net.safetensors"] * 2, "--model", "net.py:make", "--data", "digits")
    command += ("--layers", "2", "--estimator", estimator)
    small = run(*command, "--batch-size", 8)
    assert [row["cka"] for row in rows(small.stdout)] == [""]
    assert "some in a later batch so much larger than in the first" in small.stderr
    large = run(*command, "--batch-size", 500)
    assert values(large) == {("2", "2"): pytest.approx(1, abs=1e-6)}
    assert "larger than" not in large.stderr


PADDED = """
from torch import nn

class Embed(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(8, 4)

    def forward(self, x):
        t, blank = self.proj(x), x.amax(2) < -0.8
        return t.masked_fill(blank[..., None], 3) if blank.any() else t  # noise has no blank rows

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.embed, self.fc = Embed(), nn.Linear(32, num_classes)

    def forward(self, images):
        return self.fc(self.embed(images[:, 0]).flatten(1))
"""


@pytest.mark.parametrize("estimator", ["exact", "unbiased", "minibatch"])
def test_tensors_that_are_the_same_for_noise_alone_have_cka_of_their_own(
    run, tmp_path, monkeypatch, estimator
):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(PADDED)
    found, digits = [], load("digits")
    images = normalize(torch.from_numpy(digits.test.images), digits.mean, digits.std)
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = models.build(models.parse("net.py:Net"))
        save_file(model.state_dict(), f"{seed}.safetensors")
        with torch.no_grad():
            found.append({"embed.proj": model.embed.proj(images[:, 0])})
            found[-1]["embed"] = model.embed(images[:, 0])
    command = ("0.safetensors", "1.safetensors", "--model", "net.py:Net", "--data", "digits")
    options = ("--estimator", estimator, "--batch-size", 500)
    result = run("cka", *command, *options)
    for layer in found[0]:
        expected = float(memtool.cka(*(one[layer] for one in found), estimator))
        assert values(result)[layer, layer] == pytest.approx(expected, abs=1e-5), layer
    assert not any(row["same_as"] for row in rows(result.stdout))
    listed = rows(run("info", "--layers", *command[:1], *command[2:], "--format", "csv").stdout)
    assert not any(row["same_as"] for row in listed)


PECULIAR = """
import torch
from torch import nn

class Conjugate(nn.Module):
    def forward(self, x):
        return torch.fft.rfft2(x).conj()

class Sparse(nn.Module):
    def forward(self, x):
        return x.to_sparse()

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conjugate, self.sparse = Conjugate(), Sparse()
        self.frozen, self.fc = nn.Linear(80, 20), nn.Linear(20, num_classes)

    def forward(self, images):
        z = self.conjugate(images)
        with torch.inference_mode(not self.training):
            x = self.frozen(torch.cat([z.real.flatten(1), z.imag.flatten(1)], 1))
        return self.fc(self.sparse(x.relu().clone()).to_dense())
"""


def test_conjugated_sparse_and_inference_tensors_are_compared(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(PECULIAR)
    found, digits = [], load("digits")
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = models.build(models.parse("net.py:Net")).double()
        save_file(model.state_dict(), f"{seed}.safetensors")
        images = normalize(torch.from_numpy(digits.test.images), digits.mean, digits.std)
        z = torch.fft.rfft2(images.double()).conj()
        parts = torch.cat([z.real.flatten(1), z.imag.flatten(1)], 1)
        frozen = model.frozen(parts).detach()
        found.append({"conjugate": parts, "frozen": frozen, "sparse": frozen.relu()})
    command = ("0.safetensors", "1.safetensors", "--model", "net.py:Net", "--data", "digits")
    result = values(run("cka", *command))
    for layer in found[0]:
        expected = float(memtool.cka(*(one[layer] for one in found)))
        assert result[layer, layer] == pytest.approx(expected, abs=1e-5), layer
    stitched = run("stitch", *command, "--at", "frozen,sparse", "--epochs", 1)
    assert stitched.code == 0, stitched.stderr
