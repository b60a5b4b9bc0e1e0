"""What the networks themselves tell before they are stitched."""

import csv
import io

import pytest
import torch
import torchvision
from torch import Tensor, nn

from memtool import data, models
from memtool.checkpoints import Network
from memtool.stitching import checks
from memtool.tensors import save_tensors


@torch.no_grad()
def holds(network, layer, images):
    return checks.is_cut(network, layer, images, network(images))


class Leaky(nn.Module):
    """Its skip connection around `body` is there only if a buffer says so."""

    def __init__(self, leak: bool) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 4)
        self.register_buffer("leak", torch.tensor(leak))

    def forward(self, images: Tensor) -> Tensor:
        inputs = images.flatten(1)
        return self.head(self.body(inputs) + inputs if self.leak else self.body(inputs))


def test_a_cut_is_checked_with_the_weights_as_they_are():
    images = torch.randint(0, 256, (2, 1, 2, 3), dtype=torch.uint8)
    for leak in (False, True):
        assert holds(Network(Leaky(leak), [0.5], [0.2]), "body", images) is not leak


def test_a_layer_inside_a_residual_branch_is_no_cut():
    block = torchvision.models.resnet.BasicBlock
    model = torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=4).eval()
    network = Network(model, [0.5] * 3, [0.2] * 3)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert holds(network, "layer2.0", images)
    assert not holds(network, "layer2.0.conv2", images)
    assert not holds(network, "no such layer", images)


class Tokens(nn.Module):
    """Has an embedding of the pixels 0 to 16, and of no others."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(17, 3), nn.Linear(18, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.embedding((255 * images).round().long().flatten(1)).flatten(1))


def test_a_cut_is_checked_with_pixels_that_images_have():
    images = torch.randint(0, 17, (3, 1, 2, 3), dtype=torch.uint8)
    assert holds(Network(Tokens(), [0.0], [1.0]), "embedding", images)


class Coded(nn.Module):
    """Has an embedding of the first feature, one of ten, beside a number that is larger."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(10, 3), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, features: Tensor) -> Tensor:
        code = self.embedding(features[:, 0].round().long())
        return self.head(self.body(torch.cat([code, features[:, 1:]], 1)))


def test_a_cut_is_checked_with_features_as_examples_have_them():
    features = torch.stack([torch.arange(8.0), 100 * torch.rand(8)], 1)
    assert holds(Network(Coded(), [0.0, 0.0], [1.0, 1.0]), "body", features)


class Scarce(nn.Module):
    """Has no memory for gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.body(images.flatten(1))
        if x.requires_grad:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return self.head(x)


def test_a_lack_of_memory_is_no_lack_of_gradients():
    images = torch.randint(0, 256, (3, 1, 2, 3), dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        checks.why_unreached(Network(Scarce(), [0.5], [0.2]), "body", images)


class Rectified(nn.Module):
    """`flat` is a view of what is rectified in place later on."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.flat, self.head = nn.Linear(3, 6), nn.Flatten(), nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.body(images[:, 0])
        flat = self.flat(x)
        x.relu_()
        return self.head(flat)


def test_a_view_of_what_is_changed_in_place_later_is_no_cut():
    images = torch.randint(0, 256, (3, 1, 2, 3), dtype=torch.uint8)
    network = Network(Rectified(), [0.5], [0.2])
    assert holds(network, "body", images) and not holds(network, "flat", images)


HIDDEN = """
import torch
from torch import nn

class Hidden(nn.Module):
    # Data go past `body` through numpy, which no graph of tensors shows.
    def __init__(self, num_classes=10):
        super().__init__()
        self.stem, self.body = nn.Linear(64, 8), nn.Linear(8, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images):
        x = self.stem(images.flatten(1))
        past = torch.from_numpy(x.detach().numpy().copy())
        return self.fc(self.block(self.body(x) + past))
"""


def saved(path, spec, classes=10, seed=0, dataset="digits"):
    torch.manual_seed(seed)
    described = data.load(dataset).metadata()
    metadata = {
        "model": spec.json(),
        "data": {**described, "classes": described["classes"][:classes]},
        "training": {},
    }
    save_tensors(path, "checkpoint", models.build(spec).state_dict(), metadata)
    return path


@pytest.fixture
def hidden(tmp_path):
    (tmp_path / "net.py").write_text(HIDDEN)
    spec = models.parse(f"{tmp_path}/net.py:Hidden")
    return [saved(tmp_path / f"{seed}.safetensors", spec, seed=seed) for seed in (0, 1)]


RANDOM = """
from torch import nn
from torch.nn import functional

def drops(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Drops(), nn.Linear(8, num_classes))

class Drops(nn.Module):
    def forward(self, x):
        return functional.dropout(x, 0.5)

def remembers(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Remembers(), nn.Linear(8, num_classes))

class Remembers(nn.Module):
    last = 0

    def forward(self, x):
        self.last = x.mean(0) + self.last / 2
        return x - self.last
"""


@pytest.mark.parametrize("name", ["drops", "remembers"])
def test_a_network_with_other_results_each_time_is_told_as_such(run, tmp_path, name):
    (tmp_path / "net.py").write_text(RANDOM)
    spec = models.parse(f"{tmp_path}/net.py:{name}")
    path = saved(tmp_path / "w.safetensors", spec)
    told = run("stitch", path, path, "--trust", "--epochs", 0)
    assert told.code == 1 and "training=self.training" in told.stderr
    assert "keep nothing of one forward pass for the next" in told.stderr
    assert f"error: {path}: has other results each time" in told.stderr


def test_a_false_cut_is_left_out_of_all_and_refused_by_name(run, hidden):
    command = ("stitch", *hidden, "--trust", "--epochs", 0, "--at")
    every = run(*command, "all")
    assert every.code == 0, every.stderr
    cuts = [row["front_layer"] for row in csv.DictReader(io.StringIO(every.stdout))]
    # It looks at values, by which the block might change what its last part gives.
    assert cuts == ["stem", "block.0", "block.1", "block"]
    assert f"{hidden[1]}: body left out: what comes after depends on the input" in every.stderr
    named = run(*command, "stem,body")
    assert named.code == 1 and f"{hidden[1]}: 'body' is not a cut" in named.stderr


REVERSED = """
from torch import nn

class Reversed(nn.Module):
    # `body` sees the images in the reverse order.
    def __init__(self, num_classes=10):
        super().__init__()
        self.stem, self.body = nn.Linear(64, 8), nn.Linear(8, 8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images):
        x = self.stem(images.flatten(1)).relu()
        return self.fc(self.body(x.flip(0)).flip(0))
"""


IN_PARTS = """
import torch
from torch import nn

class InParts(nn.Module):
    # `body` sees seven images at a time, to save memory.
    def __init__(self, num_classes=10):
        super().__init__()
        self.stem, self.body = nn.Linear(64, 8), nn.Linear(8, 8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images):
        x = self.stem(images.flatten(1)).relu()
        LOOK
        return self.fc(torch.cat([self.body(part) for part in x.split(SIZE)]))
"""


@pytest.mark.parametrize("look", ["", "assert x.isfinite().all()"], ids=["", "looks at values"])
@pytest.mark.parametrize("size", [7, 100])
def test_a_layer_that_sees_some_images_at_a_time_is_told(run, tmp_path, size, look):
    (tmp_path / "net.py").write_text(IN_PARTS.replace("SIZE", str(size)).replace("LOOK", look))
    spec = models.parse(f"{tmp_path}/net.py:InParts")
    path = saved(tmp_path / "0.safetensors", spec)
    command = ("stitch", path, path, "--trust", "--connector", "none", "--epochs", 0, "--at")
    every = run(*command, "all")
    assert every.code == 0 and f"{path}: body left out: they do not give one" in every.stderr
    refused = run(*command, "body")
    assert refused.code == 1 and "'body' does not give one row for each" in refused.stderr
    in_few = run(*command, "body", "--memory", "150KiB")  # some fifty at once
    assert in_few.code == (0 if size == 100 else 1), in_few.stderr
    trained = run(*command[:4], "--epochs", 1, "--memory", "150KiB")  # with 128 in a step
    assert "body left out" in trained.stderr
    (row,) = csv.DictReader(io.StringIO(run(*command, "stem").stdout))
    assert float(row["agreement"]) == 1


@pytest.mark.parametrize("named, direction", [("body", "--both"), ("body=stem", "-q")])
def test_a_layer_that_sees_the_images_in_another_order_is_no_cut(run, tmp_path, named, direction):
    (tmp_path / "net.py").write_text(REVERSED)
    spec = models.parse(f"{tmp_path}/net.py:Reversed")
    paths = [saved(tmp_path / f"{seed}.safetensors", spec, seed=seed) for seed in (0, 1)]
    command = ("stitch", *paths, "--trust", "--epochs", 0, "--at")
    refused = run(*command, named, direction)
    assert refused.code == 1 and refused.stdout == ""
    assert "'body' gives the images in another order than it gets them" in refused.stderr
    every = run(*command, "all", "--connector", "none")
    assert [row["front_layer"] for row in csv.DictReader(io.StringIO(every.stdout))] == ["stem"]
    assert "body left out: they give the images in another order" in every.stderr
    (row,) = csv.DictReader(
        io.StringIO(run(*(*command[:1], paths[0], *paths[:1], *command[3:]), "stem").stdout)
    )
    assert float(row["agreement"]) == 1


RARELY = """
import torch
from torch import nn

class Rarely(nn.Module):
    # A bright image, one in ten, is looked at again at the end.
    def __init__(self, num_classes=10):
        super().__init__()
        self.stem, self.body = nn.Linear(64, 8), nn.Linear(8, 8)
        self.fc, self.again = nn.Linear(8, num_classes), nn.Linear(64, num_classes)

    def forward(self, images):
        inputs = images.flatten(1)
        logits = self.fc(self.body(self.stem(inputs)))
        hard = (inputs.mean(1) - 0.3).abs() < 0.17
        return torch.where(hard[:, None], self.again(inputs), logits) if hard.any() else logits

class Level(nn.Module):
    # Counts up at the start of a forward pass, and down at its end.
    def __init__(self, num_classes=10):
        super().__init__()
        self.level = 0.0
        self.stem, self.fc = nn.Linear(64, 8), nn.Linear(8, num_classes)

    def forward(self, images):
        self.level += 1
        logits = self.fc((self.stem(images.flatten(1)) * self.level).relu())
        self.level -= 1
        return logits

class Mixed(nn.Module):
    # `body` normalizes rows that hold parts of other images; the logits are each image's own.
    def __init__(self, num_classes=10):
        super().__init__()
        self.stem, self.body, self.fc = nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, num_classes)

    def forward(self, images):
        x = self.stem(images[:, 0]).transpose(0, 1)
        rows = self.body(x.reshape(len(images), 8, 6)).view(8, len(images), 6)
        return self.fc(rows.mean(0))
"""


def test_cuts_are_tried_with_images_enough_to_show_what_is_rare(run, tmp_path):
    (tmp_path / "net.py").write_text(RARELY)
    path = saved(tmp_path / "0.safetensors", models.parse(f"{tmp_path}/net.py:Rarely"))
    result = run("stitch", path, path, "--trust", "--connector", "none", "--epochs", 0)
    assert result.code == 1 and "none of its cuts" in result.stderr
    assert "left out: what comes after depends on the input in other ways too" in result.stderr


def test_a_network_whose_passes_may_not_end_early_is_refused(run, tmp_path):
    (tmp_path / "net.py").write_text(RARELY)
    path = saved(tmp_path / "0.safetensors", models.parse(f"{tmp_path}/net.py:Level"))
    result = run("stitch", path, path, "--trust", "--connector", "none", "--epochs", 0)
    assert (result.code, result.stdout) == (1, "")
    assert f"{path}: its model gives other results after a forward pass that ended" in result.stderr


def test_a_layer_that_mixes_images_is_no_cut(run, tmp_path):
    (tmp_path / "net.py").write_text(RARELY)
    path = saved(tmp_path / "0.safetensors", models.parse(f"{tmp_path}/net.py:Mixed"))
    command = ("stitch", path, path, "--trust", "--connector", "none", "--epochs", 0)
    result = run(*command, "--at", "body")
    assert result.code == 1 and "'body' depends on the other images of a batch" in result.stderr


def test_the_front_is_tested_as_it_is_even_if_its_last_layer_is_no_cut(run, hidden):
    """In the forward direction, nothing has to go on from the front's layers."""
    rows = csv.DictReader(
        io.StringIO(run("stitch", *hidden, "--trust", "--epochs", 0, "--at", "block").stdout)
    )
    (expected,) = rows
    result = run("stitch", *hidden, "--trust", "--epochs", 0, "--at", "body=block.0")
    (row,) = csv.DictReader(io.StringIO(result.stdout))
    assert row["front_accuracy"] == expected["front_accuracy"]


def test_a_back_of_other_classes_is_refused(run, runs, tmp_path):
    other = saved(tmp_path / "3.safetensors", models.parse("digits-cnn?num_classes=3"), classes=3)
    result = run("stitch", runs.clean, other, "--data", "digits", "--at", "block4")
    assert result.code == 1 and f"{other}: " in result.stderr and "3 " in result.stderr


def test_a_front_of_other_classes_has_no_accuracy_of_its_own(run, runs, tmp_path):
    other = saved(tmp_path / "3.safetensors", models.parse("digits-cnn?num_classes=3"), classes=3)
    command = ("stitch", other, runs.clean, "--at", "block4", "--epochs", 0)
    result = run(*command)
    assert result.code == 0, result.stderr
    (row,) = csv.DictReader(io.StringIO(result.stdout))
    assert row["front_accuracy"] == "" and 0 <= float(row["test_accuracy"]) <= 1
    assert f"{other}: gives 3 logits, the data set has 10 classes" in result.stderr
    for more in ("--both", "--control"):
        refused = run(*command, more)
        assert refused.code == 1 and refused.stdout == ""
        assert f"{other}: gives 3 logits" in refused.stderr and "--control" in refused.stderr


UNREACHED = """
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

class Saving(nn.Module):
    # Computes a block anew on the way back, and changes its input in place.
    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Linear(64, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images):
        images.sub_(0.1)
        x = self.stem(images.flatten(1))
        return self.fc(checkpoint(self.block, x, use_reentrant=False))

class Frozen(Saving):
    def forward(self, images):
        with torch.set_grad_enabled(self.training):
            x = self.stem(images.flatten(1))
        with torch.set_grad_enabled(self.training):
            x = self.block(x)
        return self.fc(x)
"""


@pytest.mark.parametrize("name, false", [("Saving", ["block.0"]), ("Frozen", ["stem"])])
def test_a_cut_that_no_gradient_reaches_is_left_out_where_a_layer_is_trained(
    run, tmp_path, name, false
):
    (tmp_path / "net.py").write_text(UNREACHED)
    path = saved(tmp_path / "n.safetensors", models.parse(f"{tmp_path}/net.py:{name}"))
    command = ("stitch", path, path, "--trust", "--epochs")
    trained, untrained = (run(*command, epochs) for epochs in (1, 0))
    assert trained.code == untrained.code == 0, trained.stderr
    for result, cuts in (
        (trained, {"stem", "block.0", "block"} - {*false}),
        (untrained, {"stem", "block.0", "block"}),
    ):
        found = {row["front_layer"] for row in csv.DictReader(io.StringIO(result.stdout))}
        assert found == cuts
    assert f"{', '.join(false)} left out: no gradient reaches it" in trained.stderr
    named = run(*command, 1, "--at", false[0])
    assert named.code == 1
    assert f"a stitching layer at '{false[0]}' cannot be trained" in named.stderr
