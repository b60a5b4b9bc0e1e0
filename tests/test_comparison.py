"""Comparing checkpoints: the command, its plan, and the rows."""

import csv
import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from memtool import MemtoolError, comparison, layers, models
from memtool.checkpoint import Checkpoint, load_tensors, read_metadata, save_tensors
from memtool.choices import Estimator, Pairs
from memtool.comparison import Settings
from memtool.data import load
from memtool.device import Processes


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

    def grams(x):
        return [(z - z.mean(0)) @ (z - z.mean(0)).T for z in x.split(sizes)]

    def hsic(ks, ls):
        if estimator == "exact":
            return (ks[0] * ls[0]).sum()
        total = 0
        for k, l in zip(ks, ls, strict=True):  # noqa: E741
            n = len(k)
            k, l = k - k.diag().diag(), l - l.diag().diag()  # noqa: E741
            middle = k.sum() * l.sum() / ((n - 1) * (n - 2))
            total += (k * l).sum() + middle - 2 / (n - 2) * (k.sum(1) @ l.sum(1))
        return total

    command = ("cka", runs.noisy, other, "--estimator", estimator, "--pairs", pairs)
    found = values(run(*command))
    step = 3 if pairs == "same" else len(names) * 3 + 2
    for layer, reference_layer in list(found)[::step]:
        x, y = grams(features[0][layer]), grams(features[1][reference_layer])
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


def test_the_order_of_examples_does_not_matter_to_exact(run, runs):
    command = ("cka", runs.noisy, runs.clean, "--seed")
    close(values(run(*command, 0)), values(run(*command, 1)))
    minibatch = ("--estimator", "minibatch", "--batch-size", 50)
    first, second = (values(run(*command, seed, *minibatch)) for seed in (0, 1))
    assert any(abs(first[key] - second[key]) > 1e-5 for key in first)


@pytest.mark.parametrize("estimator", ["exact", "minibatch"])
def test_each_network_runs_once(run, runs, other, counted, estimator):
    result = run("cka", runs.noisy, other, runs.clean, "--estimator", estimator)
    assert counted == {"r50.safetensors": 500, "other.safetensors": 500, "r0.safetensors": 500}
    assert f"{estimator} CKA of 500 examples" in result.stderr
    assert "1 forward pass of each network" in result.stderr


@pytest.mark.parametrize("pairs", ["same", "all"])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_blocks_and_groups_equal_one_pass(run, runs, other, counted, pairs, kernel):
    options = ("--estimator", "unbiased", "--pairs", pairs, "--kernel", kernel)
    command = ("cka", runs.noisy, other, runs.clean, *options, "--format", "csv")
    whole, small = run(*command), run(*command, "--memory", "12MiB")
    assert "blocks of examples" in small.stderr
    assert counted["r0.safetensors"] > 1000
    for a, b in zip(rows(whole.stdout), rows(small.stdout), strict=True):
        assert {k: v for k, v in a.items() if k not in ("cka", "cka_se")}.items() <= b.items()
        assert float(a["cka"]) == pytest.approx(float(b["cka"]), abs=1e-6)
        assert float(a["cka_se"]) == pytest.approx(float(b["cka_se"]), abs=1e-6)


def test_a_budget_too_small_for_anything(run, runs):
    result = run("cka", runs.noisy, runs.clean, "--estimator", "exact", "--memory", "1MiB")
    assert result.code == 1 and result.stdout == ""
    assert "--memory: exact CKA of these layers takes" in result.stderr


@pytest.mark.parametrize("size", ["4", "GiB", "-1GiB", "4XiB"])
def test_sizes_that_are_none(run, runs, size):
    assert run("cka", runs.noisy, runs.clean, f"--memory={size}").code == 2


def selected(runs, *patterns):
    opened = [Checkpoint.open(path) for path in (runs.noisy, runs.noisy, runs.clean)]
    *selections, reference = comparison.selections(opened, patterns or ["all"])
    return selections, reference


def test_auto_is_exact_while_one_pass_fits(runs):
    selections, reference = selected(runs)
    settings = Settings()
    exact = comparison.plan(selections, reference, 500, settings)
    assert exact.estimator is Estimator.exact and exact.passes == 1 and len(exact.groups) == 1
    minibatch = comparison.plan(
        selections, reference, 500, replace(settings, memory=exact.bytes - 1)
    )
    assert minibatch.estimator is Estimator.minibatch
    more = comparison.plan(selections, reference, 10**6, settings)
    assert more.estimator is Estimator.minibatch and more.bytes < exact.bytes * 2
    assert more.bytes == comparison.plan(selections, reference, 10**7, settings).bytes


def test_the_plan_keeps_within_its_budget(runs):
    selections, reference = selected(runs)
    settings = Settings(estimator=Estimator.exact)
    passes = []
    for memory in (2**33, 2**29, 2**28, 2**27):
        plan = comparison.plan(selections, reference, 10_000, replace(settings, memory=memory))
        assert plan.bytes <= memory
        passes.append(plan.passes * len(plan.groups))
    assert passes == sorted(passes) and passes[0] == 1 and passes[-1] > 2


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("memory", [2**33, 2**27])
def test_processes_share_all_tiles(runs, processes, memory):
    selections, reference = selected(runs)
    settings = Settings(estimator=Estimator.exact, memory=memory)
    plan = comparison.plan(selections, reference, 10_000, settings, processes)
    tiles = []
    for rank in range(processes):
        steps = plan.steps(Processes(rank, processes))
        assert steps[0].batch == 0  # every process takes its origin there
        kept: list[int] = []
        for step in steps:
            kept = [] if step.first else kept
            kept += [step.batch] if step.keep else []
            tiles += [(one, step.batch) for one in kept]
    count = len(plan.batches)
    assert sorted(tiles) == [(i, j) for i in range(count) for j in range(i, count)]


def test_a_dead_layer_is_told_once_and_its_cells_are_empty(run, runs, tmp_path):
    def kill(tensors):
        tensors["block3.norm.weight"].zero_()
        tensors["block3.norm.bias"].fill_(-1)

    dead = rewritten(runs.clean, tmp_path / "dead.safetensors", kill)
    result = run("cka", dead, runs.clean, "--pairs", "all")
    assert result.code == 0
    empty = {row["layer"] for row in rows(result.stdout) if row["cka"] == ""}
    assert {"block3.norm", "block3.relu", "block3"} <= empty and "block2" not in empty
    assert "nan" not in result.stdout.lower()
    assert result.stderr.count("block3.norm is the same for all images") == 1
    assert "block3.relu, block3 is the same for all images" in result.stderr


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


class Split(nn.Module):
    def forward(self, x):
        return {"first": x * 2, "second": x + 1}


def test_modules_of_all_kinds(run, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(
        models, "_factories", lambda original=models._factories: {**original(), "odd": Odd}
    )
    metadata = read_metadata(runs.clean)
    metadata["model"] = {"name": "odd", "options": {}}
    metadata.pop("kind")
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_tensors(tmp_path / f"{seed}.safetensors", "checkpoint", Odd().state_dict(), metadata)
    command = ("cka", tmp_path / "0.safetensors", tmp_path / "1.safetensors")
    result = run(*command)
    assert [layer for layer, _ in values(result)] == ["body", "relu", "split", "relu_1", "fc"]
    assert "no activations of idle" in result.stderr
    found = values(run(*command[:2], runs.clean, "--pairs", "all"))
    assert len(found) == 5 * 28 and ("relu_1", "block3.relu") in found
    assert run(*command, "-q").stderr == ""


def test_bf16_stays_close(run, runs):
    command = ("cka", runs.noisy, runs.clean, "--layers", "block?")
    whole, half = values(run(*command)), values(run(*command, "--precision", "bf16"))
    close(half, whole, 2e-3)
    assert half != whole


def test_a_stitched_models_parts_correspond_by_their_bare_names():
    def named(*names):
        found = [layers.Layer(name, "Conv2d", (4,), False, name) for name in names]
        return comparison.Selection(Checkpoint(Path("x.safetensors"), {}), found, ["all"])

    stitched, plain = named("front.a", "stitching", "back.b"), named("a", "b")
    pairs = comparison.paired(stitched, plain, Pairs.same)
    assert [(a.name, b.name) for a, b in pairs] == [("front.a", "a"), ("back.b", "b")]
    with pytest.raises(MemtoolError, match="--pairs all"):
        comparison.paired(named("c"), plain, Pairs.same)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["exact", "minibatch"])
def test_two_processes_give_the_rows_of_one(run, runs, other, tmp_path, estimator):
    arguments = ["cka", runs.noisy, other, runs.clean, "--estimator", estimator]
    arguments += ["--batch-size", 100, "--pairs", "all", "--format", "csv"]
    shared = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "memtool"]
        + [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(comparison.__file__).parents[1],
    )
    assert shared.returncode == 0, shared.stderr
    alone = rows(run(*arguments).stdout)
    for a, b in zip(alone, rows(shared.stdout), strict=True):
        for column in ("cka", "cka_se"):
            assert float(a.pop(column)) == pytest.approx(float(b.pop(column)), abs=1e-6)
        assert a == b
    assert shared.stderr.count("CKA of 500 examples") == 1
