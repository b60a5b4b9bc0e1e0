"""Architectures of others, with random weights: layers, CKA and stitching from the command line."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from memtool import models

OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=2, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images):
        x = self.relu(self.stem(images))
        x = self.relu(x + self.conv(x))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))

def make(num_classes=2, width=8):
    return Net(num_classes, width)
"""

# Size of the images, model, and the cuts to stitch at: the stages of each.
MODELS = {
    "torchvision:resnet18": (32, "layer?"),
    "torchvision:densenet121": (32, "features.denseblock?"),
    "torchvision:mobilenet_v3_small": (32, "features.1,features.12"),
    "torchvision:vit_b_32?image_size=32": (32, "encoder.layers.encoder_layer_1*"),
    "torchvision:swin_t": (32, "features.1,features.7"),
    "torchvision:googlenet": (32, "inception3b,inception5b"),
    "torchvision:inception_v3": (75, "Mixed_5d,Mixed_7c"),
    "torchvision:shufflenet_v2_x0_5": (32, "stage?"),
    "timm:resnet10t": (32, "layer?"),
    "timm:vit_tiny_patch16_224?img_size=32&depth=3": (32, "blocks.?"),
    "timm:convnext_atto": (32, "stages.?"),
    "timm:mixer_s32_224?img_size=32": (32, "blocks.?"),
    "net.py:make": (32, "relu,relu_1"),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folder data sets of 8 + 4 random images in two classes, by size."""

    def made(size: int) -> str:
        root = tmp_path_factory.mktemp(f"images{size}")
        generator = np.random.default_rng(size)
        for part, count in (("train", 4), ("test", 2)):
            for label in "ab":
                (root / part / label).mkdir(parents=True)
                for number in range(count):
                    pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(root / part / label / f"{number}.png")
        return f"folder:{root}"

    return {32: made(32), 75: made(75)}


def rows_of(result) -> list[dict[str, str]]:
    assert result.code == 0, result.stderr
    return list(csv.DictReader(io.StringIO(result.stdout)))


@pytest.mark.slow
@pytest.mark.parametrize("text", MODELS)
def test_every_command_takes_it(run, tmp_path, monkeypatch, images, text):
    if text.startswith("timm:"):
        pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(OWN)
    size, stages = MODELS[text]
    torch.manual_seed(0)
    spec = models.complete_for_dataset(models.parse(text), (3, size, size), 2)
    save_file(models.build(spec).state_dict(), "a.safetensors")
    model = ("--model", text)
    listed = rows_of(run("info", "--layers", "a.safetensors", *model, "--image-size", size))
    cuts = {row["layer"] for row in listed if row["cut"] == "true"}
    assert listed[-1]["shape"] == "2" and all(row["shape"] for row in listed)
    pair = ("a.safetensors", "a.safetensors", *model, "--data", images[size])
    compared = rows_of(run("cka", *pair, "--layers", "all"))
    assert [row["layer"] for row in compared] == [row["layer"] for row in listed]
    values = [float(row["cka"]) for row in compared if row["cka"]]
    assert len(values) > len(compared) / 2 and np.allclose(values, 1, atol=1e-4)
    stitched = rows_of(run("stitch", *pair, "--at", stages, "--init", "identity", "--epochs", 0))
    assert {row["front_layer"] for row in stitched} <= cuts and len(stitched) >= 2
    assert all(float(row["agreement"]) == 1 for row in stitched)
