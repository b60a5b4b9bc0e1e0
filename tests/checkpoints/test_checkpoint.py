"""Checkpoints: what is read of a file, what is refused, and that nothing in it runs."""

import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from memtool import MemtoolError, data, models
from memtool.checkpoints import Checkpoint, footprints, load, trace_all
from memtool.layers import Footprint, footprint
from memtool.models import ModelSpec, nets
from memtool.tensors import read_metadata, save_tensors

CPU = torch.device("cpu")
DATA = {
    "name": "some",
    "image_shape": [1, 8, 8],
    "classes": ["a", "b"],
    "mean": [0.5],
    "std": [0.25],
    "fingerprint": "f",
}


def written(path: Path, model: nn.Module, spec: ModelSpec, **sections) -> Path:
    metadata = {"model": spec.json(), "data": DATA, "training": {}, **sections}
    save_tensors(path, "checkpoint", model.state_dict(), metadata)
    return path


@pytest.fixture
def small(tmp_path) -> Path:
    spec = ModelSpec("digits-cnn", {"num_classes": 2})
    return written(tmp_path / "small.safetensors", nets.digits_cnn(2), spec)


# --- What is read ---------------------------------------------------------------------------------


def test_a_model_comes_back_as_it_was_saved(small):
    network = Checkpoint.open(small).network(CPU)
    saved = load_file(small)
    assert network.model.state_dict().keys() == saved.keys()
    assert all(torch.equal(value, saved[key]) for key, value in network.model.state_dict().items())
    assert not any(module.training for module in network.model.modules())
    assert not any(parameter.requires_grad for parameter in network.model.parameters())
    assert network(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)).shape == (3, 2)


@pytest.mark.parametrize("type_", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_types_become_float32(tmp_path, type_):
    model = nets.digits_cnn(2)
    tensors = {key: value.to(type_) if value.is_floating_point() else value
               for key, value in model.state_dict().items()}  # fmt: skip
    path = tmp_path / "half.safetensors"
    metadata = {"model": ModelSpec("digits-cnn", {"num_classes": 2}).json(), "data": DATA}
    save_tensors(path, "checkpoint", tensors, {**metadata, "training": {}})
    loaded = Checkpoint.open(path).model().state_dict()
    for key, value in loaded.items():
        assert value.dtype == model.state_dict()[key].dtype
        assert torch.equal(value, tensors[key].to(value.dtype))


def test_modules_are_told_the_version_of_their_layout(tmp_path):
    spec = ModelSpec("torchvision:mnasnet0_5", {"num_classes": 2})
    model = models.build(spec)
    path = tmp_path / "mnasnet.safetensors"
    save_file(model.state_dict(), path)
    loaded = Checkpoint.open(path).model().state_dict()  # without one, mnasnet refuses to load
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())


def test_tensors_that_do_not_fit_are_counted_and_the_first_are_named(small, tmp_path):
    tensors = load_file(small)
    tensors["fc.weight"] = torch.zeros(3, 64)
    tensors["more"] = torch.zeros(1)
    for key in [key for key in tensors if key.startswith("block1")]:
        del tensors[key]
    path = tmp_path / "misfit.safetensors"
    save_tensors(path, "checkpoint", tensors, read_metadata(small))
    expected = (
        r"misfit.safetensors: its tensors do not fit the model digits-cnn\?num_classes=2: "
        r"5 missing \(block1.conv.weight, block1.norm.weight, block1.norm.bias, ...\); "
        r"1 unexpected \(more\); "
        r"1 of another shape \(fc.weight \(3, 64\) for \(2, 64\)\)"
    )
    for use in (Checkpoint.model, Checkpoint.skeleton, lambda checkpoint: trace_all([checkpoint])):
        with pytest.raises(MemtoolError, match=expected):
            use(Checkpoint.open(path))


NEEDS_WEIGHTS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.linear = nn.Linear(64, num_classes)
        self.register_buffer("scale", torch.full((1,), 2.0), persistent=False)
        self.lengths = self.linear.weight.detach().norm(dim=1)  # neither parameter nor buffer

    def forward(self, x):
        if x.sum().item() > 1e30:  # no meta tensor can say
            return x
        return self.linear(x.flatten(1)) * self.scale * (self.lengths > 0)

def make(num_classes=2):
    return Net(num_classes)
"""


def test_models_that_look_at_their_weights_are_built_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NEEDS_WEIGHTS)
    spec = models.parse("net.py:make")
    model = models.build(spec)
    path = written(tmp_path / "own.safetensors", model, spec)
    checkpoint = Checkpoint.open(path, spec)
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(checkpoint.model()(images), model(images))
    assert [layer.name for layer in trace_all([checkpoint])[0].layers] == ["linear"]


def test_equal_models_are_traced_once(small, monkeypatch):
    calls = []
    trace = Checkpoint.trace
    monkeypatch.setattr(Checkpoint, "trace", lambda *args: calls.append(args) or trace(*args))
    one, two = trace_all([Checkpoint.open(small), Checkpoint.open(small)])
    assert one == two and len(calls) == 1
    trace_all([Checkpoint.open(small)], image_size=9)
    assert calls[-1][1] == (1, 9, 9)


def test_images_that_a_model_does_not_take_are_told(small):
    with pytest.raises(MemtoolError, match=r"does not take images of .* = \(1, 64, 64\): Runtime"):
        trace_all([Checkpoint.open(small)], image_size=64)


TOKENS = """
import torch
from torch import nn

class Net(nn.Module):
    # Takes pixels of LEVELS values, and none in between.
    def __init__(self, num_classes=2):
        super().__init__()
        self.embedding, self.fc = nn.Embedding(LEVELS, 4), nn.Linear(256, num_classes)

    def forward(self, images):
        pixels = 255 * (images * STD + MEAN)
        assert torch.allclose(pixels, pixels.round(), atol=1e-3)
        return self.fc(self.embedding(pixels.round().long()).flatten(1))
"""


@pytest.mark.parametrize(
    ("levels", "mean", "std"), [(256, 0.5, 0.25), (256, 0.13, 0.31), (17, 0.0191, 0.0236)]
)
def test_a_model_of_pixels_is_traced(tmp_path, monkeypatch, levels, mean, std):
    monkeypatch.chdir(tmp_path)
    code = TOKENS.replace("LEVELS", str(levels)).replace("MEAN", str(mean))
    Path("net.py").write_text(code.replace("STD", str(std)))
    spec = models.parse("net.py:Net")
    data = {**DATA, "mean": [mean], "std": [std]}
    path = written(tmp_path / "own.safetensors", models.build(spec), spec, data=data)
    checkpoint = Checkpoint.open(path, spec)
    assert [layer.name for layer in trace_all([checkpoint])[0].layers] == ["embedding", "fc"]


CODES = """
import torch
from torch import nn

class Net(nn.Module):
    # Takes the last feature for one of ten codes.
    def __init__(self, num_classes=2):
        super().__init__()
        self.embedding, self.fc = nn.Embedding(10, 4), nn.Linear(8, num_classes)

    def forward(self, features):
        code = self.embedding(features[:, -1].round().long())
        return self.fc(torch.cat([code, features[:, :-1]], 1))
"""


def test_a_model_of_codes_is_traced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(CODES)
    spec = models.parse("net.py:Net")
    data = {**DATA, "image_shape": [5], "mean": [0.0] * 5, "std": [1.0] * 5}
    path = written(tmp_path / "own.safetensors", models.build(spec), spec, data=data)
    checkpoint = Checkpoint.open(path, spec)
    assert [layer.name for layer in trace_all([checkpoint])[0].layers] == ["embedding", "fc"]


def test_channels_are_hinted_at_only_where_a_model_is_known_to_take_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(TOKENS)
    for name, is_hinted in (
        ("net.py:Net", False),
        ("digits-cnn?channels=1", False),
        ("cnn?channels=3", True),
        ("torchvision:alexnet", True),
    ):
        checkpoint = Checkpoint(Path("x"), {"data": DATA}, models.parse(name), {}, {})
        assert ("gray" in checkpoint._hint((1, 8, 8))) == is_hinted
        assert "gray" not in checkpoint._hint((3, 8, 8))


def test_a_size_is_hinted_at_where_a_model_of_a_library_is_meant_for_another():
    for name, shape, hint in (
        ("timm:deit_tiny_patch16_224?depth=1", (3, 32, 32), "--image-size 224 makes them fit"),
        ("timm:deit_tiny_patch16_224?img_size=48", (3, 32, 32), "--image-size 48 makes them fit"),
        ("timm:deit_tiny_patch16_224?img_size=48", (1, 32, 32), "gray ones get 3 channels"),
        ("torchvision:inception_v3", (3, 32, 32), "--image-size 299 "),
        ("timm:deit_tiny_patch16_224?img_size=[32,48]", (3, 32, 32), ""),
        ("timm:deit_tiny_patch16_224?img_size=32", (3, 32, 32), ""),
        ("timm:deit_tiny_patch16_224", (32,), ""),
        ("timm:deit_tiny_patch16_224?in_chans=1", (3, 32, 32), ""),
        ("cnn?image_size=16", (3, 32, 32), ""),
    ):
        checkpoint = Checkpoint(Path("x"), {"data": DATA}, models.parse(name), {}, {})
        found = checkpoint._hint(shape)
        assert hint in found and bool(hint) == bool(found), (name, found)


def test_a_stitched_model_stays_one_whatever_model_is_typed_for_others(small, caplog):
    caplog.set_level("INFO")
    part = read_metadata(small)["model"]
    layer = {"connector": "none", "front": [64], "back": [64], "batch_norm": False}
    cut = {"front_layer": "block6", "back_layer": "block6", "stitching": layer}
    spec = ModelSpec("stitched", {"front": part, "back": part, **cut})
    path = written(small.with_name("stitched.safetensors"), models.build(spec), spec)
    typed = models.parse("digits-cnn?num_classes=3")
    assert Checkpoint.open(path, typed).spec == spec
    assert caplog.messages == [f"{path}: its model is the stitched one on record, not {typed}"]
    with pytest.raises(MemtoolError, match="do not fit the model digits-cnn"):
        Checkpoint.open(small, typed)


# --- Loading from Python --------------------------------------------------------------------------


def test_a_checkpoint_is_loaded_as_a_network_ready_to_classify(small):
    network = load(str(small))
    assert isinstance(network.model, nn.Module)
    assert not any(module.training for module in network.model.modules())
    assert (network.mean, network.std) == (DATA["mean"], DATA["std"])
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    logits = network(images)
    assert logits.shape == (3, 2) and logits.dtype == torch.float32 and not logits.requires_grad
    model = nets.digits_cnn(2).eval()
    model.load_state_dict(load_file(small))
    assert torch.allclose(logits, model((images / 255 - 0.5) / 0.25), atol=1e-6)


@pytest.fixture
def foreign(small) -> Path:
    """The same tensors in a file without metadata."""
    path = small.with_name("foreign.safetensors")
    save_file(load_file(small), path)
    return path


def test_a_foreign_checkpoint_is_loaded_with_its_data_set(foreign):
    dataset = data.load("digits")
    with pytest.raises(MemtoolError, match="foreign.safetensors: does not say how its images are"):
        load(foreign)
    for model in (None, "digits-cnn"):
        network = load(foreign, model, dataset)
        assert (network.mean, network.std) == (dataset.mean, dataset.std)
        assert network(torch.from_numpy(dataset.test.images[:5])).shape == (5, 2)
    with pytest.raises(MemtoolError, match="do not fit the model resnet18"):
        load(foreign, "resnet18", dataset)


def test_what_is_no_checkpoint_is_not_loaded(tmp_path, runs):
    with pytest.raises(MemtoolError, match="none.safetensors: no such file"):
        load(tmp_path / "none.safetensors")
    with pytest.raises(MemtoolError, match="is a labels file, not a checkpoint file"):
        load(runs.noisy_labels)


# --- Trust ----------------------------------------------------------------------------------------

OWN = """
from pathlib import Path
from torch import nn
Path("ran").touch()

def make(num_classes=2):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """A checkpoint whose metadata name a file of code, which leaves a trace where it runs."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(OWN)
    spec = models.parse("net.py:make")
    path = written(tmp_path / "own.safetensors", models.build(spec), spec)
    Path("ran").unlink()
    return path


def test_the_code_that_metadata_name_runs_only_if_trusted(run, own):
    assert run("info", own).code == 0
    result = run("info", "--layers", own)
    assert result.code == 1 and "--trust" in result.stderr and result.stderr.count("\n") == 1
    assert "--model net.py:make" in result.stderr
    assert not Path("ran").exists()
    assert run("info", "--layers", own, "--trust").code == 0
    assert Path("ran").exists()


def test_code_is_not_run_by_loading_unless_trusted(own):
    with pytest.raises(MemtoolError, match="--trust"):
        load(own)
    assert not Path("ran").exists()
    assert load(own, trust=True)(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)).shape == (3, 2)
    assert Path("ran").exists()


def test_code_that_has_changed_does_not_run_even_if_trusted(run, own):
    Path("net.py").write_text(OWN + "\n")
    result = run("info", "--layers", own, "--trust")
    assert result.code == 1 and "SHA-256" in result.stderr and not Path("ran").exists()
    Path("net.py").unlink()
    result = run("info", "--layers", own, "--trust")
    assert result.code == 1 and "net.py: cannot be read" in result.stderr


def test_code_that_was_typed_runs_whatever_the_metadata_say(run, own):
    Path("net.py").write_text(OWN + "\n")
    assert run("info", "--layers", own, "--model", "net.py:make").code == 0


def test_code_in_the_parts_of_a_stitched_model_does_not_run(run, own):
    part = read_metadata(own)["model"]
    layer = {"connector": "linear", "front": [64], "back": [64], "batch_norm": False}
    spec = ModelSpec("stitched", {"front": part, "back": part, "front_layer": "0",
                                  "back_layer": "0", "stitching": layer})  # fmt: skip
    path = written(own.with_name("stitched.safetensors"), nn.Linear(1, 1), spec)
    result = run("info", "--layers", path)
    assert result.code == 1 and "--trust" in result.stderr and not Path("ran").exists()


# --- Metadata that lie ----------------------------------------------------------------------------


SECTIONS = {
    "model": 3,
    "data": [],
    "training": None,
    "mean": {"data": {**DATA, "mean": "0.5"}},
    "std": {"data": {**DATA, "std": [0]}},
    "classes": {"data": {**DATA, "classes": 2}},
    "name": {"data": {**DATA, "name": 2}},
    "fingerprint": {"data": {**DATA, "fingerprint": []}},
    "image_shape": {"data": {**DATA, "image_shape": [3, 10**9, 10**9]}},
    "epoch": {"training": {"epoch": "last"}},
    "noise_ratio": {"training": {"noise_ratio": []}},
    "metrics": {"metrics": 3},
    "loss": {"metrics": {"loss": "0.5"}},
    "test": {"data": {**DATA, "test": "many"}},
    "torch": {"computed_by": {"torch": ["2.0"]}},
    "history": {"history": {"epoch": 1}},
}


@pytest.mark.parametrize("name", SECTIONS)
def test_sections_of_another_type_are_one_error(run, small, tmp_path, name):
    changed = SECTIONS[name] if isinstance(SECTIONS[name], dict) else {name: SECTIONS[name]}
    path = tmp_path / "typed.safetensors"
    save_tensors(path, "checkpoint", load_file(small), {**read_metadata(small), **changed})
    for command in (("info", path), ("info", "--layers", path), ("cka", path, path)):
        result = run(*command)
        assert result.code == 1 and f"{name!r}" in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "name, options",
    [
        ("digits-cnn", {"num_classes": 10**12}),
        ("digits-cnn", {"image_size": 10**9}),
        ("digits-cnn", {"num_classes": -(10**30)}),
        ("resnet18", {"width": 10**12}),
        ("resnet18", {"width": 2000}),
        ("resnet18", {"width": {"a": [10**12]}}),
        ("torchvision:vit_b_16", {"image_size": 16 * 10**6}),
        ("torchvision:resnet18", {"weights": "DEFAULT"}),
        ("torchvision:densenet121", {"growth_rate": 10**9}),
        ("timm:vit_tiny_patch16_224", {"depth": 10**9}),
        ("timm:resnet18", {"checkpoint_path": "x.pth"}),
        ("nowhere", {}),
    ],
)
def test_a_model_far_larger_than_the_file_is_never_made(run, tmp_path, name, options):
    path = tmp_path / "large.safetensors"
    written(path, nn.Linear(2, 2), ModelSpec(name, options))
    tracemalloc.start()
    result = run("info", "--layers", path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.code == 1 and result.stderr.startswith(f"memtool: error: {path}: ")
    assert result.stderr.count("\n") == 1
    assert peak < 200e6
    assert run("info", path).code == 0


# --- What a pass takes ----------------------------------------------------------------------------


def test_a_footprint_needs_no_weights(small, tmp_path, monkeypatch):
    monkeypatch.setitem(footprint.__globals__, "SMALL_MODEL", 0)  # as those of larger models
    expected = footprint(nets.digits_cnn(2), (1, 8, 8))
    checkpoint = Checkpoint.open(small)
    monkeypatch.setattr(Checkpoint, "tensors", lambda self: pytest.fail("weights are read"))
    assert checkpoint.footprint() == expected
    calls = []
    measured = Checkpoint.footprint
    monkeypatch.setattr(
        Checkpoint, "footprint", lambda self: calls.append(self.path) or measured(self)
    )
    assert footprints([checkpoint, checkpoint]) == [expected, expected]
    assert calls == [small]


LOOKING = """
from torch import nn

class Looking(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.fc = nn.Linear(64, num_classes)

    def forward(self, images):
        x = images.flatten(1)
        return self.fc(x - x.mean().item())
"""


def test_a_footprint_of_a_model_that_looks_at_values(tmp_path):
    (tmp_path / "net.py").write_text(LOOKING)
    spec = models.parse(f"{tmp_path}/net.py:Looking")
    path = written(tmp_path / "n.safetensors", models.build(spec), spec)
    found = Checkpoint.open(path, spec).footprint()
    # The mean; the images, their difference to it and the logits, half as much again.
    assert found == Footprint(4, 4 * (64 + 64 + 2) * 3 // 2)
