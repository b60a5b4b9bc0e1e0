"""How a network came about: epoch, seed and noise, of both ends where it is a stitched model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Provenance:
    """How a network was trained, as far as that is on record; what is not known is None.

    A stitched model has those of its `front` and its `back` too. Its own seed and epoch are those
    of the stitching layer, and its noise is that of both ends where they agree; where they differ
    in the ratio, nothing of it is.

    >>> clean, noisy = ({"noise_ratio": ratio, "seed": 1} for ratio in (0.0, 0.5))
    >>> Provenance.of({"epoch": 5, "front": clean, "back": noisy}).noise_ratio is None
    True
    >>> Provenance.of({"epoch": 5, "front": noisy, "back": noisy}).noise_ratio
    0.5
    >>> clean, noisy = ({**end, "noise_kind": "uniform"} for end in (clean, noisy))
    >>> Provenance.of({"epoch": 5, "front": clean, "back": noisy}).noise_kind is None
    True
    """

    epoch: int | None = None
    seed: int | None = None
    order_seed: int | None = None  # where it is not `seed`
    noise_ratio: float | None = None
    noise_kind: str | None = None
    noise_seed: int | None = None
    front: "Provenance | None" = None
    back: "Provenance | None" = None

    @staticmethod
    def of(training: Mapping[str, Any]) -> "Provenance":
        """What the section `training` of a checkpoint's metadata says, once that is checked."""
        own = {key: training.get(key) for key in ("epoch", "seed", "order_seed")}
        if not {"front", "back"} <= training.keys():
            return Provenance(**own, **{key: training.get(key) for key in NOISE})
        front, back = Provenance.of(training["front"]), Provenance.of(training["back"])
        if front.noise_ratio != back.noise_ratio:
            return Provenance(**own, front=front, back=back)
        pairs = {key: (getattr(front, key), getattr(back, key)) for key in NOISE}
        shared = {key: one if one == other else None for key, (one, other) in pairs.items()}
        return Provenance(**own, **shared, front=front, back=back)


NOISE = ("noise_ratio", "noise_kind", "noise_seed")
NOT_STITCHED = Provenance()  # in place of the ends that a network does not have
