"""`memtool cka --layers all` and `info --layers` on many architectures, against float64.

    python tests/benchmarks/architectures.py [--only PATTERN ...] [--images 12]

All classifiers of torchvision and some sixty of timm, of different families, with random weights
and small images. Two networks of each are compared with `--estimator exact`. The reference knows
nothing of batches: it runs each network on one image at a time, takes each layer's output for it as
that image's features, and computes biased HSIC in float64 by the formula, tr(K H L H). Layers whose
features are the same for all images but for rounding are counted apart: there, CKA is that of
rounding. One line for each architecture; exit code 1 if any of them fails or is off by more than
1e-4.
"""

import argparse
import csv
import io
import sys
import tempfile
import time
import warnings
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models as torchvision_models
from typer.testing import CliRunner

from memtool import models
from memtool.cli import app
from memtool.layers import observed

# Of timm, a few of each family: plain and residual convolutions, searched ones, transformers with
# a class token, with windows, hybrids, mixers and others. None: the model's own size of images.
TIMM = {
    **dict.fromkeys(
        "resnet10t resnet26d seresnet18 resnext26ts ecaresnet26t resnest14d skresnet18 "
        "res2net50_14w_8s tresnet_m vgg11 densenet121 dpn48b dla34 dla46_c "
        "hrnet_w18_small selecsls42 regnetx_002 regnety_002 regnetz_b16 cspresnet50 darknet17 "
        "mobilenetv2_035 mobilenetv3_small_050 efficientnet_lite0 tf_efficientnet_b0 mixnet_s "
        "mnasnet_small fbnetc_100 spnasnet_100 ghostnet_050 lcnet_035 tinynet_e hardcorenas_a "
        "rexnetr_200 nf_regnet_b0 nfnet_l0 eca_nfnet_l0 repvgg_a0 mobileone_s0 convnext_atto "
        "convnextv2_atto poolformer_s12 convmixer_768_32 inception_v3".split(),
        96,
    ),
    **dict.fromkeys(
        "vit_tiny_patch16_224 deit_tiny_patch16_224 deit3_small_patch16_224 beit_base_patch16_224 "
        "mixer_s32_224 resmlp_12_224 gmlp_s16_224 cait_xxs24_224 xcit_nano_12_p16_224 "
        "swin_tiny_patch4_window7_224 pit_ti_224 tnt_s_legacy_patch16_224 coat_lite_tiny "
        "levit_128s twins_svt_small visformer_tiny mobilevit_xxs maxvit_rmlp_pico_rw_256 "
        "edgenext_xx_small fastvit_t8 crossvit_tiny_240 convit_tiny sequencer2d_s".split(),
        None,
    ),
}
MEMORY = "16GiB"  # for the features of all layers of the largest
FEATURES = 10**8  # numbers that the reference keeps at a time
SIZES = {"inception_v3": 96, "maxvit_t": 224}


def chosen(only: list[str]) -> list[tuple[str, int | None]]:
    """The specs, and the sizes of their images."""
    found: list[tuple[str, int | None]] = []
    for name in torchvision_models.list_models(module=torchvision_models):
        size = SIZES.get(name, 64)
        option = f"?image_size={size}" if name.startswith("vit_") and "h_14" not in name else ""
        if "h_14" in name:
            size, option = 56, "?image_size=56"
        found.append((f"torchvision:{name}{option}", size))
    found += [(f"timm:{name}", size) for name, size in TIMM.items()]
    return [(spec, size) for spec, size in found if any(fnmatchcase(spec, one) for one in only)]


def network(spec: models.ModelSpec, seed: int) -> nn.Module:
    """A network with random weights, none of which is 0 and hides a path."""
    torch.manual_seed(seed)
    model = models.build(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape)
    return model.eval().requires_grad_(False)


def one_by_one(model: nn.Module, names: list[str], images: Tensor) -> dict[str, Tensor]:
    """The Gram matrix (n, n) of each layer in float64, from forward passes of single images."""
    grams: dict[str, Tensor] = {}
    while missing := [name for name in names if name not in grams]:
        for name, rows in some_features(model, missing, images).items():
            x = torch.stack(rows).double()
            grams[name] = x @ x.T
    return grams


@torch.no_grad()
def some_features(model: nn.Module, names: list[str], images: Tensor) -> dict[str, list[Tensor]]:
    """The features of each image, at as many of the layers as there is memory for."""
    rows: dict[str, list[Tensor]] = {}
    kept = 0

    def keep(name: str, activation: Tensor) -> None:
        nonlocal kept
        if name in rows or kept < FEATURES:
            kept += activation.numel()
            rows.setdefault(name, []).append(activation.flatten().clone())

    with observed(model, names, keep):
        for image in images:
            model(image[None])
    return rows


def centered(k: Tensor) -> Tensor:
    h = torch.eye(len(k), dtype=torch.float64) - 1 / len(k)
    return h @ k @ h


def cka(k: Tensor, l: Tensor) -> float:  # noqa: E741
    k, l = centered(k), centered(l)  # noqa: E741
    return ((k * l).sum() / (k.norm() * l.norm())).item()


def is_rounding(k: Tensor) -> bool:
    """Whether images differ by no more than float32 rounds in a deep network."""
    return bool(centered(k).trace() <= 1e-7 * k.trace())


def compare(spec: models.ModelSpec, size: int, n: int, folder: Path) -> str:
    """What to tell of one architecture; raises if a command fails or a value is off."""
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8)
    data = folder / "images.safetensors"
    save_file({"images": images, "labels": torch.arange(n) % 2}, data)
    networks = [network(spec, seed) for seed in (0, 1)]
    paths = [folder / f"{seed}.safetensors" for seed in (0, 1)]
    for model, path in zip(networks, paths, strict=True):
        state = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, path)
    data_spec = f"{data}?mean=0.5,0.5,0.5&std=0.25,0.25,0.25"
    options = ["--model", str(spec)]
    info = run("info", "--layers", str(paths[0]), *options, "--image-size", str(size))
    command = ["cka", *map(str, paths), *options, "--data", data_spec, "--estimator", "exact"]
    table = run(*command, "--layers", "all", "--memory", MEMORY)
    names = [row["layer"] for row in table]
    floats = (images.float() / 255 - 0.5) / 0.25
    x, y = (one_by_one(model, names, floats) for model in networks)
    worst, rounding, empty = 0.0, 0, 0
    for row in table:
        a, b = x[row["layer"]], y[row["layer"]]
        if is_rounding(a) or is_rounding(b):
            rounding += 1
        elif row["cka"]:
            worst = max(worst, abs(float(row["cka"]) - cka(a, b)))
        else:
            empty += 1
    told = f"{len(info)} layers, {len(names)} compared, {rounding} rounding, off by {worst:.0e}"
    if worst > 1e-4 or empty:
        raise ValueError(f"{told}, {empty} empty")
    return told


def run(*arguments: str) -> list[dict[str, str]]:
    """The rows that a command prints."""
    result = CliRunner().invoke(app, [*arguments, "-q", "--format", "csv"])
    if result.exit_code:
        raise result.exception if result.exit_code != 1 else ValueError(result.stderr.strip())
    return list(csv.DictReader(io.StringIO(result.stdout)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=["*"])
    parser.add_argument("--images", type=int, default=12)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    failed, start = [], time.perf_counter()
    every = chosen(arguments.only)
    for name, size in every:
        begin = time.perf_counter()
        try:
            spec = models.parse(name)
            size = size or models.image_shape(spec)[1]
            with tempfile.TemporaryDirectory() as folder:
                told = compare(spec, size, arguments.images, Path(folder))
        except Exception as error:
            failed.append(name)
            told = f"FAILS {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"{name:44} {size or '':>4} {time.perf_counter() - begin:5.1f} s  {told}", flush=True)
    seconds = time.perf_counter() - start
    print(f"{len(every)} architectures, {len(failed)} failed, {seconds:.0f} s")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
