"""Preprocessing: what configurations beside weights say, and what is done with it."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import transforms

from memtool import data
from memtool.checkpoints import Checkpoint, load
from memtool.checkpoints.preprocessing import Preprocessing, told_by
from memtool.models import parse

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]
CONFIG = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 2,
    "model_args": {"img_size": 32, "depth": 1},
    "pretrained_cfg": {
        "input_size": [3, 32, 32],
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "crop_mode": "center",
        "mean": MEAN,
        "std": STD,
    },
}
OPTIONS = "image_size=32&crop_pct=0.9&crop_mode=center&interpolation=bilinear"


def of_section(**changed: object) -> Preprocessing:
    return told_by({"pretrained_cfg": {**CONFIG["pretrained_cfg"], **changed}}, {})


def test_a_config_of_timm_says_all() -> None:
    told = told_by(CONFIG, {})
    assert told.statistics == {"mean": MEAN, "std": STD} and told.image_shape == [3, 32, 32]
    assert told.resizing == {
        "image_size": 32,
        "crop_pct": 0.9,
        "crop_mode": "center",
        "interpolation": "bilinear",
    }
    flat = {"architecture": "resnet18", **CONFIG["pretrained_cfg"]}
    assert told_by(flat, {}) == told
    assert not told.doubts


def test_what_a_config_leaves_out_is_as_in_timm() -> None:
    config = pytest.importorskip("timm.data").resolve_data_config
    for section in ({"input_size": [3, 48, 48]}, {"crop_pct": 0.95}, {"interpolation": "nearest"}):
        told = told_by({"pretrained_cfg": section}, {})
        expected = config(pretrained_cfg=section)
        for name in ("crop_pct", "crop_mode", "interpolation"):
            assert told.resizing[name] == expected[name]
        assert ("image_size" in told.resizing) == ("input_size" in section)
    assert told_by({"pretrained_cfg": {"mean": MEAN, "std": STD}}, {}).resizing == {}
    assert told_by({"image_size": 224, "mean": MEAN, "std": STD}, {}) == Preprocessing()


@pytest.mark.parametrize(
    "changed, doubt",
    [
        ({"crop_pct": 90}, "crop_pct 90; 0.875 is taken"),
        ({"crop_pct": True}, "crop_pct True; 0.875 is taken"),
        ({"crop_mode": "middle"}, "crop_mode 'middle'; center is taken"),
        ({"interpolation": "random"}, "interpolation 'random'; bicubic is taken"),
        ({"std": [0, 1, 1]}, "mean and std [0.5, 0.4, 0.3] and [0, 1, 1]"),
        ({"mean": "x"}, "mean and std 'x' and"),
        ({"mean": [float("nan")] * 3}, "mean and std [nan, nan, nan]"),
        ({"input_size": [3, 64]}, "input_size [3, 64]"),
        ({"input_size": [3, 64, 10**9]}, "input_size [3, 64, 1000000000]"),
        ({"input_size": [3, 64, 48]}, "not square, [3, 64, 48]"),
        ({"crop_mode": "border", "mean": None, "std": None}, "'border' without mean"),
    ],
)
def test_what_makes_no_sense_is_told(changed: dict[str, object], doubt: str) -> None:
    (told,) = of_section(**changed).doubts
    assert doubt in told


SQUASHED = {"image_size": 32, "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bicubic"}
PROCESSOR = {
    "image_mean": MEAN,
    "image_std": STD,
    "resample": 3,
    "size": {"height": 32, "width": 32},
}


@pytest.mark.parametrize(
    "changed, resizing",
    [
        ({}, SQUASHED),
        ({"size": 32}, SQUASHED),
        (
            {"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True},
            {"image_size": 224, "crop_pct": 0.875, "crop_mode": "center"},
        ),
        (
            {
                "size": {"shortest_edge": 235},
                "crop_size": {"height": 224, "width": 224},
                "do_center_crop": True,
            },
            {"image_size": 224, "crop_pct": 224 / 235, "crop_mode": "center"},
        ),
        (
            {"size": {"shortest_edge": 224}, "crop_pct": 0.875},
            {"image_size": 224, "crop_pct": 0.875, "crop_mode": "center"},
        ),
        (
            {"size": {"shortest_edge": 384}, "crop_pct": 0.875},
            {"image_size": 384, "crop_pct": 1.0, "crop_mode": "squash"},
        ),
        (
            {"size": 256, "crop_size": 224, "do_center_crop": True},
            {"image_size": 224, "crop_pct": 0.875, "crop_mode": "center"},
        ),
        (
            {"size": {"height": 40, "width": 40}, "crop_size": 32, "do_center_crop": True},
            {"image_size": 32, "crop_pct": 0.8, "crop_mode": "squash"},
        ),
        ({"size": {"longest_edge": 384}}, {}),
        ({"size": {"shortest_edge": 384}}, {}),
        ({"crop_pct": [1], "size": {"shortest_edge": 64}}, {}),
        ({"crop_size": 64, "do_center_crop": True}, {}),
        ({"resample": "x"}, {}),
        ({"do_resize": False}, {}),
        ({"size": {"height": 32, "width": 64}}, {}),
        ({"size": {"height": True, "width": True}}, {}),
        ({"do_center_crop": True, "crop_size": {"height": 32, "width": 24}}, {}),
    ],
)
def test_a_processor_of_transformers(changed: dict[str, object], resizing: dict) -> None:
    told = told_by({"architectures": ["ViT"]}, {**PROCESSOR, **changed})
    assert told.statistics == {"mean": MEAN, "std": STD}
    assert told.resizing == ({"interpolation": "bicubic", **resizing} if resizing else {})
    assert bool(told.doubts) == (not resizing)


@pytest.mark.parametrize(
    "changed",
    [{"do_normalize": False}, {"rescale_factor": 0.5}, {"rescale_offset": True},
     {"do_rescale": False}],
    ids=str,
)  # fmt: skip
def test_a_normalization_of_its_own_is_told(changed: dict[str, object]) -> None:
    told = told_by({}, {**PROCESSOR, **changed})
    assert told.statistics == {} and "normalization of its own" in told.doubts[0]


# --- In use ---------------------------------------------------------------------------------------


def network(classes: int = 2) -> nn.Module:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=1, num_classes=classes
    )
    return model.eval()


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    """Weights with a config beside them."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    torch.save(network().state_dict(), tmp_path / "weights.pth")
    save_file(network().state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def bare(vit: Path) -> Path:
    """The same weights without a config."""
    path = vit.parent / "bare/model.safetensors"
    path.parent.mkdir()
    path.write_bytes(vit.read_bytes())
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Pictures of several sizes in two classes, for training and for testing."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in ("a", "b"):
            (root / part / label).mkdir(parents=True)
            for number in range(6):
                pixels = generator.integers(0, 256, (40 + 3 * number, 61, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{number}.png")
    return root


SPEC = "timm:vit_tiny_patch16_224?img_size=32&depth=1&num_classes=2"
CKA = ("--layers", "blocks.0", "--format", "jsonl")


def test_logits_are_those_that_timm_gives(vit: Path, photos: Path, run) -> None:
    row = json.loads(run("cka", vit, vit, "--data", f"folder:{photos}", *CKA).stdout)
    assert row["data"] == f"folder:{photos}?{OPTIONS}"
    images = torch.from_numpy(data.load(row["data"]).test.images)
    transform = pytest.importorskip("timm.data").create_transform(
        **{**CONFIG["pretrained_cfg"], "is_training": False}
    )
    files = sorted(photos.glob("test/*/*.png"))
    usual = transforms.Compose([transforms.Resize(35), transforms.CenterCrop(32)])
    for file, image in zip(files, images, strict=True):
        expected = torch.from_numpy(np.asarray(usual(Image.open(file))).copy()).permute(2, 0, 1)
        assert (image == expected).all()
    batch = torch.stack([transform(Image.open(file)) for file in files])
    with torch.no_grad():
        assert torch.allclose(load(vit)(images), network()(batch), atol=1e-5)


def test_a_typed_model_does_not_hide_the_config(vit: Path, photos: Path, run) -> None:
    result = run("cka", vit, vit, "--model", SPEC, "--data", f"folder:{photos}", *CKA)
    assert json.loads(result.stdout)["data"] == f"folder:{photos}?{OPTIONS}"
    assert f"{vit}: its configuration says how its images are prepared" in result.stderr


def test_options_typed_go_before_those_of_the_config(vit: Path, photos: Path, run) -> None:
    spec = f"folder:{photos}?crop_pct=1"
    row = json.loads(run("cka", vit, vit, "--data", spec, "--image-size", 32, *CKA).stdout)
    assert row["data"] == f"{spec}&image_size=32&crop_mode=center&interpolation=bilinear"
    typed = f"folder:{photos}?{OPTIONS}&mean=0.1,0.2,0.3"
    result = run("cka", vit, vit, "--data", typed, *CKA)
    assert json.loads(result.stdout)["data"] == typed
    assert f"the mean [0.1, 0.2, 0.3] that {typed} says is taken instead" in result.stderr
    assert "does not say" not in result.stderr
    known = Checkpoint.open(vit).with_dataset(data.load(typed)).data
    assert known["mean"] == [0.1, 0.2, 0.3] and known["std"] == STD


def test_converted_weights_keep_it(vit: Path, photos: Path, run) -> None:
    output = vit.parent / "out/converted.safetensors"
    output.parent.mkdir()
    assert run("convert", vit.parent / "weights.pth", "-o", output).code == 0
    recorded = Checkpoint.open(output).data
    assert recorded == {"mean": MEAN, "std": STD, "preprocessing": told_by(CONFIG, {}).resizing}
    row = json.loads(run("cka", output, vit, "--data", f"folder:{photos}", *CKA).stdout)
    assert row["data"] == f"folder:{photos}?{OPTIONS}" and row["cka"] == pytest.approx(1)
    told = json.loads(run("info", output, "--format", "jsonl").stdout)
    assert told["mean"] == "0.5 0.4 0.3" and told["image_shape"] == "3x32x32"


def test_converting_with_a_data_set_records_its_images(vit: Path, photos: Path, run) -> None:
    output = vit.parent / "out/converted.safetensors"
    output.parent.mkdir()
    weights = vit.parent / "weights.pth"
    assert run("convert", weights, "-o", output, "--data", f"folder:{photos}").code == 0
    recorded = Checkpoint.open(output).data
    assert recorded["name"] == f"folder:{photos}?{OPTIONS}" and recorded["mean"] == MEAN
    assert recorded["fingerprint"] == data.load(recorded["name"]).fingerprint
    row = json.loads(run("cka", output, output, *CKA).stdout)
    assert row["data"] == recorded["name"]


def test_a_border_has_the_color_of_the_config(vit: Path, photos: Path, run) -> None:
    section = {**CONFIG["pretrained_cfg"], "crop_mode": "border", "crop_pct": 1}
    config = {**CONFIG, "pretrained_cfg": section}
    vit.with_name("config.json").write_text(json.dumps(config))
    row = json.loads(run("cka", vit, vit, "--data", f"folder:{photos}", *CKA).stdout)
    assert row["data"].endswith("&mean=0.5,0.4,0.3&std=0.2,0.3,0.25")
    (corner,) = np.unique(data.load(row["data"]).test.images[:, :, 0, 0], axis=0)
    assert corner.tolist() == [128, 102, 76]


def test_a_border_that_is_typed_has_the_color_of_the_config(vit: Path, photos: Path, run) -> None:
    spec = f"folder:{photos}?crop_mode=border"
    row = json.loads(run("cka", vit, vit, "--data", spec, *CKA).stdout)
    assert row["data"].startswith(f"{spec}&image_size=32&crop_pct=0.9&interpolation=bilinear&mean=")
    assert data.load(row["data"]).options.mean == MEAN


def test_gray_images_for_statistics_of_three_channels_are_refused(vit: Path, run) -> None:
    output = vit.parent / "converted.safetensors"
    told = "normalized by 3 means, those of digits?"
    for command in (("cka", vit, vit), ("convert", vit, "-o", output)):
        result = run(*command, "--data", "digits")
        assert result.code == 1 and told in result.stderr and "channels=3" in result.stderr
    assert not output.exists()
    vit.with_name("config.json").write_text(json.dumps({**CONFIG, "num_classes": 10}))
    save_file(network(classes=10).state_dict(), vit)
    result = run("convert", vit, "-o", output, "--data", "digits?channels=3")
    assert result.code == 0, result.stderr
    assert Checkpoint.open(output).data["image_shape"] == [3, 32, 32]


def test_a_config_without_a_size_takes_that_of_the_model(vit: Path, photos: Path, run) -> None:
    config = {**CONFIG, "pretrained_cfg": {"crop_pct": 0.9, "mean": MEAN, "std": STD}}
    vit.with_name("config.json").write_text(json.dumps(config))
    row = json.loads(run("cka", vit, vit, "--data", f"folder:{photos}", *CKA).stdout)
    assert "?image_size=32&crop_pct=0.9&crop_mode=center&interpolation=bicubic" in row["data"]


def test_networks_that_take_other_images_are_told(
    vit: Path, bare: Path, photos: Path, run, caplog
) -> None:
    spec = f"folder:{photos}?image_size=32"
    result = run("cka", vit, bare, "--model", SPEC, "--data", spec, "-q", *CKA)
    assert json.loads(result.stdout)["data"] == spec
    told = f"{vit}: its configuration would prepare the images of {spec} otherwise: crop_pct=0.9, "
    assert told in result.stderr
    same = run("cka", bare, vit, "--model", SPEC, "--data", f"folder:{photos}", "-q", *CKA)
    assert same.stderr == ""
    with caplog.at_level(logging.WARNING, "memtool"):
        load(vit, dataset=data.load(spec))
    assert told in caplog.text


def test_a_config_says_nothing_of_images_turned_upright(
    vit: Path, photos: Path, run, caplog
) -> None:
    upright = f"folder:{photos}?orient=true"
    assert run("cka", vit, vit, "--data", upright, "-q", *CKA).stderr == ""
    with caplog.at_level(logging.WARNING, "memtool"):
        load(vit, dataset=data.load(f"{upright}&image_size=32&crop_pct=0.5"))
    (told,) = caplog.messages
    assert told.endswith("otherwise: crop_pct=0.9")


def test_an_unknown_normalization_is_told(bare: Path, photos: Path, run) -> None:
    spec = f"folder:{photos}?image_size=32"
    result = run("cka", bare, bare, "--model", SPEC, "--data", spec, *CKA)
    assert f"{bare}: does not say how its images are normalized; took the mean and std of the " in (
        result.stderr
    )
    assert f"training images of {spec} " in result.stderr
    assert "ImageNet's are mean=0.485,0.456,0.406&std=" in result.stderr
    few = run("cka", bare, bare, "--model", SPEC, "--data", spec, "--samples", 8, *CKA)
    assert "of the test images of" in few.stderr
    given = f"{spec}&mean=0.5,0.5,0.5&std=0.5,0.5,0.5"
    result = run("cka", bare, bare, "--model", SPEC, "--data", given, *CKA)
    assert "normalized" not in result.stderr


def test_a_config_that_asks_for_the_impossible_is_told(vit: Path, run) -> None:
    section = {**CONFIG["pretrained_cfg"], "interpolation": "magic"}
    vit.with_name("config.json").write_text(json.dumps({**CONFIG, "pretrained_cfg": section}))
    result = run("info", vit, "-q")
    assert f"{vit}: the configuration beside it asks for what is not done: " in result.stderr
    assert "interpolation 'magic'; bicubic is taken" in result.stderr
    vit.with_name("config.json").write_text(json.dumps(CONFIG))
    assert run("info", vit, "-q").stderr == ""


def test_a_processor_beside_the_weights_is_followed(bare: Path, photos: Path, run) -> None:
    bare.with_name("preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    result = run("cka", bare, bare, "--model", SPEC, "--data", f"folder:{photos}", *CKA)
    assert json.loads(result.stdout)["data"] == (
        f"folder:{photos}?image_size=32&crop_pct=1.0&crop_mode=squash&interpolation=bicubic"
    )
    assert Checkpoint.open(bare, parse(SPEC)).data["mean"] == MEAN
