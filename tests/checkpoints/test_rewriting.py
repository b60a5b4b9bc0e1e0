"""Layouts that timm rewrites when it loads weights: memtool gets the very same network."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from memtool import MemtoolError, models
from memtool.checkpoints import Checkpoint
from memtool.checkpoints.recognition import complete_from_shapes
from memtool.checkpoints.rewriting import rewriting
from memtool.models import shapes_of

timm = pytest.importorskip("timm")


def randomized(model: torch.nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state of the model in which no two entries are equal by chance."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }


def in_facebooks_layout(key: str) -> str:
    """A name in timm's ConvNeXt as the authors' code has it."""
    for new, old in (
        ("stem.", "downsample_layers.0."),
        ("head.norm.", "norm."),
        ("head.fc.", "head."),
        ("mlp.fc1.", "pwconv1."),
        ("mlp.fc2.", "pwconv2."),
        (".conv_dw.", ".dwconv."),
    ):
        key = key.replace(new, old)
    parts = key.split(".")
    if parts[0] == "stages" and parts[2] == "downsample":
        return ".".join(["downsample_layers", parts[1], *parts[3:]])
    return key.replace(".blocks.", ".")


@pytest.mark.parametrize("prefix", ["", "own.net."])
def test_convnext_in_its_authors_layout(run, tmp_path, caplog, prefix):
    caplog.set_level("INFO")
    text = "timm:convnext_atto?depths=[1,1,1,1]&dims=[8,8,8,8]&num_classes=5"
    state = randomized(models.build(models.parse(text)))
    path = tmp_path / "w.safetensors"
    save_file({prefix + in_facebooks_layout(key): value for key, value in state.items()}, path)
    checkpoint = Checkpoint.open(path, models.parse(text.removesuffix("&num_classes=5")))
    assert checkpoint.spec.options["num_classes"] == 5
    found = checkpoint.model().state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)
    assert "in another layout; rewritten as timm does when it loads them" in caplog.text
    assert checkpoint.trace((3, 32, 32)).layers[-1].shape == (5,)
    output = tmp_path / "converted.safetensors"
    assert run("convert", path, "--model", text, "-o", output).code == 0
    assert all(torch.equal(value, state[key]) for key, value in load_file(output).items())


def test_vgg_of_torchvision_as_timms():
    shapes = shapes_of(models.skeleton(models.parse("torchvision:vgg11?num_classes=7")))
    found = rewriting(models.parse("timm:vgg11"), shapes, complete_from_shapes, "--model")
    assert found and found.spec.options["num_classes"] == 7
    assert found.shapes == shapes_of(models.skeleton(found.spec))
    assert (
        rewriting(models.parse("torchvision:vgg11"), shapes, complete_from_shapes, "--model")
        is None
    )
    stored = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    row = stored["classifier.0.weight"] = torch.arange(25088.0).expand(4096, -1)
    made = found.rewrite({name: stored[key] for name, key in found.names.items()})
    assert torch.equal(made["pre_logits.fc1.weight"][5].flatten(), row[5])


def test_a_tensor_is_never_resampled(tmp_path):
    text = "timm:deit_tiny_patch16_224?depth=1&embed_dim=8&num_heads=1"
    state = randomized(models.build(models.parse(f"{text}&img_size=37")))
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)  # an old layout
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(MemtoolError, match=r"pos_embed is \(1, 5, 8\), for another size"):
        Checkpoint.open(tmp_path / "w.safetensors", models.parse(text))
    sized = Checkpoint.open(tmp_path / "w.safetensors", models.parse(f"{text}&img_size=37"))
    assert torch.equal(sized.tensors()["pos_embed"], state["pos_embed"])


def test_a_tensor_with_another_name_is_not_resampled_either(tmp_path):
    """As OpenCLIP names those of its images' encoder."""
    text = "timm:vit_tiny_patch16_224?embed_dim=8&depth=1&num_heads=1&num_classes=3"
    state = randomized(models.build(models.parse(f"{text}&img_size=48")))
    stored = {f"visual.trunk.{name}": tensor for name, tensor in state.items()}
    save_file({**stored, "logit_scale": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(MemtoolError, match="holds position embeddings, for another size"):
        Checkpoint.open(tmp_path / "w.safetensors", models.parse(f"{text}&img_size=32"))
    sized = Checkpoint.open(tmp_path / "w.safetensors", models.parse(f"{text}&img_size=48"))
    assert torch.equal(sized.tensors()["pos_embed"], state["pos_embed"])


@pytest.mark.parametrize(
    "model, size, other",
    [
        ("swin_tiny_patch4_window7_224?embed_dim=24", "img_size=224", "img_size=64&window_size=4"),
        ("beit_base_patch16_224?depth=1&embed_dim=8&num_heads=2", "img_size=96", "img_size=64"),
    ],
)
def test_a_table_of_relative_positions_is_not_resampled_either(tmp_path, model, size, other):
    wanted, own = (models.parse(f"timm:{model}&{options}") for options in (size, other))
    state = randomized(models.build(own))
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(MemtoolError, match=r"relative_position_bias_table is \(\d+, \d\), for an"):
        Checkpoint.open(tmp_path / "w.safetensors", wanted)
    assert Checkpoint.open(tmp_path / "w.safetensors", own).tensors().keys() == state.keys()


def test_a_position_that_becomes_another_tensor_is_no_resampling(tmp_path):
    """Meta's DINOv2 has a position for its class token, which timm adds to the token."""
    name = "timm:vit_small_patch14_reg4_dinov2"
    text = f"{name}?embed_dim=8&depth=1&num_heads=1&img_size=56&num_classes=0"
    state = randomized(models.build(models.parse(text)))
    position = torch.randn(1, 1, 8)
    renamed = {"register_tokens": state["reg_token"], "mask_token": torch.zeros(1, 8)}
    own = {key: value for key, value in state.items() if key != "reg_token"}
    own["cls_token"] = state["cls_token"] - position
    own["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
    save_file({**own, **renamed}, tmp_path / "w.safetensors")
    tensors = Checkpoint.open(tmp_path / "w.safetensors", models.parse(text)).tensors()
    assert tensors.keys() == state.keys()
    for key, value in state.items():
        torch.testing.assert_close(tensors[key], value)


def test_what_no_layout_of_timms_explains_is_told_as_it_is(tmp_path):
    save_file({"a.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    for name in ("convnext_atto", "vit_tiny_patch16_224", "resnet10t", "vgg11"):
        with pytest.raises(MemtoolError, match=f"do not fit the model timm:{name}.*missing"):
            Checkpoint.open(tmp_path / "w.safetensors", models.parse(f"timm:{name}"))
