"""Names as training code leaves them: the model decides what is its own, the rest is left aside."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from memtool import MemtoolError, models
from memtool.checkpoints import Checkpoint
from memtool.checkpoints.adapters import read_names
from memtool.checkpoints.names import tied_names
from memtool.models import ModelSpec, nets

Tensors = dict[str, torch.Tensor]
SPEC = models.parse("resnet18?width=4")


@pytest.fixture(scope="module")
def weights() -> Tensors:
    torch.manual_seed(0)
    return nets.resnet18(width=4).state_dict()


@pytest.fixture
def opened(tmp_path):
    """The checkpoint that a file with these tensors is."""

    def made(tensors: Tensors, model: ModelSpec | None = None, **metadata: str) -> Checkpoint:
        path = tmp_path / "w.safetensors"
        save_file({key: value.clone() for key, value in tensors.items()}, path, metadata)
        return Checkpoint.open(path, model)

    return made


def assert_equal(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {f"{prefix}{key}": value for key, value in tensors.items()}


def within(token: str, part: str):
    """Put `token` behind `part` of each name, as wrapping that part of the model does."""
    return lambda name: name.replace(f"{part}.", f"{part}.{token}.", 1)


WRAPPED = {
    "a stage in DataParallel": within("module", "layer1"),
    "each block compiled": lambda name: within("_orig_mod", ".0")(within("_orig_mod", ".1")(name)),
    "a layer compiled": within("_orig_mod", "conv1"),
    "all of it, at every depth": lambda name: (
        f"model.module.{within('_orig_mod', 'layer2')(within('module', '.0')(name))}"
    ),
    "FSDP": lambda name: f"_fsdp_wrapped_module.{within('_fsdp_wrapped_module', 'layer3')(name)}",
    "activation checkpoints": within("_checkpoint_wrapped_module", "layer4.1"),
    "an attribute of one's own": lambda name: f"classifier.{name}",
    "several": lambda name: f"lit.model.student_net.{name}",
}


@pytest.mark.parametrize("model", [None, SPEC], ids=["recognized", "named"])
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_wrappers_at_any_depth_are_undone(opened, weights, caplog, wrap, model):
    caplog.set_level("INFO")
    checkpoint = opened({wrap(key): value for key, value in weights.items()}, model)
    assert_equal(checkpoint.model().state_dict(), weights)
    assert "of its tensors" in caplog.text and not [
        r for r in caplog.records if r.levelname != "INFO"
    ]


@pytest.mark.parametrize("model", [None, SPEC], ids=["recognized", "named"])
@pytest.mark.parametrize("weighing", ["model.", "module.", "", "student.net."])
@pytest.mark.parametrize("average", ["ema.", "model_ema.module.", "model.ema_model."])
def test_the_weights_are_taken_and_an_average_is_left(
    opened, weights, caplog, weighing, average, model
):
    caplog.set_level("INFO")
    both = prefixed({key: torch.zeros_like(value) for key, value in weights.items()}, average)
    checkpoint = opened({**both, **prefixed(weights, weighing)}, model)
    assert_equal(checkpoint.tensors(), weights)
    assert f"ignored {len(weights)} tensors ({average}" in caplog.text


def test_an_average_alone_is_taken(opened, weights, caplog):
    caplog.set_level("INFO")
    averaged = {**prefixed(weights, "swa_model.module."), "n_averaged": torch.tensor(3)}
    assert_equal(opened(averaged).tensors(), weights)
    assert "removed the prefix 'swa_model.module.'" in caplog.text
    assert "ignored 1 tensors (n_averaged)" in caplog.text


@pytest.mark.parametrize("model", [None, SPEC], ids=["recognized", "named"])
def test_which_of_two_networks_is_not_guessed(opened, weights, model):
    with pytest.raises(MemtoolError) as caught:
        opened({**prefixed(weights, "student."), **prefixed(weights, "teacher.")}, model)
    assert "holds the whole model 2 times, under " in str(caught.value)
    assert "student" in str(caught.value) and "teacher" in str(caught.value)
    assert "w.safetensors" in str(caught.value)


BESIDE = {
    "criterion.pos_weight": (10,),
    "loss.weight": (10,),
    "loss_fn.weight": (10,),
    "ce_loss.weight": (10,),
    "train_acc.tp": (10,),
    "val_metrics.accuracy.total": (),
    "val_accuracy.correct": (),
    "layer1.total_ops": (1,),
    "teacher.fc.weight": (10, 32),
    "layer1.0.num_batches_tracked": (),
}


@pytest.mark.parametrize("model", [None, SPEC], ids=["recognized", "named"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_what_stands_beside_a_model_is_left_aside_with_a_note(
    opened, weights, caplog, prefix, model
):
    caplog.set_level("INFO")
    others = {key: torch.ones(shape) for key, shape in BESIDE.items()}
    assert_equal(opened({**prefixed(weights, prefix), **others}, model).tensors(), weights)
    assert f"ignored {len(BESIDE)} tensors (" in caplog.text and "WARNING" not in caplog.text
    inside = prefixed({**weights, **others}, "net.")
    assert_equal(opened(inside, model).tensors(), weights)


def test_another_part_outside_the_model_is_warned_of_or_the_model_not_recognized(
    opened, weights, caplog
):
    tensors = {**prefixed(weights, "backbone."), "head.weight": torch.ones(2, 10)}
    assert_equal(opened(tensors, SPEC).tensors(), weights)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "ignored 1 tensors (head.weight)" in record.message
    with pytest.raises(MemtoolError, match="those of no model of ours or of torchvision"):
        opened(tensors)


@pytest.mark.parametrize("more", ["layer1.2.conv1.weight", "layer5.weight", "fc2.weight"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_tensors_that_may_be_of_the_network_are_not_left_aside(opened, weights, prefix, more):
    tensors = prefixed({**weights, more: torch.ones(3)}, prefix)
    with pytest.raises(MemtoolError, match=rf"w.safetensors: .*1 unexpected \({more}\)"):
        opened(tensors, SPEC)
    with pytest.raises(MemtoolError, match="those of no model"):
        opened(tensors)


def test_a_deeper_network_is_not_taken_for_a_shallower_one(opened):
    torch.manual_seed(0)
    deep = nets.resnet34(width=4).state_dict()
    with pytest.raises(MemtoolError, match=r"80 unexpected \(layer1.2.bn1.bias"):
        opened(deep, models.parse("resnet18"))
    assert opened(deep).spec.name == "resnet34"


@pytest.mark.parametrize("prefix", ["", "model.", "own."])
def test_a_missing_tensor_is_named(opened, weights, prefix):
    some = {key: value for key, value in weights.items() if key != "layer3.0.bn1.bias"}
    with pytest.raises(MemtoolError, match=r"1 missing \(layer3.0.bn1.bias\)$"):
        opened(prefixed(some, prefix), SPEC)


def test_of_two_tensors_for_one_name_none_is_guessed(opened, weights):
    twice = {**weights, "layer1.module.0.conv1.weight": weights["layer1.0.conv1.weight"] + 1}
    with pytest.raises(MemtoolError, match=r"1 unexpected \(layer1.module.0.conv1.weight\)"):
        opened(twice, SPEC)


# --- Models with names that look like wrappers ----------------------------------------------------


@pytest.mark.parametrize(
    "expected, found, names",
    [
        (["model.0.weight"], ["model.0.weight"], ["model.0.weight"]),
        (["model.0.weight"], ["module.model.0.weight"], ["module.model.0.weight"]),
        (["model.0.weight"], ["model.model.0.weight"], ["model.model.0.weight"]),
        (["net.w", "ema.w"], ["ema.w", "net.w"], ["net.w", "ema.w"]),
        (["net.w", "ema.w"], ["module.ema.w", "module.net.w"], ["module.net.w", "module.ema.w"]),
        (["net", "w"], ["w", "net"], ["net", "w"]),
        (["a.w", "a.net.w"], ["a.net.w", "a.w"], ["a.w", "a.net.w"]),
        (["w", "block.w"], ["block.w", "w"], ["w", "block.w"]),
        (["w", "block.w"], ["block.w", "block.block.w"], ["block.w", "block.block.w"]),
        (["fc.w", "linear.w"], ["linear.w", "fc.w"], ["fc.w", "linear.w"]),
    ],
)
def test_a_models_own_names_come_before_wrappers(expected, found, names):
    reading = read_names(expected, found)
    assert [reading.names[name] for name in expected] == names
    assert len(reading.names) == len(expected) and not reading.beside


# --- Other spellings ------------------------------------------------------------------------------


def kuangliu(name: str) -> str:
    return name.replace("downsample", "shortcut").replace("fc.", "linear.")


def weiaicunzai(name: str) -> str:
    parts = name.split(".")
    if parts[0].startswith("layer"):
        parts[0] = f"conv{int(parts[0][-1]) + 1}_x"
        place = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 6, "bn3": 7}
        if parts[2] in place:
            parts[2] = f"residual_function.{place[parts[2]]}"
        return ".".join(parts).replace("downsample", "shortcut")
    return {"conv1": "conv1.0", "bn1": "conv1.1"}.get(parts[0], parts[0]) + f".{parts[1]}"


@pytest.mark.parametrize("wrap", ["{}", "module.{}"])
@pytest.mark.parametrize("spelling", [kuangliu, weiaicunzai])
@pytest.mark.parametrize("text", ["resnet18?width=4", "resnet50?width=4"])
def test_resnets_for_cifar(opened, caplog, text, spelling, wrap):
    caplog.set_level("INFO")
    plain = models.build(models.parse(text)).state_dict()
    other = {wrap.format(spelling(key)): value for key, value in plain.items()}
    for model in (None, models.parse(text)):
        checkpoint = opened(other, model)
        assert checkpoint.spec.name == text.partition("?")[0]
        assert_equal(checkpoint.model().state_dict(), plain)
        assert "are those of ResNets with " in caplog.text


def test_torchvisions_old_densenets(opened, caplog):
    caplog.set_level("INFO")
    spec = models.parse("torchvision:densenet121?num_classes=2")
    plain = models.build(spec).state_dict()
    old = {}
    for key, value in plain.items():
        for kind in ("norm1", "norm2", "conv1", "conv2"):
            if "denselayer" in key:
                key = key.replace(f".{kind}.", f".{kind[:-1]}.{kind[-1]}.")
        old[f"module.{key}"] = value
    assert "module.features.denseblock1.denselayer1.norm.1.weight" in old
    assert_equal(opened(old, spec).model().state_dict(), plain)
    assert "torchvision's old DenseNets (module.features.denseblock1.denselayer1" in caplog.text


def test_torchvisions_old_vits(opened):
    spec = models.parse("torchvision:vit_b_32?image_size=32&num_classes=2")
    expected = list(models.skeleton(spec).state_dict())
    old = [key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2.")
           for key in expected]  # fmt: skip
    assert list(read_names(expected, old).names.values()) == old != expected


# --- One tensor under several names ---------------------------------------------------------------

TIED = """
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.second.weight = self.first.weight
    def forward(self, x):
        return self.second(self.first(x.flatten(1)))

def make():
    return Tied()
"""


@pytest.fixture
def tied(tmp_path, monkeypatch) -> tuple[ModelSpec, nn.Module]:
    monkeypatch.chdir(tmp_path)
    Path("tied.py").write_text(TIED)
    spec = models.parse("tied.py:make")
    return spec, models.build(spec)


def test_a_shared_tensor_needs_one_of_its_names(opened, tied, caplog):
    caplog.set_level("INFO")
    spec, model = tied
    weights = model.state_dict()
    assert tied_names(model)["first.weight"] == ["second.weight"]
    for gone, other in (("first", "second"), ("second", "first")):
        some = {key: value for key, value in weights.items() if key != f"{gone}.weight"}
        assert_equal(opened(prefixed(some, "module."), spec).model().state_dict(), weights)
        assert f"{gone}.weight is the same tensor as {other}.weight" in caplog.text
    del some["first.weight"]
    with pytest.raises(MemtoolError, match=r"2 missing \(first.weight, second.weight\)"):
        opened(some, spec)


def test_a_shared_tensor_cannot_have_two_values(opened, tied):
    spec, model = tied
    weights = {**model.state_dict(), "second.weight": torch.zeros(12, 12)}
    with pytest.raises(MemtoolError, match="first.weight and second.weight are one tensor in the"):
        opened(weights, spec).model()


def test_what_save_model_leaves_out_is_found_by_the_header(tmp_path, caplog, weights):
    wrapped = nn.ModuleDict({"alias": nn.Sequential(), "model": nets.resnet18(width=4)})
    wrapped["alias"] = wrapped["model"].layer1
    path = tmp_path / "saved.safetensors"
    save_model(wrapped, str(path))
    caplog.set_level("INFO")
    for model in (None, SPEC):
        checkpoint = Checkpoint.open(path, model)
        assert_equal(checkpoint.model().state_dict(), wrapped["model"].state_dict())
    assert "ignored" not in caplog.text
    # The name that is left out may be the one that the model has.
    kept = {key.replace("layer1.", "a.layer1."): value for key, value in weights.items()}
    removed = {key: key.replace("layer1.", "a.layer1.") for key in weights if "layer1." in key}
    save_file(kept, path, {**removed, "format": "pt"})
    for model in (None, SPEC):
        assert_equal(Checkpoint.open(path, model).model().state_dict(), weights)


def test_a_name_of_a_million_tokens_costs_no_more_than_to_read_it():
    name = ".".join("x" * 1_000_000)
    assert read_names(["fc.weight"], [f"{name}.fc.weight"]).names == {
        "fc.weight": f"{name}.fc.weight"
    }
