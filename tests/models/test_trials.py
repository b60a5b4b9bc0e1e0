"""What a few passes tell of a model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from memtool import MemtoolError
from memtool.models import (
    check_classifier,
    parse,
    put_channels_last,
    warn_if_drawn_anew,
    warn_if_results_vary,
)

CLASSIFIERS = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.body, self.fc = nn.Linear(64, 12), nn.Linear(12, num_classes)

    def forward(self, images):
        features = self.body(images.flatten(1))
        return features, self.fc(features)

class Named(Two):
    def forward(self, images):
        features, logits = super().forward(images)
        return {"features": features, "logits": logits}

class Segmentation(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv = nn.Conv2d(1, num_classes, 1)

    def forward(self, images):
        return self.conv(images)

class Colors(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(256, 10))

class Lazy(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.LazyLinear(10))

class TrainingOnly(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, images):
        return super().forward(images) if self.training else "nothing"

class BatchStatistics(nn.Sequential):
    def __init__(self):
        super().__init__(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(),
                         nn.Linear(64, 10))

class Broken(nn.Module):
    def forward(self, images):
        raise KeyError("who knows\\nwhat this is")

class NoWayBack(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, images):
        return super().forward(images).sigmoid().mul_(2)

class NoParameters(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.AdaptiveAvgPool1d(10))
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(CLASSIFIERS)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "Segmentation",
            r"returns \(2, 10, 8, 8\), in which there are no logits of shape \(2, 10\)",
        ),
        (
            "Colors",
            r"net.py:Colors in training mode, given 2 images of \(1, 8, 8\): RuntimeError: ",
        ),
        ("TrainingOnly", "in eval mode, given .*: returns str, in which there are no logits"),
        ("Broken", "KeyError: 'who knows.*--debug shows where"),
        ("NoWayBack", "in training mode, in the backward pass: RuntimeError: .*inplace operation"),
        ("NoParameters", "in the backward pass: RuntimeError: .* does not require grad"),
        ("Lazy", "1.weight gets its size from the first images"),
        ("Two?num_classes=3", r"returns \(\(2, 12\), \(2, 3\)\), in which there are no logits"),
    ],
)
def test_what_cannot_be_trained_is_told_in_one_line(code, name, message):
    with pytest.raises(MemtoolError, match=message) as error:
        check_classifier(parse(f"net.py:{name}"), (1, 8, 8), 7 if "3" in name else 10)
    assert "\n" not in str(error.value)


def test_which_part_is_taken_is_noted(code, caplog):
    caplog.set_level("INFO")
    check_classifier(parse("net.py:Named"), (1, 8, 8), 10)
    assert "'logits' is taken for the logits, the rest is ignored" in caplog.text
    caplog.clear()
    check_classifier(parse("digits-cnn"), (1, 8, 8), 10)
    assert not caplog.records


def test_checking_draws_no_random_numbers(code):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    check_classifier(parse("net.py:Two"), (1, 8, 8), 10)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "name", ["torchvision:googlenet", "torchvision:inception_v3?num_classes=4"]
)
def test_networks_with_auxiliary_classifiers(name, caplog):
    """They return a named tuple in training mode."""
    caplog.set_level("INFO")
    classes = 4 if "4" in name else 1000
    size = 299 if "inception" in name else 96
    check_classifier(parse(name), (3, size, size), classes)
    assert "'logits' is taken for the logits, the rest is ignored" in caplog.text


@pytest.mark.parametrize("name", ["Two", "Named"])
def test_a_network_of_several_outputs_is_trained_and_stitched_on_its_logits(run, code, name):
    train = ("train", "--model", f"net.py:{name}", "--data", "digits", "--epochs", 2)
    result = run(*train, "-o", "a.safetensors", "--format", "jsonl")
    assert result.code == 0, result.stderr
    trained = json.loads(result.stdout.splitlines()[-1])["test_accuracy"]
    assert trained > 0.5
    again = ("--trust", "--connector", "none", "--at", "body", "--format", "jsonl")
    stitched = run("stitch", "a.safetensors", "a.safetensors", *again)
    assert stitched.code == 0, stitched.stderr
    assert f'"test_accuracy": {trained}' in stitched.stdout
    assert f'"front_accuracy": {trained}' in stitched.stdout


def test_debug_shows_the_traceback(run, code):
    command = ("train", "--model", "net.py:Broken", "--data", "digits", "-o", "a.safetensors")
    plain, debugged = run(*command), run(*command, "--debug")
    assert plain.code == debugged.code == 1
    assert plain.stderr.count("\n") == 1 and "Traceback" in debugged.stderr
    assert debugged.stderr.endswith(plain.stderr)


def test_a_model_that_repeats_itself_but_for_rounding_is_not_random(caplog):
    noise = iter([0, 1e-6, 1e-6])
    images = torch.randn(3, 10)
    warn_if_results_vary(lambda x: {"logits": x * (1 + next(noise))}, images, "it", nn.Identity())
    assert not caplog.records


@pytest.mark.parametrize("change", [torch.nn.functional.dropout, lambda x: x.add_(1)])
def test_a_model_that_does_not_repeat_itself_is_told(caplog, change):
    state, images = torch.randn(2, 10), torch.randn(3, 10)
    warn_if_results_vary(lambda _: (None, change(state).clone()), images, "it", nn.Identity())
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("it: gives other results for the same images each time")


def attention_over_images(tokens: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(*[tokens.transpose(0, 1)] * 3).transpose(0, 1)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False)), "statistics: 0"),
        (lambda x: x - x.mean(0), "a mean over images?"),
        (lambda x: x * torch.tensor([[1.0], [2.0]]), "attention"),  # members of an ensemble
        (lambda x: (None, {"tokens": attention_over_images(x.reshape(-1, 2, 3))}), "attention"),
        (lambda x: attention_over_images(x.reshape(-1, 2, 3)).transpose(0, 1), "attention"),
    ],
)
def test_a_model_that_looks_at_the_other_images_of_a_batch_is_told(caplog, model, reason):
    module = model if isinstance(model, nn.Module) else nn.Identity()
    warn_if_results_vary(model, torch.randn(3, 6), "it", module)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and reason in record.getMessage()
    assert record.getMessage().startswith("it: gives results for an image that depend on the bat")


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2)).eval(),
        lambda x: {"logits": x, "loss": x.mean(), "per class": x.sum(0)},
        lambda x: x.reshape(-1, 2, 3).transpose(0, 1),
        lambda x: x.argmax(1),
    ],
)
def test_a_model_that_takes_each_image_for_itself_is_not(caplog, model):
    module = model if isinstance(model, nn.Module) else nn.Identity()
    warn_if_results_vary(model, torch.randn(3, 6), "it", module)
    warn_if_results_vary(lambda x: x - x.mean(0), torch.randn(2, 6), "who can tell", module)
    assert not caplog.records


ALWAYS_ON = """
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.flatten, self.fc = nn.Flatten(), nn.Linear(64, num_classes)

    def forward(self, images):
        return self.fc(F.dropout(self.flatten(images), 0.5))
"""


WRONG_AXIS = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.flatten = nn.Unflatten(2, (2, 4))
        self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0)  # takes the tokens first
        self.fc = nn.Linear(64, num_classes)

    def forward(self, images):
        return self.fc(self.block(self.flatten(images.flatten(1, 2)).flatten(1, 2)).flatten(1))
"""


DRAWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.flatten, self.fc = nn.Flatten(), nn.Linear(32, num_classes)
        self.frequencies = torch.randn(64, 32)

    def forward(self, images):
        return self.fc((self.flatten(images) @ self.frequencies).sin())
"""


@pytest.mark.parametrize(
    ("code", "warning"),
    [
        (DRAWN, "holds tensors that no checkpoint does (frequencies), drawn at random when it is"),
        (ALWAYS_ON, "gives other results for the same images each time"),
        (WRONG_AXIS, "gives results for an image that depend on the batch around it"),
    ],
    ids=["drawn", "random", "wrong axis"],
)
def test_every_command_that_runs_such_a_model_says_so(run, tmp_path, code, warning):
    (tmp_path / "net.py").write_text(code)
    path = tmp_path / "r.safetensors"
    model = ("--model", f"{tmp_path}/net.py:Net")
    results = [
        run("train", *model, "--data", "digits", "--epochs", 1, "-o", path, "-q"),
        run("cka", path, path, *model, "-q"),
        run("stitch", path, path, *model, "--at", "flatten", "--epochs", 0, "-q"),
    ]
    for result in results:
        assert result.stderr.count(warning) == 1, result.stderr


FAILS_LATER = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, images):
        if len(images) > 3 and not images.is_meta:
            raise ValueError("so many\\nimages")
        return super().forward(images)
"""


def test_a_model_that_fails_in_the_middle_of_the_work_is_told_in_one_line(run, tmp_path):
    (tmp_path / "net.py").write_text(FAILS_LATER)
    weights = {"1.weight": torch.rand(10, 64), "1.bias": torch.zeros(10)}
    save_file(weights, path := tmp_path / "net.safetensors")
    model = ("--model", f"{tmp_path}/net.py:Net", "--data", "digits")
    for command in (
        ("train", *model, "--epochs", 1, "-o", tmp_path / "r.safetensors"),
        ("cka", path, path, *model),
        ("cka", path, path, *model, "--kernel", "rbf"),
        ("stitch", path, path, *model, "--at", "0"),
    ):
        result = run(*command, "-q")
        assert result.code == 1
        assert "net.py:Net: ValueError: so many (--debug shows where)\n" in result.stderr
        assert result.stderr.count("\n") == 1


# An energy model needs gradients to run; TorchScript takes no hooks.
PECULIAR = """
import warnings

import torch
from torch import nn

class Energy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.energy, self.fc = nn.Linear(64, 16), nn.Linear(16, 1), nn.Linear(16, 10)

    def forward(self, images):
        features = self.body(images.flatten(1))
        with torch.enable_grad():
            point = features.detach().requires_grad_()
            energy = self.energy(point.tanh()).sum()
            (force,) = torch.autograd.grad(energy, point, create_graph=self.training)
        return self.fc(features + force)

class Scripted(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.Linear(16, 10))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated
            self[1] = torch.jit.script(nn.Sequential(self[1], nn.ReLU()))
"""


@pytest.mark.parametrize(
    ("name", "layers", "cut"), [("Energy", ["body", "energy", "fc"], "body"), ("Scripted", "02", 0)]
)
def test_peculiar_models_are_trained_compared_and_stitched(run, tmp_path, name, layers, cut):
    (tmp_path / "net.py").write_text(PECULIAR)
    path, model = tmp_path / "r.safetensors", ("--model", f"{tmp_path}/net.py:{name}")
    trained = run("train", *model, "--data", "digits", "--epochs", 1, "-o", path, "-q")
    assert trained.code == 0, trained.stderr
    compared = run("cka", path, path, *model, "--layers", "all", "--format", "jsonl", "-q")
    rows = [json.loads(line) for line in compared.stdout.splitlines()]
    assert [row["layer"] for row in rows] == list(layers)
    assert [row["cka"] for row in rows] == pytest.approx([1] * len(layers))
    again = ("--connector", "none", "--at", cut, "--format", "jsonl", "-q")
    stitched = run("stitch", path, path, *model, *again)
    assert json.loads(stitched.stdout)["agreement"] == 1


class Extra(nn.Module):
    """Has a tensor in each of the places that a state_dict does not look at."""

    def __init__(self, extra: Tensor) -> None:
        super().__init__()
        self.register_buffer("hidden", extra, persistent=False)
        self.plain, self.fc = extra, nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x * self.hidden + self.plain)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    ("make", "is_told"),
    [
        (lambda: Extra(torch.rand(3)), True),
        (lambda: Extra(torch.arange(3.0)), False),
        # It keeps, and computes anew, a weight that no state_dict has.
        (lambda: nn.utils.weight_norm(nn.Linear(3, 2)), False),
        (lambda: nn.BatchNorm1d(3), False),
    ],
)
def test_a_model_that_is_another_one_each_time_it_is_built_is_told(caplog, make, is_told):
    model, state = make().eval(), torch.random.get_rng_state()

    def again() -> nn.Module:
        twin = make().eval()
        twin.load_state_dict(model.state_dict())
        return twin

    warn_if_drawn_anew(model, again, lambda one, few: one(few), torch.ones(3, 3), "it")
    told = ["it: holds tensors that no checkpoint does (hidden, plain), drawn at random when it is"]
    assert [record.getMessage()[: len(told[0])] for record in caplog.records] == told * is_told
    assert torch.equal(torch.random.get_rng_state(), state)


REMEMBERING = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.fc = nn.Linear(64, num_classes)

    def forward(self, images):
        return self.fc(self.changed(images.flatten(1)))

class Growing(Net):
    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.head = None
    def changed(self, x):
        if self.head is None:
            self.head = nn.Linear(64, 64)
        return self.head(x)

class Listed(Net):
    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.layers = [nn.Linear(64, 64)]
    def changed(self, x):
        return self.layers[0](x)

class Directions(Net):
    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.directions = {"all": [torch.randn(64, 64)]}
    def changed(self, x):
        return x @ self.directions["all"][0]

class Observing(Net):
    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.register_buffer("seen", torch.zeros(()))
    def changed(self, x):
        self.seen += 1
        return x

class Graph(Net):
    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.register_buffer("neighbors", torch.eye(64).roll(1, 0).to_sparse(), persistent=False)
    def changed(self, x):
        return (self.neighbors @ x.T).T

class Twice(Net):
    # In a list, but registered too.
    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.one = nn.Linear(64, 64)
        self.layers = [self.one]
    def changed(self, x):
        return self.layers[0](x)
"""


@pytest.mark.parametrize(
    "name, told",
    [
        ("Listed", "holds tensors that no checkpoint does (layers[0].weight, layers[0].bias)"),
        ("Directions", "holds tensors that no checkpoint does (directions[all][0])"),
        ("Observing", "changes seen also in eval mode"),
        ("Graph", ""),
        ("Twice", ""),
    ],
)
def test_what_a_model_holds_besides_its_weights_is_told(tmp_path, monkeypatch, caplog, name, told):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(REMEMBERING)
    check_classifier(parse(f"net.py:{name}"), (1, 8, 8), 10)
    assert caplog.text.count("net.py:") == bool(told) and told in caplog.text


COUNTING = """
import math
import time

import numpy as np
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.fc, self.drop = nn.Linear(64, num_classes), nn.Dropout()
        self.steps, self.lists = {"one": np.int64(0)}, [[0]]
        self.array, self.odd = np.zeros(2), False
        self.best, self.height, self.mode, self.loss, self.first = math.nan, 0, 0, 0.0, True

    def forward(self, images):
        result = self.fc(self.drop(images.flatten(1)))
        self.height, self.mode, self.first = images.shape[2], int(self.training), False
        self.loss = result.sum().item()
        self.change()
        return result

    def change(self):
        pass

class OfClass(Net):
    count = 0
    def change(self):
        self.count = self.count + 1

class Item(Net):
    def change(self):
        self.steps["one"] += 1

class Nested(Net):
    def change(self):
        self.lists[0][0] += 1

class Longer(Net):
    def change(self):
        self.lists.append(0)

class Array(Net):
    def change(self):
        self.array[1] += 0.5

class Toggled(Net):
    def change(self):
        self.odd = not self.odd

class Evaluations(Net):
    def change(self):
        self.height += 0 if self.training else self.steps["one"]
        self.steps["one"] += not self.training

class Timed(Net):
    def change(self):
        self.seconds = time.perf_counter()
"""


@pytest.mark.parametrize(
    "name, counter",
    [
        ("OfClass", "count"),
        ("Item", "steps[one]"),
        ("Nested", "lists[0][0]"),
        ("Longer", "lists[2], lists[4]"),
        ("Array", "array"),
        ("Toggled", "odd"),
        ("Evaluations", "steps[one], height"),
        ("Timed", "seconds"),
        ("Net", ""),
    ],
)
def test_what_a_model_changes_with_each_pass_is_told(tmp_path, monkeypatch, caplog, name, counter):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(COUNTING)
    check_classifier(parse(f"net.py:{name}"), (1, 8, 8), 10)
    told = f"changes {counter} with each pass, which no checkpoint holds: if results depend on that"
    found = caplog.text.count("with each pass"), caplog.text.count(told)
    assert found == (bool(counter), bool(counter)), caplog.text


class Remembering(nn.Module):
    """Fills a buffer when it first sees images, each in another way."""

    def __init__(self, fill: str) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(0), persistent=False)
        self.fc, self.fill, self.size = nn.Linear(3, 2), fill, 0

    def forward(self, x: Tensor) -> Tensor:
        if self.size != x.shape[1]:  # a cache, unless it depends on the images
            self.size = x.shape[1]
            self.kept = {"of size": torch.arange(3.0), "of images": x.mean(0)}[self.fill]
        return self.fc(x * self.kept)


@pytest.mark.parametrize(("fill", "is_told"), [("of size", False), ("of images", True)])
def test_a_cache_is_told_only_if_it_depends_on_the_first_images(caplog, fill, is_told):
    model, images = Remembering(fill), torch.randn(3, 3)

    def again() -> nn.Module:
        twin = Remembering(fill)
        twin.load_state_dict(model.state_dict())
        return twin

    warn_if_results_vary(model, images, "it", model)
    warn_if_drawn_anew(model, again, lambda one, few: one(few), images, "it")
    told = "it: holds tensors that no checkpoint does (kept), drawn at random when it is built, or"
    assert [record.getMessage()[: len(told)] for record in caplog.records] == [told] * is_told


def test_a_model_that_gets_its_weights_when_it_runs_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(REMEMBERING)
    with pytest.raises(
        MemtoolError, match=r"gets tensors, .* runs \(head.weight, head.bias\); a ch"
    ):
        check_classifier(parse("net.py:Growing"), (1, 8, 8), 10)


class Pointwise(nn.Module):
    """A 1x1 convolution of so many channels, which is no module."""

    def __init__(self, channels, stride):
        super().__init__()
        self.weight, self.stride = nn.Parameter(torch.rand(6, channels, 1, 1)), stride

    def forward(self, images):
        return functional.conv2d(images, self.weight, stride=self.stride)


@pytest.mark.parametrize(
    ("model", "suits"),
    [
        (nn.Conv2d(5, 6, 1, stride=2), False),
        (nn.Sequential(nn.Conv2d(5, 15, 3), nn.Conv2d(15, 6, 1, (1, 3))), False),
        (Pointwise(5, 2), False),
        (nn.Sequential(nn.Conv2d(5, 16, 3), Pointwise(16, 2)), True),
        (Pointwise(5, 1), True),
        (nn.Conv2d(5, 6, 3, stride=2), True),
    ],
)
def test_what_would_end_the_process_on_a_cpu_is_not_trained_with_the_channels_last(model, suits):
    images = torch.rand(2, 5, 6, 6)
    assert put_channels_last(model, images) == suits
    lying = (weight for weight in model.parameters() if weight.ndim == 4 and weight.shape[2] == 3)
    assert all(one.is_contiguous(memory_format=torch.channels_last) == suits for one in lying)
