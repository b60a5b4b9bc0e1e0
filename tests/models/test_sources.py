"""Where models come from: names, options, data sets and files of code."""

import random
import sys

import pytest
import torch
from torch import nn

from memtool import MemtoolError, models
from memtool.models import ModelSpec

OWN_NET = """
from torch import nn

def make(num_classes=10, channels=3, width=4):
    return nn.Sequential(nn.Conv2d(channels, width, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, num_classes))

def number():
    return 3

def broken():
    raise ValueError("no such\\nluck")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The text of a spec of a user's own network."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(OWN_NET)
    return "net.py:make"


def test_timm_models_are_built_with_or_without_the_tag_of_their_weights():
    pytest.importorskip("timm")
    for name in ("timm:vit_tiny_patch16_224", "timm:vit_tiny_patch16_224.augreg_in21k"):
        spec = models.complete_for_dataset(models.parse(name), (1, 32, 32), 7)
        assert spec.options == {"num_classes": 7, "in_chans": 1, "img_size": 32}
        assert models.skeleton(spec).head.out_features == 7


def test_a_timm_option_of_another_meaning_is_left_alone():
    pytest.importorskip("timm")
    spec = models.complete_for_dataset(models.parse("timm:resnet10t"), (1, 32, 32), 7)
    assert spec.options == {"num_classes": 7, "in_chans": 1}
    assert models.skeleton(spec).fc.out_features == 7


@pytest.mark.parametrize(
    "text, message",
    [
        ("resnet81", r"unknown model 'resnet81'; nearest: .*resnet18.* \(looked in: digits-cnn"),
        ("efficientnet_b0", "nearest: torchvision:efficientnet_b0"),
        ("torchvision:resnet19", "nearest: torchvision:resnet18"),
        ("qqqqqqqq", r"unknown model 'qqqqqqqq' \(looked in: .*torchvision:NAME, FILE.py:FACTORY"),
        ("resnet18?widht=3", r"has no option 'widht' \(it has: num_classes, channels, width\)"),
        ("torchvision:resnet18?widht=3", "has no option 'widht'.*width_per_group"),
        ("torchvision:resnet18?weights=DEFAULT", "'weights' is no option here"),
        ("timm:resnet18?pretrained=true", "'pretrained' is no option here"),
        ("timm:resnet18?checkpoint_path=evil.pth", "'checkpoint_path' is no option here"),
        ("timm:hf-hub:someone/something", "unknown model"),
        ("resnet18?width", "options go as NAME"),
        ("nowhere.py:make", "nowhere.py: cannot be read"),
        ("net.py?width=6", "model 'net.py': name its function, too: net.py:FACTORY"),
        ("nowhere.json", "nowhere.json: cannot be read"),
    ],
)
def test_specs_that_are_refused(text, message):
    with pytest.raises(MemtoolError, match=message):
        models.parse(text)


def test_without_timm_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("memtool.models.sources.find_spec", lambda name: None)
    with pytest.raises(MemtoolError, match=r"pip install 'memtool\[timm\]'"):
        models.parse("timm:resnet18")
    with pytest.raises(MemtoolError, match=r"timm, which is not installed"):
        models.parse("qqqqqqqq")


@pytest.mark.parametrize(
    "text, options",
    [
        ("digits-cnn", {"num_classes": 7, "channels": 3, "image_size": 32}),
        ("resnet18?num_classes=5", {"num_classes": 5, "channels": 3}),
        ("torchvision:resnet18", {"num_classes": 7}),
        ("torchvision:vit_b_32", {"num_classes": 7, "image_size": 32}),
    ],
)
def test_the_data_set_settles_options_that_were_not_given(text, options):
    assert models.complete_for_dataset(models.parse(text), (3, 32, 32), 7).options == options


def test_images_that_a_model_cannot_take_are_refused():
    with pytest.raises(MemtoolError, match="takes square images, these are 8x16"):
        models.complete_for_dataset(models.parse("cnn"), (3, 16, 8), 7)
    with pytest.raises(MemtoolError, match="takes images of 3 channels, these have 1"):
        models.complete_for_dataset(models.parse("torchvision:resnet18"), (1, 32, 32), 7)


def test_a_factory_of_ones_own_is_called_with_the_options_typed(own):
    spec = models.parse(f"{own}?width=6")
    assert models.complete_for_dataset(spec, (1, 8, 8), 5).options == {
        "width": 6,
        "num_classes": 5,
        "channels": 1,
    }
    assert models.build(spec)[0].out_channels == 6
    with pytest.raises(MemtoolError, match="has no option 'depth'.*num_classes, channels, width"):
        models.parse(f"{own}?depth=3")


def test_a_network_in_place_of_its_factory_is_told_apart(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text("from torch import nn\nnet = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n")
    with pytest.raises(MemtoolError, match="nets.py: 'net' is a network, not a function or class"):
        models.parse(f"{path}:net")


def test_what_goes_wrong_in_ones_own_factory_is_told_in_a_line(own, tmp_path):
    with pytest.raises(MemtoolError, match="net.py: has no function or class 'mak'; it has: make"):
        models.parse("net.py:mak")
    with pytest.raises(MemtoolError, match="gives an object of type int, not a torch.nn.Module"):
        models.build(models.parse("net.py:number"))
    with pytest.raises(MemtoolError, match="cannot be built: ValueError: no such$"):
        models.build(models.parse("net.py:broken"))
    (tmp_path / "bad.py").write_text("def make(:")
    with pytest.raises(MemtoolError, match="bad.py: cannot be run .SyntaxError"):
        models.parse("bad.py:make")


CONFIGURED = """
from __future__ import annotations

from dataclasses import dataclass
from torch import nn

@dataclass
class Config:
    width: int = 6

def make(num_classes=10, channels=1):
    return nn.Sequential(nn.Conv2d(channels, Config().width, 3), nn.Flatten())
"""


@pytest.mark.parametrize("name", ["net.py", "random.py", "torch.py", "my-net 2.py"])
def test_a_file_of_code_is_a_module_of_its_own(tmp_path, name):
    """In which dataclasses look up the names of their fields' types."""
    (tmp_path / name).write_text(CONFIGURED)
    assert models.build(models.parse(f"{tmp_path / name}:make"))[0].out_channels == 6
    assert sys.modules["random"] is random and sys.modules["torch"] is torch


def test_a_module_that_lies_around_a_file_of_code_is_told(tmp_path):
    (tmp_path / "nets" / "parts").mkdir(parents=True)
    (tmp_path / "blocks.py").touch()
    net = tmp_path / "nets" / "net.py"
    for line, folder in (
        ("from blocks import Block", tmp_path),
        ("import parts.block", net.parent),
        ("import nets.parts", tmp_path),
        ("import nowhere_to_be_found", None),
    ):
        net.write_text(line)
        with pytest.raises(MemtoolError, match="net.py: cannot be run .ModuleNotFound") as caught:
            models.parse(f"{net}:make")
        told = f"; it is found with PYTHONPATH={folder}" if folder else ")"
        assert str(caught.value).endswith(told)


def test_code_that_stands_in_metadata_does_not_run(own, tmp_path):
    spec = models.parse(own)
    (tmp_path / "net.py").write_text("from pathlib import Path\nPath('ran').touch()\n" + OWN_NET)
    recorded = ModelSpec.from_json(spec.json())
    with pytest.raises(MemtoolError, match="is code.*pass --trust, or type it: --model net.py"):
        models.build(recorded)
    with pytest.raises(MemtoolError, match="SHA-256 differs"):
        models.build(ModelSpec(recorded.name, {}, recorded.sha256, trusted=True))
    with pytest.raises(MemtoolError, match="SHA-256 differs"):
        models.build(ModelSpec(recorded.name, {}, None, trusted=True))
    assert not (tmp_path / "ran").exists()
    models.parse(own)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text, shape",
    [
        ("digits-cnn", (1, 8, 8)),
        ("cnn?channels=1", (1, 32, 32)),
        ("resnet18", (3, 32, 32)),
        ("torchvision:resnet18", (3, 224, 224)),
        ("torchvision:inception_v3", (3, 299, 299)),
        ("torchvision:vit_b_16?image_size=64", (3, 64, 64)),
        ("timm:vit_tiny_patch16_384", (3, 384, 384)),
        ("timm:vit_tiny_patch16_224?img_size=32&in_chans=1", (1, 32, 32)),
    ],
)
def test_the_images_that_a_model_is_meant_for(text, shape):
    assert models.image_shape(models.parse(text)) == shape


@pytest.mark.parametrize("options", ["image_size=[]", "image_size=0", "channels=a", "image_size=x"])
def test_options_that_are_no_size_of_images_are_refused(options):
    with pytest.raises(MemtoolError, match="takes no images of"):
        models.image_shape(models.parse(f"digits-cnn?{options}"))


def test_a_function_of_ones_own_says_nothing_of_its_images_by_its_name(own, tmp_path):
    with (tmp_path / "net.py").open("a") as file:
        file.write("def resnet18(num_classes=10): return make(num_classes)\n")
    assert models.image_shape(models.parse("net.py:resnet18")) == (3, 224, 224)


@pytest.mark.parametrize("name", models.OURS)
def test_our_networks_are_built_by_their_names(name):
    assert isinstance(models.build(models.parse(f"{name}?num_classes=3")), nn.Module)


def test_classes_of_a_file_are_named_too_and_a_relative_import_is_explained(tmp_path):
    (tmp_path / "net.py").write_text("from torch import nn\nclass Net(nn.Identity): pass\n")
    with pytest.raises(MemtoolError, match="no function or class 'net'; it has: Net$"):
        models.build(models.parse(f"{tmp_path}/net.py:net"))
    (tmp_path / "other.py").write_text("from .net import Net\n")
    with pytest.raises(MemtoolError, match="no part of a package: import by whole names"):
        models.build(models.parse(f"{tmp_path}/other.py:Net"))


@pytest.mark.parametrize("name", ["efficientvit_b0", "deit_tiny_distilled_patch16_224"])
def test_models_of_timm_that_are_not_annotated_or_pass_options_on_have_theirs(name):
    spec = models.complete_for_dataset(models.parse(f"timm:{name}"), (3, 224, 224), 7)
    assert spec.options["num_classes"] == 7
    with pytest.raises(MemtoolError, match="has no option 'colour'"):
        models.build(models.parse(f"timm:{name}?colour=3"))
