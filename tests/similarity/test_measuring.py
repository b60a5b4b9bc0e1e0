"""The pass over the images."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from memtool import cka
from memtool.checkpoints import Checkpoint, Network
from memtool.device import Processes
from memtool.progress import silent
from memtool.similarity import (
    CkaSettings,
    Estimator,
    Kernel,
    make_plan,
    measuring,
    selections,
)
from memtool.similarity.measuring import Setting, image_order, measure


def measured(runs, images, settings, patterns=("block5", "fc"), portion=None, seen=None):
    """With `portion`, so many images in a pass; how many there are in each goes to `seen`."""
    opened = [Checkpoint.open(path) for path in (runs.noisy, runs.clean)]
    plan = make_plan(*selections(opened[:1], opened[1:], patterns), len(images), settings)
    if portion:
        plan = replace(plan, portion=portion)
    with pytest.MonkeyPatch.context() as patch:
        if seen is not None:
            run = Network.run
            counted = lambda self, images: seen.append(len(images)) or run(self, images)  # noqa: E731
            patch.setattr(Network, "run", counted)
        return measure(plan.groups[0], Setting(plan, images, Processes()), silent)


def activations(path, images, layer):
    network = Checkpoint.open(path).network()
    modules = dict(network.model.named_modules())
    kept = []
    handle = modules[layer].register_forward_hook(lambda *_: kept.append(_[-1].clone()))
    with torch.no_grad():
        network.run(images)
    handle.remove()
    return kept[0]


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("estimator", ["exact", "unbiased"])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_a_pass_gives_cka_of_the_activations(runs, images, estimator, kernel):
    settings = CkaSettings(estimator=Estimator(estimator), kernel=Kernel(kernel))
    found = measured(runs, images, settings)
    assert not any(network.constant for network in found.networks.values())
    for layer in ("block5", "fc"):
        x, y = (activations(path, images, layer) for path in (runs.noisy, runs.clean))
        expected = cka(x, y, estimator, kernel).item()
        assert found.values[0][layer, layer].cka == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("estimator", ["exact", "minibatch"])
def test_sigma_depends_on_neither_the_batches_nor_their_order(run, runs, estimator):
    command = ("cka", runs.noisy, runs.clean, "--layers", "fc", "--kernel", "rbf")
    command += ("--estimator", estimator, "--format", "jsonl")
    if estimator == "exact":
        options = [("--batch-size", size, "--seed", seed) for size in (7, 500) for seed in (0, 1)]
        found = {run(*command, *some).stdout.partition('"cka": ')[2][:9] for some in options}
        assert len(found) == 1
    whole = run(*command, "--batch-size", 500).stdout
    other = run(*command, "--batch-size", 500, "--seed", 1).stdout
    value = [float(text.partition('"cka": ')[2].partition(",")[0]) for text in (whole, other)]
    assert value[0] == pytest.approx(value[1], abs=1e-6)


def test_sigma_is_the_same_however_little_memory_there_is(runs, images):
    settings = CkaSettings(estimator=Estimator.minibatch, kernel=Kernel.rbf)
    plenty = measured(runs, images, settings).values
    portions = []
    original = measuring._portions

    def tiny(names, widths, most):
        found = list(original(names, widths, 1))
        portions.append(found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "_portions", tiny)
        assert measured(runs, images, settings).values == plenty
    assert portions[0] == [["block5"], ["fc"]]


@pytest.mark.parametrize("estimator", ["exact", "minibatch"])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_passes_of_parts_of_a_batch_or_of_several_give_what_one_pass_gives(
    runs, images, estimator, kernel
):
    settings = CkaSettings(estimator=Estimator(estimator), kernel=Kernel(kernel), batch_size=20)
    whole = measured(runs, images, settings, ["all"], portion=60)
    seen: list[int] = []
    for portion in (1, 4, 20, 45):  # batches have 6 or 20
        parts = measured(runs, images, settings, ["all"], portion, seen)
        assert max(seen) == max(portion, 2)  # two, to see which memory format suits the network
        assert ({"exact": 42, "minibatch": 40}[estimator] in seen) == (portion == 45)
        seen.clear()
        constant = [[one.constant for one in each.networks.values()] for each in (whole, parts)]
        assert constant[0] == constant[1]
        assert parts.values[0].keys() == whole.values[0].keys()
        for pair, value in whole.values[0].items():
            assert parts.values[0][pair] == pytest.approx(value, abs=1e-6)


def test_images_come_in_an_order_that_the_seed_gives():
    assert image_order(10, 0).tolist() == image_order(10, 0).tolist() != image_order(10, 1).tolist()
    assert sorted(image_order(10, 3).tolist()) == list(range(10))


class Coinciding(nn.Module):
    """Tells few images from the others: most give the very same features."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.rare, self.fc = nn.ReLU(), nn.Linear(64, num_classes)

    def forward(self, images):
        rare = self.rare(images.flatten(1) - images.flatten(1).amax() + 0.3)
        return self.fc(rare)


def test_most_images_coinciding_is_a_reason_of_its_own(run, tmp_path):
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_file(Coinciding().state_dict(), tmp_path / f"{seed}.safetensors")
    images = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)
    images[:5] = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    save_file({"images": images, "labels": torch.arange(40) % 10}, tmp_path / "images.safetensors")
    command = ("cka", tmp_path / "0.safetensors", tmp_path / "1.safetensors", "--layers", "fc")
    command += ("--model", f"{__file__}:Coinciding", "--data", tmp_path / "images.safetensors")
    linear, rbf = run(*command), run(*command, "--kernel", "rbf")
    assert linear.code == rbf.code == 0 and "warning" not in linear.stderr
    assert "no CKA of fc for --kernel rbf: the same for so many images" in rbf.stderr
    assert "not positive" not in rbf.stderr and rbf.stdout.splitlines()[1].endswith(",,")
