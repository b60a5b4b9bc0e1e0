"""Names of tensors: wrappers are undone, averages and counters ignored, misfits put into words."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from memtool import MemtoolError, models
from memtool.checkpoints import Checkpoint
from memtool.checkpoints.names import misfits, outline_of
from memtool.models import ModelSpec

Tensors = dict[str, torch.Tensor]


def tensors_of(text: str) -> Tensors:
    """Tensors under the names and of the shapes of a model's, without their memory."""
    state = models.skeleton(models.parse(text)).state_dict()
    return {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in state.items()}


def saved(path: Path, tensors: Tensors) -> Path:
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    "wrap",
    ["module.{}", "_orig_mod.{}", "model.{}", "module._orig_mod.{}", "ema_model.module.{}"],
)
def test_wrappers_are_undone_and_said(run, tmp_path, caplog, wrap):
    caplog.set_level("INFO")
    plain = tensors_of("resnet18?width=4")
    path = saved(tmp_path / "w.safetensors", {wrap.format(key): plain[key] for key in plain})
    for model in (None, models.parse("resnet18?width=4")):
        caplog.clear()
        checkpoint = Checkpoint.open(path, model)
        assert checkpoint.tensors().keys() == plain.keys()
        assert f"removed the prefix {wrap.removesuffix('{}')!r}" in caplog.text
    result = run("info", path)
    assert result.code == 0 and "removed the prefix" in result.stderr
    assert run("info", path, "-q").stderr == ""


def test_weights_are_taken_and_their_moving_average_is_left_aside(tmp_path, caplog):
    caplog.set_level("INFO")
    plain = tensors_of("resnet18?width=4")
    both = {f"model.{key}": value + 1 for key, value in plain.items()}
    both |= {f"ema.{key}": value.clone() for key, value in plain.items()}
    checkpoint = Checkpoint.open(saved(tmp_path / "b.safetensors", both))
    assert (checkpoint.tensors()["conv1.weight"] == 1).all()
    assert f"ignored {len(plain)} tensors (ema." in caplog.text


def test_the_count_of_an_averaged_model_is_no_weight(tmp_path):
    plain = tensors_of("resnet18?width=4")
    averaged = {f"module.{key}": value for key, value in plain.items()}
    averaged["n_averaged"] = torch.tensor(3)
    checkpoint = Checkpoint.open(saved(tmp_path / "a.safetensors", averaged))
    assert checkpoint.tensors().keys() == plain.keys()


def test_a_models_own_prefix_is_not_undone(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "from torch import nn\n"
        "def make(): return nn.ModuleDict({'model': nn.Sequential(nn.Linear(2, 2))})\n"
    )
    tensors = {"model.0.weight": torch.zeros(2, 2), "model.0.bias": torch.zeros(2)}
    path = saved(tmp_path / "own.safetensors", tensors)
    checkpoint = Checkpoint.open(path, models.parse("net.py:make"))
    assert checkpoint.names == {key: key for key in tensors} and not caplog.records


def test_tensors_that_fit_leave_nothing_to_say():
    expected = {"weight": (3, 4), "norm.num_batches_tracked": ()}
    assert misfits(expected, expected) == ""
    assert misfits(expected, {"weight": (3, 4)}) == ""
    assert misfits({"weight": (3, 4)}, expected) == "1 unexpected (norm.num_batches_tracked)"


def test_a_model_far_narrower_than_its_default_is_recognized(tmp_path):
    path = saved(tmp_path / "w.safetensors", tensors_of("resnet18?width=3&num_classes=4"))
    found = Checkpoint.open(path).spec
    assert (
        found.name == "resnet18" and {"width": 3, "num_classes": 4}.items() <= found.options.items()
    )


def test_a_model_is_built_once_to_recognize_any_number_of_files(tmp_path, monkeypatch):
    built, build = [], models.skeleton
    monkeypatch.setattr(
        models, "skeleton", lambda *args: built.append(str(args[0])) or build(*args)
    )
    paths = [saved(tmp_path / f"{n}.safetensors", tensors_of("resnet18?width=6")) for n in "ab"]
    built.clear()
    spec = models.parse("resnet18")  # the width and the number of classes are found
    assert Checkpoint.open(paths[0], spec).spec.options["width"] == 6
    assert len(built) == len(set(built)) > 1
    built.clear()
    assert Checkpoint.open(paths[1], spec).spec.options["width"] == 6
    assert not built


def test_what_is_known_of_a_model_neither_trusts_code_nor_lifts_the_limit_of_size(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("from torch import nn\ndef make(): return nn.Linear(2, 3)\n")
    typed = ModelSpec.parse(f"{path}:make")
    assert outline_of(typed, {}).shapes == {"weight": (3, 2), "bias": (3,)}
    with pytest.raises(MemtoolError, match="if you trust it"):
        outline_of(ModelSpec.from_json(typed.json()), {})

    large = ModelSpec("resnet18", {"width": 80})
    assert len(outline_of(large, {"weight": (10_000_000,)}).shapes) > 100
    with pytest.raises(MemtoolError, match="far larger than what it holds"):
        outline_of(large, {"weight": (10,)})
