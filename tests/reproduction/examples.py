"""Tables of a made-up reproduction in which every claim of the paper holds, unless told otherwise.

A number is given as a function of the noise ratio r, the depth d from 0 (first layer) to 1 (last),
the epoch e, and the seed s.
"""

from dataclasses import dataclass
from typing import Any

EPOCHS = (1, 2, 4, 8)
LAYERS = ("stem", "encoder.0", "encoder.1.mlp", "encoder.2", "neck", "<head>")
CONDITIONS = {"estimator": "exact", "kernel": "linear", "bandwidth": None, "data": "toys", "n": 9}
TRAINED = {
    **{"data": "toys", "init": "lstsq", "optimizer": "adam", "epochs": 5, "epoch": 5},
    **{"learning_rate": 0.002, "batch_size": 128},
}


@dataclass(frozen=True)
class World:
    """What there is to be measured, and where."""

    ratios: tuple[float, ...] = (0.0, 0.25, 0.5)
    seeds: tuple[int | None, ...] = (0,)
    layers: tuple[str, ...] = LAYERS
    epochs: tuple[int, ...] = EPOCHS
    given: Any = lambda r, s: 1.0
    tested: Any = lambda r, s: 1 - r
    convergence: Any = lambda r, d, e, s: 1 - r * d / 2
    divergence: Any = lambda r, d, e, s: 1 - r * d * {1: 0.3, 2: 0.0, 4: 0.4}.get(e, 0.8)
    ceiling: Any = lambda d, e, s: 1 - 0.02 * d  # None: there is no second clean network
    drop: Any = lambda r, d, s: 0.4 * r * d
    gain: Any = lambda r, d, s: 0.8 * r * d  # net of the control

    def depths(self):
        last = max(len(self.layers) - 1, 1)
        return [(layer, place / last) for place, layer in enumerate(self.layers)]

    def training(self) -> list[dict[str, Any]]:
        return [
            {
                **{"noise_ratio": r, "seed": s, "order_seed": None, "epoch": e, "data": "toys"},
                **{"checkpoint": Network(r, s).name, "model": "net", "loss": 1 / e},
                **{"true_accuracy": 1 - r, "mislabelled_accuracy": e / 8 if r else None},
                "given_accuracy": self.given(r, s) if e == self.epochs[-1] else 0.1,
                "test_accuracy": self.tested(r, s) if e == self.epochs[-1] else 0.1,
            }
            for s in self.seeds
            for r in self.ratios
            for e in self.epochs
        ]

    def cka(self) -> list[dict[str, Any]]:
        return [row for s in self.seeds for row in self._cka(s)]

    def _cka(self, s: int | None) -> list[dict[str, Any]]:
        clean = Network(0.0, s)
        rows = []
        for r in self.ratios:
            run = Network(r, s)
            for e in self.epochs:
                for layer, d in self.depths():
                    own = 1.0 if e == self.epochs[-1] else self.convergence(r, d, e, s)
                    rows.append(self._pair(run, run, e, layer, own))
                    if r > 0:
                        rows.append(self._pair(run, clean, e, layer, self.divergence(r, d, e, s)))
        if self.ceiling:
            second = Network(0.0, s, order=99)
            for e in self.epochs:
                for layer, d in self.depths():
                    rows.append(self._pair(second, clean, e, layer, self.ceiling(d, e, s)))
        return rows

    def _pair(self, run, reference, epoch, layer, value):
        return {
            **{"checkpoint": f"{run.name}/{epoch}", "reference": reference.name},
            **{"layer": layer, "reference_layer": layer, "cka": value, "front_layer": None},
            **{"noise_ratio": run.ratio, "noise_seed": run.seed, "seed": run.seed},
            **{"order_seed": run.order, "epoch": epoch, "reference_epoch": self.epochs[-1]},
            "reference_noise_ratio": reference.ratio,
            "reference_noise_seed": reference.seed,
            "reference_seed": reference.seed,
            "reference_order_seed": reference.order,
            **CONDITIONS,
        }

    def stitching(self) -> list[dict[str, Any]]:
        rows = []
        for s in self.seeds:
            for r in self.ratios:
                for layer, d in self.depths():
                    control = 0.9 - r + 0.1 * r * d
                    cost, gain = 0.01 + self.drop(r, d, s), self.gain(r, d, s)
                    forward = self._stitched("forward", (r, 0.0), layer, s, 0.9, 0.9 - cost)
                    reverse = self._stitched("reverse", (0.0, r), layer, s, 0.9 - r, control + gain)
                    own = self._stitched("control", (r, r), layer, s, 0.9 - r, control)
                    rows += [
                        {**row, "control_accuracy": control} for row in (forward, reverse, own)
                    ]
        return rows

    def _stitched(self, direction, ratios, layer, seed, back_accuracy, accuracy):
        front, back = ratios
        return {
            **{"direction": direction, "front_layer": layer, "back_layer": layer},
            **{"front": Network(front, seed).name, "back": Network(back, seed).name},
            **{"front_accuracy": 0.9 - front, "batch_norm": False, "n": 9},
            **{"front_noise_ratio": front, "back_noise_ratio": back},
            **{"front_seed": seed, "back_seed": seed, "back_accuracy": back_accuracy},
            **{"test_accuracy": accuracy, **TRAINED},
        }


@dataclass(frozen=True)
class Network:
    ratio: float
    seed: int | None
    order: int | None = None

    @property
    def name(self) -> str:
        return f"runs/r{self.ratio}-s{self.seed}-{self.order}"
