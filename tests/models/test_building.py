"""Building models: what cannot be built, and skeletons, which have no weights."""

import pytest
import torch
from torch import nn

from memtool import MemtoolError, models
from memtool.models import ModelSpec


@pytest.mark.parametrize(
    "text, message",
    [
        ("resnet18?width=-1", "cannot be built: RuntimeError"),
        ("resnet18?width=wide", "cannot be built: TypeError"),
        ("resnet18?width=1000000000000", "cannot be built: .*memory"),
        (f"resnet18?width=1{'0' * 30}", "cannot be built"),
        ("torchvision:vit_b_16?image_size=30", "cannot be built: AssertionError"),
    ],
)
def test_options_that_no_model_can_be_built_with(text, message):
    with pytest.raises(MemtoolError, match=message) as caught:
        models.skeleton(models.parse(text))
    assert "\n" not in str(caught.value)


def test_a_skeleton_has_no_weights_but_its_buffers():
    for name in ("torchvision:swin_t", "torchvision:regnet_y_400mf"):
        state = torch.random.get_rng_state()
        model = models.skeleton(models.parse(name))
        assert all(parameter.is_meta for parameter in model.parameters())
        assert not any(buffer.is_meta for buffer in model.buffers())
        assert torch.equal(state, torch.random.get_rng_state())
    assert not next(nn.Linear(2, 2).parameters()).is_meta  # nothing lasts


def test_a_skeleton_has_the_tensors_of_the_model_though_a_parametrization_makes_them(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm\n"
        "def net():\n"
        "    layers = orthogonal(nn.Linear(8, 4)), spectral_norm(nn.Linear(4, 4))\n"
        "    return nn.Sequential(*layers, weight_norm(nn.Linear(4, 2)))\n"
    )
    spec = models.parse(f"{tmp_path}/net.py:net")
    shapes = {name: tensor.shape for name, tensor in models.build(spec).state_dict().items()}
    assert "0.parametrizations.weight.0.base" in shapes
    built = models.skeleton(spec).state_dict()
    assert {name: tensor.shape for name, tensor in built.items()} == shapes


def test_masked_tokens_stay_in_a_transformer_encoder(tmp_path):
    """PyTorch's eval mode replaces their activations by zeros, and its layers' by nested tensors,
    where its training mode does not."""
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)\n"
        "        self.encoder = nn.TransformerEncoder(layer, 2)\n"
        "    def forward(self, x):\n"
        "        mask = torch.arange(5).expand(len(x), 5) > 2\n"
        "        return self.encoder(x, src_key_padding_mask=mask)\n"
    )
    model = models.build(models.parse(f"{tmp_path}/net.py:Net"))
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        trained, evaluated = model.train()(x), model.eval()(x)
    assert torch.allclose(trained, evaluated, atol=1e-5)
    seen = []
    for layer in model.encoder.layers:
        layer.register_forward_hook(lambda *call: seen.append(call[-1].shape))
    with torch.no_grad():
        model(x)
    assert seen == [(3, 5, 8)] * 2


def test_a_skeleton_far_larger_than_what_it_is_for_is_refused():
    pytest.importorskip("timm")
    shapes = [(100, 100), (100,)]
    for name, options in (
        ("resnet18", {"width": 2000}),
        ("resnet18", {"num_classes": 10**9}),
        ("resnet18", {"num_classes": 10**15}),
        ("timm:vit_tiny_patch16_224", {"depth": 10**9}),
        ("timm:vit_tiny_patch16_224", {"depth": 10**4}),
        ("timm:swin_tiny_patch4_window7_224", {"depths": [2, 2, 10**9]}),
    ):
        spec = ModelSpec(name, options)
        with pytest.raises(MemtoolError, match="is far larger than what it holds"):
            models.skeleton(spec, models.size_limit(spec, shapes))
    spec = ModelSpec("resnet18", {"width": 4})
    assert models.skeleton(spec, models.size_limit(spec, shapes))


def factories(tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def plain(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "def compiled(): return torch.compile(plain(), backend='eager')\n"
        "def parallel(): return nn.DataParallel(plain())\n"
        "def both(): return torch.compile(nn.DataParallel(plain()), backend='eager')\n"
        "def scripted(): return torch.jit.script(plain())\n"
    )
    return f"{tmp_path}/net.py"


@pytest.mark.parametrize("name", ["compiled", "parallel", "both"])
def test_what_is_wrapped_around_a_model_is_taken_off(tmp_path, name):
    model = models.build(models.parse(f"{factories(tmp_path)}:{name}"))
    assert type(model) is nn.Sequential and list(model.state_dict()) == ["1.weight", "1.bias"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_a_scripted_model_is_refused(tmp_path):
    with pytest.raises(MemtoolError, match="of type RecursiveScriptModule, not a torch.nn.Module"):
        models.build(models.parse(f"{factories(tmp_path)}:scripted"))


def test_a_model_that_keeps_more_than_tensors_is_refused(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self): super().__init__(64, 10)\n"
        "    def get_extra_state(self): return {'a': 1}\n"
        "    def set_extra_state(self, state): pass\n"
    )
    spec = models.parse(f"{tmp_path}/net.py:Net")
    for build in (models.build, models.skeleton):
        with pytest.raises(
            MemtoolError, match="keeps _extra_state in its state_dict, which is no t"
        ):
            build(spec)
