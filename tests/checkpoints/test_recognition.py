"""What checkpoints that memtool did not write are recognized as."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from memtool import MemtoolError, models
from memtool.checkpoints import Checkpoint, recognition
from memtool.models import ModelSpec

Tensors = dict[str, torch.Tensor]


def tensors_of(text: str) -> Tensors:
    """Tensors under the names and of the shapes of a model's, without their memory."""
    state = models.skeleton(models.parse(text)).state_dict()
    return {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in state.items()}


def shapes_of(text: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    state = models.skeleton(models.parse(text)).state_dict()
    return tuple((name, tuple(tensor.shape)) for name, tensor in state.items())


def saved(path: Path, tensors: Tensors) -> Path:
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "digits-cnn?num_classes=7&channels=3&image_size=32",
        "cnn?num_classes=7&channels=1&image_size=28&width=4",
        "resnet18?num_classes=7&channels=1&width=16",
        "torchvision:resnet18?num_classes=7",
        "torchvision:vgg11_bn?num_classes=7",
        "torchvision:vit_b_16?num_classes=7&image_size=32",
        "torchvision:swin_t",
        "torchvision:googlenet?num_classes=7",
        "torchvision:inception_v3?num_classes=7&aux_logits=false",
        "torchvision:regnet_y_400mf?num_classes=7",
    ],
)
def test_names_and_shapes_tell_one_model_and_its_options(text):
    assert recognition.matching(shapes_of(text)) == [models.parse(text)]


def test_nothing_else_is_recognized():
    shapes = dict(shapes_of("torchvision:resnet18"))
    for changed in (
        {**shapes, "more": (1,)},
        {**shapes, "layer1.0.conv1.weight": (64, 64, 5, 5)},
        {"weight": (3, 3)},
    ):
        assert recognition.matching(tuple(changed.items())) == []


def test_old_files_without_counts_of_batches_are_recognized(tmp_path):
    old = {key: value for key, value in tensors_of("torchvision:resnet18").items()
           if "num_batches_tracked" not in key}  # fmt: skip
    checkpoint = Checkpoint.open(saved(tmp_path / "old.safetensors", old))
    assert checkpoint.spec == ModelSpec("torchvision:resnet18")
    assert checkpoint.model().bn1.num_batches_tracked == 0


def test_an_option_that_tensors_do_not_show_is_told(caplog):
    caplog.set_level("INFO")
    shapes = dict(shapes_of("torchvision:googlenet"))
    assert recognition.identify(Path("g.safetensors"), shapes, None).known_by == "tensors"
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == (
        "g.safetensors: recognized as torchvision:googlenet by the names and shapes of its tensors"
    )
    assert told[1].endswith("pass --model 'torchvision:googlenet?transform_input=true' for those")


def test_several_candidates_are_listed(tmp_path, monkeypatch):
    twins = [ModelSpec("resnet18", {"width": 4}), ModelSpec("torchvision:resnet18")]
    monkeypatch.setattr(recognition, "matching", lambda *shapes: twins)
    path = saved(tmp_path / "t.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(
        MemtoolError,
        match=r"several models; say which: --model 'resnet18\?width=4' or --model 'torchvision:",
    ):
        Checkpoint.open(path)


def test_what_is_not_recognized_asks_for_a_model(run, tmp_path):
    path = saved(tmp_path / "x.safetensors", {"a": torch.zeros(1), "b": torch.zeros(2)})
    result = run("info", "--layers", path)
    assert result.code == 1
    assert "its 2 tensors (a, b) are those of no model of ours or of torchvision" in result.stderr
    assert "--model SPEC" in result.stderr
    result = run("info", path, "--format", "jsonl")
    row = json.loads(result.stdout)
    assert result.code == 0 and row["model"] is None and row["parameters"] == 3
    assert "--model SPEC" in result.stderr


def test_a_model_that_does_not_fit_names_what_is_missing(tmp_path):
    path = saved(tmp_path / "r.safetensors", tensors_of("torchvision:resnet18"))
    with pytest.raises(MemtoolError, match=r"r.safetensors: .*torchvision:resnet34.*: 80 missing"):
        Checkpoint.open(path, models.parse("torchvision:resnet34"))
    with pytest.raises(MemtoolError, match=r"r.safetensors: .*1 of another shape \(conv1.weight"):
        Checkpoint.open(path, models.parse("resnet18"))
    with pytest.raises(MemtoolError, match="fc.weight .1000, 512. for .10, 512."):
        Checkpoint.open(path, models.parse("torchvision:resnet18?num_classes=10"))


def test_options_of_the_model_named_are_read_off_the_shapes(tmp_path):
    for text in ("torchvision:vit_b_32?num_classes=3&image_size=64", "cnn?num_classes=4&channels=1"
                 "&image_size=28&width=4"):  # fmt: skip
        path = saved(tmp_path / "r.safetensors", tensors_of(text))
        assert Checkpoint.open(path, models.parse(text.partition("?")[0])).spec == models.parse(
            text
        )


CONFIG = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 5,
    "model_args": {"img_size": 32, "depth": 1},
    "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]},
}


@pytest.fixture
def vit(tmp_path) -> Path:
    pytest.importorskip("timm")
    text = "timm:vit_tiny_patch16_224?img_size=32&depth=1&num_classes=5"
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return saved(tmp_path / "model.safetensors", tensors_of(text))


def test_a_config_beside_the_file_names_a_timm_model(run, vit):
    checkpoint = Checkpoint.open(vit)
    assert str(checkpoint.spec) == "timm:vit_tiny_patch16_224?depth=1&img_size=32&num_classes=5"
    assert checkpoint.data["mean"] == [0.5, 0.4, 0.3]
    assert checkpoint.data["std"] == [0.2, 0.2, 0.1]
    assert checkpoint.image_shape == (3, 32, 32)
    row = json.loads(run("info", vit, "--format", "jsonl").stdout)
    assert row["model_from"] == "config.json" and row["mean"] == "0.5 0.4 0.3"
    assert "blocks.0" in run("info", "--layers", vit).stdout


@pytest.mark.parametrize(
    "config",
    ["{", "[]", "[" * 100_000, json.dumps({"architectures": ["ViTForImageClassification"]}),
     json.dumps({"architecture": 3})],
    ids=["half", "list", "deep", "of transformers", "of another type"],
)  # fmt: skip
def test_a_config_that_names_no_timm_model_is_as_none(vit, config, caplog):
    vit.with_name("config.json").write_text(config)
    with pytest.raises(MemtoolError, match="those of no model of ours or of torchvision"):
        Checkpoint.open(vit)
    is_told = "config.json: is ignored, since it cannot be read" in caplog.text
    assert is_told == (config[:2] in ("{", "[["))


def test_a_large_config_that_begins_with_a_mark_of_utf_8_is_read(vit):
    labels = {str(number): "a class" for number in range(60_000)}
    content = json.dumps({**CONFIG, "id2label": labels})
    vit.with_name("config.json").write_text(content, encoding="utf-8-sig")
    assert Checkpoint.open(vit).data["mean"] == [0.5, 0.4, 0.3]


def test_a_config_of_other_weights_is_told(vit):
    vit.with_name("config.json").write_text(json.dumps({**CONFIG, "num_classes": 7}))
    with pytest.raises(
        MemtoolError, match=r"head.* \(the config.json beside it says that model; --m"
    ):
        Checkpoint.open(vit)


def test_a_size_that_the_network_insists_on_is_that_of_the_config(vit):
    about = {**CONFIG["pretrained_cfg"], "fixed_input_size": True}
    config = {**CONFIG, "model_args": {"depth": 1}, "pretrained_cfg": about}
    vit.with_name("config.json").write_text(json.dumps(config))
    assert Checkpoint.open(vit).spec.options["img_size"] == [32, 32]


def test_parts_that_are_not_of_the_model_are_named(tmp_path):
    found = tensors_of("resnet18?width=4")
    found = {f"backbone.{name}": tensor for name, tensor in found.items() if name[:3] != "fc."}
    path = saved(tmp_path / "r.safetensors", {**found, "head.weight": torch.zeros(10, 32)})
    with pytest.raises(
        MemtoolError, match=r"2 missing \(fc.weight, fc.bias\); it has head.weight be"
    ):
        Checkpoint.open(path, models.parse("resnet18?width=4"))


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            {"architecture": "resnet18"},
            "resnet18",
        ),
        ({"architecture": "hf-hub:someone/else"}, "unknown model 'timm:hf-hub:someone/else'"),
        ({"model_args": {"checkpoint_path": "evil.pth"}}, "'checkpoint_path' is no option here"),
        ({"model_args": {"depth": 10**9}}, "is far larger than what it holds"),
    ],
)
def test_a_config_is_not_trusted(vit, changed, message):
    vit.with_name("config.json").write_text(json.dumps({**CONFIG, **changed}))
    with pytest.raises(MemtoolError, match=message) as caught:
        Checkpoint.open(vit)
    assert str(caught.value).startswith(str(vit))


@pytest.mark.parametrize("std", [[0, 1, 1], ["a", 1, 1], [1], None])
def test_statistics_that_make_no_sense_are_not_taken(vit, std):
    about = {**CONFIG["pretrained_cfg"], "std": std, "input_size": [3, 10**9, 10**9]}
    vit.with_name("config.json").write_text(json.dumps({**CONFIG, "pretrained_cfg": about}))
    checkpoint = Checkpoint.open(vit)
    assert checkpoint.data == {} and checkpoint.image_shape == (3, 32, 32)
