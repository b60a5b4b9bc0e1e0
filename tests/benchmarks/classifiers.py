"""The layers and cuts of every torchvision classifier, found on the meta device.

    python tests/benchmarks/classifiers.py

Prints a line a model: layers, cuts, and the seconds that building and tracing it took, at the size
of images that `memtool info --layers` takes for it. Ends with 1 if a model cannot be traced.
"""

import sys
import time

import torch
from torchvision import models

from memtool.layers import trace
from memtool.models.building import skeleton
from memtool.models.sources import parse


def main() -> None:
    failed, start = [], time.perf_counter()
    names = models.list_models(module=models)
    for name in names:
        begin = time.perf_counter()
        size = 299 if name == "inception_v3" else 224
        try:
            model = skeleton(parse(f"torchvision:{name}")).to("meta")
            layers = trace(model, torch.zeros(2, 3, size, size, device="meta"))
        except Exception as error:
            failed.append(name)
            print(f"{name:24} {type(error).__name__}: {error}")
            continue
        cuts = sum(layer.is_cut for layer in layers)
        seconds = time.perf_counter() - begin
        print(f"{name:24} {len(layers):5} layers {cuts:4} cuts {seconds:6.2f} s", flush=True)
    print(f"{len(names)} models, {len(failed)} failed, {time.perf_counter() - start:.0f} s")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
