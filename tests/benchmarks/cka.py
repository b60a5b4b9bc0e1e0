"""What CKA costs beyond the forward passes it needs, and whether its numbers are right.

    python tests/benchmarks/cka.py [--repeat 5] [--threads 2] [--peers [NAME ...]] [--profile]

Two torchvision ResNet-18 (10 classes, random weights, fitted batch-norm statistics), 1,024 images
of 32x32, batches of 256, two threads. Timed is `similarity.compare`, which the command runs, on
networks that are in memory already. Every time is a ratio to the bare forward passes of both
models, taken in turn with it in the same process: the median of the ratios of neighbors, and the
least time of each. memtool's own passes have the channels last in memory, which takes a quarter
less time; those of exact and unbiased come in ten batches, which make the groups of the standard
error. Threads are bound to processors, unless OMP_PROC_BIND says otherwise: where a scheduler puts
both on one, as that of a virtual machine may, short operations take four times as long. Values are
checked one by one against the written-out formula in float64. Peak memory is that of processes of
their own.

Two lines are of the whole command, start-up and reading of images included: its time against
that of a bare script that loads the same models and images and runs the forward passes.

`--profile` alone shows where the time of every module goes.

The last lines are of other CKA libraries, those that are installed, on the same models, images,
batches and layers: called as their documentation says, and checked against the minibatch estimator
that all of them state. `--peers` runs them alone.
"""

import argparse
import copy
import io
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_PROC_BIND", "true")  # is read when torch is imported

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

sys.path.pop(0)  # this folder, where `import cka` would find this file
sys.path.insert(0, str(Path(__file__).parents[2]))

from memtool import layers
from memtool.checkpoints import Checkpoint, Network
from memtool.device import Processes
from memtool.models import ModelSpec
from memtool.similarity import (
    CkaSettings,
    Estimator,
    Pairs,
    Selection,
    compare,
    make_plan,
    minibatch,
)
from memtool.similarity.measuring import image_order

N, BATCH, THREADS = 1024, 256, 2
MEAN, STD = [128 / 255] * 3, [64 / 255] * 3  # in units of 255, as `normalized` has them
BLOCKS = ["maxpool", "layer?.?", "fc"]  # ten
SELECTIONS = {"ten blocks": BLOCKS, "every module": ["all"]}


def images() -> torch.Tensor:
    """Smooth random images, uint8 (N, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(N, 3, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=32, mode="bilinear")
    fine = torch.randn(N, 3, 32, 32, generator=generator)
    return (smooth * 50 + fine * 20 + 128).clamp(0, 255).byte()


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = resnet18(num_classes=10)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain mean over batches
    with torch.no_grad():
        for batch in images()[:512].split(BATCH):
            model(normalized(batch))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval().requires_grad_(False)


def selected(model: nn.Module, patterns: list[str]) -> list[layers.Layer]:
    return layers.select(layers.trace(model, torch.zeros(2, 3, 32, 32)), patterns, "benchmark")


def normalized(batch: torch.Tensor) -> torch.Tensor:
    return batch.float().sub_(128).div_(64)


def bare(models: list[nn.Module]) -> None:
    with torch.inference_mode():
        for batch in images_once.split(BATCH):
            for model in models:
                model(normalized(batch))


def tensors(model: nn.Module, patterns: list[str]) -> list[str]:
    return list(dict.fromkeys(layer.same_as for layer in selected(model, patterns)))


@dataclass(frozen=True)
class Loaded(Checkpoint):
    """A checkpoint whose network is in memory."""

    model: nn.Module | None = None

    def network(self, device: torch.device) -> Network:
        return Network(self.model, MEAN, STD)


@dataclass(frozen=True)
class InMemory(Selection):
    weights = 0  # there is no file that says how large they are


def selection(model: nn.Module, patterns: list[str]) -> Selection:
    checkpoint = Loaded(Path("model"), {"training": {}}, ModelSpec("resnet18"), {}, {}, model=model)
    footprint = layers.footprint(model, (3, 32, 32))
    return InMemory(checkpoint, selected(model, patterns), patterns, footprint)


def memtool_cka(
    models: list[nn.Module], patterns: list[str], estimator: Estimator, pairs: str
) -> dict[tuple[str, str], float]:
    """CKA by (layer, reference layer)."""
    mine, reference = (selection(model, patterns) for model in models)
    settings = CkaSettings(Pairs(pairs), estimator, batch_size=BATCH)
    plan = make_plan([mine], [reference], N, settings)
    rows = compare(plan, images_once, "noise", Processes())
    return {(row["layer"], row["reference_layer"]): row["cka"] for row in rows}


def largest_error(
    found: dict[tuple[str, str], float], expected: torch.Tensor, layers_: list[layers.Layer]
) -> float:
    """Of all values, against `expected`, (tensors, tensors)."""
    tensors = {name: i for i, name in enumerate(dict.fromkeys(x.same_as for x in layers_))}
    place = {layer.name: tensors[layer.same_as] for layer in layers_}
    return max(abs(value - expected[place[a], place[b]].item()) for (a, b), value in found.items())


def float64_grams(model: nn.Module, names: list[str], batch: torch.Tensor) -> torch.Tensor:
    """Gram matrices in float64 of the float32 activations, (layers, n, n)."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, activation: torch.Tensor) -> None:
        x = activation.flatten(1).double()
        found[name] = x @ x.T

    with torch.inference_mode(), layers.observed(model, names, keep):
        model(normalized(batch))
    return torch.stack([found[name] for name in names])


def float64_cka(
    models: list[nn.Module], names: list[str], estimator: Estimator, ordered: torch.Tensor
) -> torch.Tensor:
    """CKA of each layer with each by the formulas as they are published; `ordered` are the images
    as they come in batches."""
    batches = ordered.split(BATCH if estimator is Estimator.minibatch else N)
    hsic = biased_hsic if estimator is Estimator.exact else unbiased_hsic
    xy, xx, yy = 0, 0, 0
    for batch in batches:
        k, l = (float64_grams(model, names, batch) for model in models)  # noqa: E741
        xy, xx, yy = xy + hsic(k, l), xx + hsic(k, k).diagonal(), yy + hsic(l, l).diagonal()
    return xy / (xx[:, None] * yy).sqrt()


def biased_hsic(k: torch.Tensor, l: torch.Tensor) -> torch.Tensor:  # noqa: E741
    """trace(K H L H) / (n - 1)^2."""
    n = k.shape[1]
    h = torch.eye(n, dtype=k.dtype) - 1 / n
    return (h @ k @ h).flatten(1) @ l.flatten(1).T / (n - 1) ** 2


def unbiased_hsic(k: torch.Tensor, l: torch.Tensor) -> torch.Tensor:  # noqa: E741
    """Song et al. 2012, Eq. 5."""
    n = k.shape[1]
    off = 1 - torch.eye(n, dtype=k.dtype)
    k, l = k * off, l * off  # noqa: E741
    a = k.flatten(1) @ l.flatten(1).T
    b = torch.outer(k.sum((1, 2)), l.sum((1, 2))) / ((n - 1) * (n - 2))
    c = 2 / (n - 2) * k.sum(2) @ l.sum(2).T
    return (a + b - c) / (n * (n - 3))


def ratios(run, models: list[nn.Module], repeat: int) -> str:
    """Median ratio of `run`, which has run before, to the bare passes next to it; least times."""
    times: list[tuple[float, float]] = []
    for _ in range(repeat):
        start = time.perf_counter()
        bare(models)
        middle = time.perf_counter()
        run()
        times.append((middle - start, time.perf_counter() - middle))
    return compared(times)


def compared(times: list[tuple[float, float]]) -> str:
    """Median of the ratios, then those of the least times: of pairs of seconds, bare first."""
    median = statistics.median(mine / base for base, mine in times)
    base, mine = map(min, zip(*times, strict=True))
    return f"{median:.2f} ({mine:.2f} / {base:.2f} = {mine / base:.2f})"


def peak(what: str) -> float:
    """Peak memory in MB of a process of its own that runs `what` once."""
    output = subprocess.run(
        [sys.executable, __file__, "--peak", what], capture_output=True, text=True, check=True
    )
    return float(output.stdout.split()[-1])


def run_for_peak(what: str) -> None:
    # As they are built: fitting batch norm takes more memory than what is to be measured.
    models = [resnet18(num_classes=10).eval().requires_grad_(False) for _ in range(2)]
    bare(models)
    if what != "bare":
        memtool_cka(models, SELECTIONS[what], Estimator.minibatch, "all")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


BARE_SCRIPT = """
import sys
from pathlib import Path
import numpy, torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.models import resnet18
torch.set_num_threads(int(sys.argv[1]))
paths = sorted(Path(sys.argv[2]).glob("*/*.png"))
images = torch.from_numpy(numpy.stack([numpy.asarray(Image.open(path)) for path in paths]))
models = []
for path in sys.argv[3:]:
    model = resnet18(num_classes=10)
    model.load_state_dict(load_file(path))
    models.append(model.eval())
with torch.inference_mode():
    for batch in images.permute(0, 3, 1, 2).split(256):
        for model in models:
            model(batch.float().sub(128).div(64))
"""


def whole_command(models: list[nn.Module], patterns: list[str], threads: int, repeat: int) -> str:
    """Wall time of `memtool cka` on files, as a ratio to that of BARE_SCRIPT next to it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i, image in enumerate(images_once):
            (folder / "images" / str(i % 10)).mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            picture.save(folder / "images" / str(i % 10) / f"{i:04d}.png")
        weights = [str(folder / f"{i}.safetensors") for i in range(len(models))]
        for model, path in zip(models, weights, strict=True):
            save_file(model.state_dict(), path)
        script = [sys.executable, "-c", BARE_SCRIPT, str(threads), f"{folder}/images", *weights]
        command = [sys.executable, "-m", "memtool", "cka", *weights, "-q", "-o", f"{folder}/o.csv"]
        command += ["--model", "torchvision:resnet18?num_classes=10", "--estimator", "minibatch"]
        command += ["--data", f"folder:{folder}/images", "--layers", ",".join(patterns)]
        times = [(seconds(script, threads), seconds(command, threads)) for _ in range(1 + repeat)]
    return compared(times[1:])


def seconds(command: list[str], threads: int) -> float:
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    start = time.perf_counter()
    subprocess.run(command, check=True, env=environment)
    return time.perf_counter() - start


def pytorch_cka(x: nn.Module, y: nn.Module, modules: list[str], data: DataLoader):
    from cka import compute_cka

    return modules, compute_cka(x, y, data, layers=modules, device="cpu", progress=False)[0]


def torch_cka(x: nn.Module, y: nn.Module, modules: list[str], data: DataLoader):
    from torch_cka import CKA

    peer = CKA(x, y, "x", "y", model1_layers=modules, model2_layers=modules, device="cpu")
    peer.compare(data)
    results = peer.export()
    return results["model1_layers"], results["CKA"]


def cka_pytorch(x: nn.Module, y: nn.Module, modules: list[str], data: DataLoader):
    from cka_pytorch.cka import CKACalculator

    peer = CKACalculator(x, y, modules, batched_feature_size=256, verbose=False)
    # One pass over the images, as the others do, and not the ten that are its default.
    return peer.hook_manager1.module_names, peer.calculate_cka_matrix(data, num_epochs=1)


def ckatorch(x: nn.Module, y: nn.Module, modules: list[str], data: DataLoader):
    from ckatorch import CKA

    peer = CKA(x, y, modules, first_name="x", second_name="y")
    found = peer(data, epochs=1, f_extract=lambda batch: {"x": batch[0]}, f_args={})
    return peer.first_model_info.layers, found


# By the name to install: each gives the modules that it has values of, and CKA of each with each.
PEERS = {
    "pytorch-cka": pytorch_cka,
    "torch-cka": torch_cka,
    "cka-pytorch": cka_pytorch,
    "ckatorch": ckatorch,
}


def compare_peer(name: str, models: list[nn.Module], repeat: int) -> None:
    """Tell what one of PEERS costs and how far off it is, or why it does not run."""
    data = DataLoader(
        TensorDataset(normalized(images_once), torch.zeros(N)), batch_size=BATCH, shuffle=False
    )
    weights = [w for model in models for w in (*model.parameters(), *model.buffers())]
    for what, patterns in SELECTIONS.items():
        found = selected(models[0], patterns)
        tensor_of = last_calls(models[0], found)

        def run():
            # Some leave their hooks behind: on copies, which share the weights.
            x, y = copy.deepcopy(models, {id(weight): weight for weight in weights})
            with redirect_stderr(io.StringIO()):  # progress bars
                return PEERS[name](x, y, list(tensor_of), data)  # noqa: B023

        try:
            modules, values = run()
        except ImportError:
            return print(f"{name}: not installed (pip install {name})")
        except Exception as error:
            line(name, what, "all", "fails", f"{type(error).__name__}: {error}")
            continue
        names = list(dict.fromkeys(tensor_of.values()))
        rows = [names.index(tensor_of[module]) for module in modules]
        expected = float64_cka(models, names, Estimator.minibatch, images_once)[rows][:, rows]
        left_out = f"{len(found) - len(modules)} of {len(found)} layers left out"
        result = ratios(run, models, repeat)
        line(name, what, "all", result, f"{differences(values, expected)}; {left_out}")


def differences(values: torch.Tensor, expected: torch.Tensor) -> str:
    error = (values - expected).abs()
    off = f"{(error > 0.01).sum()} of {error.numel()} off by more than 0.01"
    return f"{error.nan_to_num().max():.1e}; {off}; {error.isnan().sum()} NaN"


def last_calls(model: nn.Module, found: list[layers.Layer]) -> dict[str, str]:
    """The tensor of each module: of the last call where there are several, which is what libraries
    keep that know one output a module."""
    modules = dict(model.named_modules())
    return {
        layer.name if layer.name in modules else layer.name.rsplit("_", 1)[0]: layer.same_as
        for layer in found
    }


def line(name: str, what: str, pairs: str, result: str, error: str) -> None:
    print(f"{name:<22} {what:<13} {pairs:<6} {result:<32} {error}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="of every module, and no more")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="other libraries only, or these")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        return run_for_peak(arguments.peak)
    models = [network(0), network(1)]
    if arguments.profile:
        return show_profile(models)
    line("what", "layers", "pairs", "x bare (least s / bare s)", "largest error")
    if arguments.peers is None:
        compare_memtool(models, arguments)
    for name in arguments.peers or PEERS:
        compare_peer(name, models, arguments.repeat)


def compare_memtool(models: list[nn.Module], arguments: argparse.Namespace) -> None:
    for what, patterns in SELECTIONS.items():
        names = tensors(models[0], patterns)
        for estimator in (Estimator.minibatch, Estimator.exact, Estimator.unbiased):
            ordered = images_once[image_order(N, seed=0)]
            expected = float64_cka(models, names, estimator, ordered)
            for pairs in ("same", "all"):
                run = lambda: memtool_cka(models, patterns, estimator, pairs)  # noqa: E731, B023
                error = largest_error(run(), expected, selected(models[0], patterns))
                result = ratios(run, models, arguments.repeat)
                line(f"memtool {estimator}", what, pairs, result, f"{error:.1e}")
    base = peak("bare")
    for what in SELECTIONS:
        print(f"memory above the bare passes, {what}: {peak(what) - base:.0f} MB")
    for what, patterns in SELECTIONS.items():
        ratio = whole_command(models, patterns, arguments.threads, arguments.repeat)
        print(f"whole command x bare script, {what}: {ratio}", flush=True)


def show_profile(models: list[nn.Module]) -> None:
    """Where the time of every module goes, and what no way of taking these sums can do without."""
    found = {layer.same_as: math.prod(layer.shape) for layer in selected(models[0], ["all"])}
    bare_seconds = least(lambda: bare(models))
    elements = minibatch._strips(BATCH, torch.device("cpu")).size
    flops = 2 * len(models) * (N // BATCH) * sum(found.values()) * elements
    x = torch.randn(BATCH, minibatch.CHUNK)
    speed = 2 * BATCH * BATCH * minibatch.CHUNK / least(lambda: x @ x.T, 50)
    print(
        f"Gram matrices of {sum(found.values()):,} features in {len(found)} tensors, "
        f"{elements / BATCH**2:.2f} of each: {flops / 1e9:.0f} GFLOP, {flops / speed:.2f} s at the "
        f"{speed / 1e9:.0f} GFLOP/s of a plain product; with the bare {bare_seconds:.2f} s "
        f"{1 + flops / speed / bare_seconds:.2f} x bare before anything is centered or added up"
    )
    from torch.profiler import profile

    with profile() as profiler:
        memtool_cka(models, ["all"], Estimator.minibatch, "same")
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


def least(run, repeat: int = 5) -> float:
    """The least time of `run`, in seconds."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


images_once = images()

if __name__ == "__main__":
    main()
