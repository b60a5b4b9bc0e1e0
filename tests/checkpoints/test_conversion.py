"""memtool convert."""

import argparse
import json
import os
import pickle
import shlex
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from memtool import MemtoolError
from memtool.checkpoints.conversion import unpickle
from memtool.models import nets
from memtool.tensors import read_metadata

SPEC = "resnet18?channels=3&num_classes=10&width=4"


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return nets.resnet18(width=4).state_dict()


def wrapped(weights, prefix):
    return {f"{prefix}{key}": value for key, value in weights.items()}


LAYOUTS = {
    "a state dict": lambda w: w,
    "state_dict": lambda w: {"epoch": 3, "state_dict": w, "optimizer": {"lr": 0.1}},
    "model_state_dict": lambda w: {"model_state_dict": w, "loss": 0.5},
    "model": lambda w: {"model": w, "args": {"lr": 0.1}},
    "net": lambda w: {"net": wrapped(w, "module."), "acc": 95.0},
    "nested twice": lambda w: {"state": 1, "model": {"state_dict": w}},
    "Lightning": lambda w: {"state_dict": wrapped(w, "model."), "hparams": {}},
    "beside an average": lambda w: {"state_dict": w, "state_dict_ema": wrapped(w, "module.")},
    "an average": lambda w: {"model_ema": wrapped(w, "module.")},
    "with a number": lambda w: {**w, "best": 0.5},
}


SMALL = "resnet18?num_classes=10&width=4"
COMMANDS = {
    "info": ("info", "{}", "--model", SMALL),
    "layers": ("info", "--layers", "{}", "--model", SMALL),
    "cka": ("cka", "{}", "{}", "--data", "digits", "--model", SMALL),
    "reference": ("cka", "{}", "{}", "--data", "digits", "--model-reference", SMALL),
    "stitch": ("stitch", "{}", "{}", "--data", "digits", "--model", SMALL),
    "no model": ("info", "{}"),
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("is_index", [False, True], ids=["file", "index"])
def test_the_way_out_has_the_model_that_was_typed(run, tmp_path, weights, arguments, is_index):
    source = tmp_path / "my weights.v2.pth"
    torch.save(weights, source)
    if is_index:
        index = json.dumps({"weight_map": dict.fromkeys(weights, source.name)})
        source = tmp_path / "my weights.v2.bin.index.json"
        source.write_text(index)
    converted = tmp_path / "my weights.v2.safetensors"
    if "--model-reference" in arguments:  # the other is a checkpoint already
        save_file(weights, tmp_path / "front.safetensors")
        arguments = (arguments[0], tmp_path / "front.safetensors", *arguments[2:])
    result = run(*(source if word == "{}" else word for word in arguments))
    assert result.code == 1
    _, *command = shlex.split(result.stderr.splitlines()[-1].rpartition(": ")[2])
    model = ["--model", SMALL] if SMALL in arguments else []
    assert command == ["convert", str(source), *model, "-o", str(converted)]
    assert run(*command).code == 0 and converted.exists()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("model", [(), ("--model", "resnet18")], ids=["recognized", "named"])
def test_a_pickle_becomes_a_checkpoint(run, tmp_path, weights, layout, model):
    source, target = tmp_path / "old.pth", tmp_path / "new.safetensors"
    torch.save(layout(weights), source)
    result = run("convert", source, *model, "-o", target)
    assert result.code == 0, result.stderr
    assert result.stdout == ""
    found = load_file(target)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)
    metadata = read_metadata(target, "checkpoint")
    assert metadata["model"]["name"] == "resnet18" and metadata["model"]["options"]["width"] == 4
    assert metadata["data"] == metadata["training"] == {}
    assert run("info", "--layers", target).code == 0


def test_safetensors_in_another_layout(run, tmp_path, weights):
    source, target = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    half = {key: value.half() if value.is_floating_point() else value
            for key, value in weights.items()}  # fmt: skip
    save_file(wrapped(half, "_orig_mod."), source)
    result = run("convert", source, "--model", SPEC, "-o", target, "--data", "folder:nowhere")
    assert result.code == 1 and not target.exists()
    result = run("convert", source, "--model", SPEC, "-o", target)
    assert result.code == 0 and "removed the prefix '_orig_mod.'" in result.stderr
    found = load_file(target)
    assert found["conv1.weight"].dtype == torch.float32
    assert torch.equal(found["conv1.weight"], half["conv1.weight"].float())


@pytest.fixture(scope="module")
def weights_of_four() -> dict[str, torch.Tensor]:
    """Those of a network that tells apart as many classes as `folder` has."""
    torch.manual_seed(0)
    return nets.resnet18(num_classes=4, width=4).state_dict()


def test_the_data_set_is_recorded(run, tmp_path, folder, weights_of_four):
    source, target = tmp_path / "old.pt", tmp_path / "new.safetensors"
    torch.save(weights_of_four, source)
    assert run("convert", source, "-o", target, "--data", f"folder:{folder}", "-q").code == 0
    data = read_metadata(target)["data"]
    assert data["name"] == f"folder:{folder}" and len(data["mean"]) == 3
    result = run("cka", target, target, "--layers", "fc")
    assert result.code == 0 and result.stdout.count("\n") == 2


def test_a_data_set_of_other_classes_or_images_is_refused(run, tmp_path, folder, weights):
    source, target = tmp_path / "old.pt", tmp_path / "new.safetensors"
    torch.manual_seed(0)
    large, other = torchvision.models.squeezenet1_1(num_classes=4), torch.nn.Linear(63, 4)
    code = tmp_path / "net.py"
    code.write_text("from torch import nn\ndef make(): return nn.Linear(63, 4)")
    for model, saved, data, told in (
        (SPEC, weights, f"folder:{folder}", f"gives 10 logits, folder:{folder} has 4 classes"),
        (SPEC, weights, "digits", "channels=3' makes them fit): RuntimeError"),
        ("torchvision:squeezenet1_1", large.state_dict(), f"folder:{folder}", "image_size=224' ma"),
        (f"{code}:make", other.state_dict(), "digits", "= (1, 8, 8): RuntimeError"),
    ):
        torch.save(saved, source)
        result = run("convert", source, "--model", model, "-o", target, "--data", data)
        assert result.code == 1 and f"error: {source}: " in result.stderr, result.stderr
        assert told in result.stderr and not target.exists(), result.stderr


def test_a_network_without_logits_may_be_of_any_data_set(run, tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("from torch import nn\ndef make(): return nn.Conv2d(3, 3, 1)")
    torch.save(torch.nn.Conv2d(3, 3, 1).state_dict(), "w.pt")
    convert = ("convert", "w.pt", "--model", "net.py:make", "-o", "w.safetensors")
    assert run(*convert, "--data", f"folder:{folder}").code == 0


ENCODERS = """
from torch import nn
def make(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU())
class Unused(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.body, self.head = make(), nn.Linear(5, num_classes)
    def forward(self, images): return self.body(images)
class Head(Unused):
    def forward(self, images): return self.head(self.body(images))
"""


@pytest.mark.parametrize(
    "factory, options, is_taken",
    [
        ("make", {}, True),
        ("Unused", {}, True),
        ("Unused", {"num_classes": 7}, False),
        ("Head", {}, True),
        ("Head", {"num_classes": 7}, False),  # its tensors say so where the option is left out
    ],
)
def test_an_encoder_may_be_of_any_data_set(run, tmp_path, monkeypatch, factory, options, is_taken):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(ENCODERS)
    models: dict[str, Any] = {}
    exec(ENCODERS, models)
    torch.save(models[factory](**options).state_dict(), "w.pt")
    convert = ("convert", "w.pt", "--model", f"net.py:{factory}", "-o", "w.safetensors")
    result = run(*convert, "--data", "digits")
    assert result.code == (0 if is_taken else 1), result.stderr
    assert ("gives 5 numbers" in result.stderr) == (is_taken and factory != "Head")
    if is_taken:
        cka = ("cka", "w.safetensors", "w.safetensors", "--data", "digits", "--trust")
        assert run(*cka, "--layers", "*0*" if factory == "make" else "body").code == 0


def test_equal_weights_give_equal_bytes(run, tmp_path, weights):
    torch.save(weights, tmp_path / "w.pth")
    for name in ("a", "b"):
        run("convert", tmp_path / "w.pth", "-o", tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_weights_of_another_model_are_refused_whole(run, tmp_path, weights):
    source, target = tmp_path / "old.pth", tmp_path / "new.safetensors"
    torch.save(weights, source)
    result = run("convert", source, "--model", "torchvision:resnet34", "-o", target)
    assert result.code == 1 and "missing" in result.stderr and str(source) in result.stderr
    torch.save({name: value for name, value in weights.items() if name != "fc.bias"}, source)
    result = run("convert", source, "--model", "resnet18?width=4", "-o", target)
    assert result.code == 1 and "1 missing (fc.bias)" in result.stderr
    assert not target.exists() and len(os.listdir(tmp_path)) == 1


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_malicious_pickle_runs_nothing(run, tmp_path):
    trace = tmp_path / "ran"
    pickle.loads(pickle.dumps(Evil(trace)))
    assert trace.exists()  # it would
    trace.unlink()
    path = tmp_path / "evil.pth"
    for save in (
        lambda: torch.save({"state_dict": {"x": torch.zeros(1)}, "args": Evil(trace)}, path),
        lambda: torch.save(Evil(trace), path, _use_new_zipfile_serialization=False),
        lambda: path.write_bytes(pickle.dumps(Evil(trace))),
    ):
        save()
        result = run("convert", path, "--model", SPEC, "-o", tmp_path / "out.safetensors")
        assert result.code == 1
        assert result.stderr.startswith(f"memtool: error: {path}: ")
        assert result.stderr.count("\n") == 1
        assert not trace.exists() and not (tmp_path / "out.safetensors").exists()


def test_a_whole_pickled_model_gives_its_weights(run, tmp_path, weights):
    torch.manual_seed(0)
    source, target = tmp_path / "whole.pth", tmp_path / "new.safetensors"
    torch.save(nets.resnet18(width=4), source)
    result = run("convert", source, "-o", target)
    assert result.code == 0, result.stderr
    assert f"{source}: took the parameters and buffers of a whole " in result.stderr
    found = load_file(target)
    assert all(torch.equal(found[key], weights[key]) for key in weights)


def test_weights_beside_other_classes(run, tmp_path, weights):
    """Of argparse, NumPy and of the user's own."""
    source, target = tmp_path / "run.pth", tmp_path / "new.safetensors"
    trace = tmp_path / "ran"
    content = {
        "args": argparse.Namespace(lr=0.1, seed=np.int64(3)),
        "best": np.float32(0.5),
        "evil": Evil(trace),
        "net": wrapped(weights, "module."),
    }
    torch.save(content, source)
    assert run("convert", source, "-o", target).code == 0
    assert load_file(target).keys() == weights.keys() and not trace.exists()


def test_pickles_in_several_files(run, tmp_path, weights):
    names, target = list(weights), tmp_path / "new.safetensors"
    files = {}
    for number, some in enumerate((names[:9], names[9:]), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: weights[name] for name in some}, tmp_path / file)
        files |= dict.fromkeys(some, file)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    assert run("convert", index, "-o", target).code == 0
    assert all(torch.equal(load_file(target)[name], weights[name]) for name in weights)
    result = run("info", index)
    assert result.code == 1 and f"memtool convert {index} -o " in result.stderr
    result = run("convert", tmp_path / file, "-o", target)
    assert result.code == 1 and f"is part 2 of 2; name {index}" in result.stderr
    index.write_text(json.dumps({"weight_map": {**files, names[0]: file}}))
    result = run("convert", index, "-o", target)
    assert result.code == 1 and "has not the tensors" in result.stderr


@pytest.mark.parametrize(
    "content, message",
    [
        ({"epoch": 3}, "there are no named tensors in it"),
        ({"state_dict": {}}, "there are no named tensors under 'state_dict'"),
        ([torch.zeros(1)], "there are no named tensors in it"),
        (torch.zeros(1), "there are no named tensors in it"),
        ({1: torch.zeros(1)}, "there are no named tensors in it"),
        ({"x": torch.zeros(1)}, "those of no model of ours or of torchvision"),
    ],
)
def test_pickles_without_weights(run, tmp_path, content, message):
    torch.save(content, tmp_path / "x.pth")
    result = run("convert", tmp_path / "x.pth", "-o", tmp_path / "out.safetensors")
    assert result.code == 1 and message in result.stderr and result.stderr.count("\n") == 1


def test_broken_files(run, tmp_path, weights):
    whole, path = tmp_path / "whole.pth", tmp_path / "x.pth"
    torch.save(weights, whole)
    path.write_bytes(whole.read_bytes()[:1000])
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("readme.txt", "no weights")
    for broken in (path, tmp_path / "other.pth", tmp_path / "none.pth", tmp_path):
        result = run("convert", broken, "-o", tmp_path / "out.safetensors")
        assert result.code == 1 and str(broken) in result.stderr
        assert result.stderr.count("\n") == 1


def test_what_is_ignored_in_a_pickle_is_said(run, tmp_path, weights):
    source, target = tmp_path / "old.pth", tmp_path / "new.safetensors"
    torch.save({"state_dict": {**weights, "best": 0.5}, "model_ema": {}}, source)
    result = run("convert", source, "-o", target)
    assert f"{source}: used 'state_dict', ignored model_ema\n" in result.stderr
    assert f"{source}: ignored best, not tensors\n" in result.stderr


def test_another_data_set_takes_the_place_of_that_on_record(run, tmp_path, weights_of_four, folder):
    torch.save(weights_of_four, tmp_path / "old.pt")
    spec = f"folder:{folder}"
    for source, data in (("old.pt", spec), ("1.safetensors", f"{spec}?mean=0.5,0.5,0.5")):
        target = tmp_path / f"{1 + (source != 'old.pt')}.safetensors"
        result = run("convert", tmp_path / source, "-o", target, "--data", data)
        assert result.code == 0, result.stderr
    first, second = (read_metadata(tmp_path / f"{i}.safetensors")["data"] for i in (1, 2))
    assert second["name"] == f"{spec}?mean=0.5,0.5,0.5" and second["mean"] == [0.5] * 3
    assert second["std"] == first["std"] and second["fingerprint"] == first["fingerprint"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"net": {"name": "resnet18"}, "model_ema": weights},
        lambda weights: {"module": {}, "best": weights},
        lambda weights: {"net": {"depth": [18]}, "run": {"epoch": 3, "found": {"x": weights}}},
        lambda weights: {"model": {"model": {"lr": 0.1}}, **weights},
        lambda weights: {"params": [0.1], "module": {"weights": {"lr": 0.1}, "last": weights}},
    ],
    ids=["usual", "unusual", "deeper", "beside", "within"],
)
def test_usual_keys_without_tensors_hide_none(tmp_path, weights, wrap):
    content = wrap(weights)
    content["self"] = [content]
    torch.save(content, tmp_path / "x.pth")
    assert unpickle(tmp_path / "x.pth").keys() == weights.keys()


def test_weights_under_several_unusual_keys_are_named_beside_usual_ones(tmp_path, weights):
    torch.save({"model": {"lr": 0.1}, "first": weights, "last": weights}, tmp_path / "x.pth")
    with pytest.raises(MemtoolError, match="in it, but under 'first', 'last'; save a file of"):
        unpickle(tmp_path / "x.pth")


def test_weights_are_found_under_keys_that_are_alone(run, tmp_path, weights):
    source, target = tmp_path / "old.pth", tmp_path / "new.safetensors"
    torch.save({"epoch": 3, "pytorch": {"step": 7, "weights": weights}}, source)
    result = run("convert", source, "--model", SPEC, "-o", target)
    assert result.code == 0, result.stderr
    assert load_file(target).keys() == weights.keys()
    loop = {"a": {"b": 1}}
    loop["a"]["c"] = loop
    torch.save(loop, source)
    assert "there are no named tensors in it" in run("convert", source, "-o", target).stderr
