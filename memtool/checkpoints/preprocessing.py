"""Preprocessing: what the configuration beside weights says of the images that they take. Pure.

timm writes it into `config.json`, as `pretrained_cfg`, and transformers into
`preprocessor_config.json`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memtool.data import RESIZING, option_value
from memtool.metadata import MAX_IMAGE
from memtool.tables.schema import LARGEST

# What timm takes where a `pretrained_cfg` does not say it.
TIMM = {"crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic"}
# PIL's filters by the numbers that transformers writes.
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")


@dataclass
class Preprocessing:
    """How weights take their images.

    `statistics` are `mean` and `std`, one number per channel, in units of 255; `resizing` the
    options of a data set that prepare its images; `image_shape` is (channels, height, width). Each
    is empty where that is not known. `doubts` say what in the configuration was not followed.
    """

    statistics: dict[str, list[float]] = field(default_factory=dict)
    resizing: dict[str, Any] = field(default_factory=dict)
    image_shape: list[int] | None = None
    doubts: list[str] = field(default_factory=list)


def told_by(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Preprocessing:
    """What a `config.json` says or, where that says nothing, a `preprocessor_config.json`. Either
    may be empty, or of something else."""
    told = _of_timm(_section(config))
    return told if told != Preprocessing() else _of_transformers(processor)


def _section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a `config.json` says of its weights, which old ones say beside the architecture."""
    section = config.get("pretrained_cfg")
    if isinstance(section, dict):
        return section
    return config if isinstance(config.get("architecture"), str) else {}


# --- timm's config.json ---------------------------------------------------------------------------


def _of_timm(section: Mapping[str, Any]) -> Preprocessing:
    told = Preprocessing()
    _add_statistics(told, section.get("mean"), section.get("std"), "mean and std")
    size = section.get("input_size")
    told.image_shape = _shape(size)
    if size is not None and not told.image_shape:
        told.doubts.append(f"input_size {size!r:.50}")
    if not told.image_shape and all(section.get(name) is None for name in RESIZING):
        return told
    if told.image_shape and told.image_shape[1] != told.image_shape[2]:
        told.doubts.append(f"images that are not square, {size}; they are taken as they are")
        return told
    resizing = {name: _timms_value(told, section, name) for name in RESIZING}
    if resizing["crop_mode"] == "border" and not told.statistics:
        told.doubts.append("crop_mode 'border' without mean and std")
        return told
    told.resizing = resizing | ({"image_size": told.image_shape[1]} if told.image_shape else {})
    return told


def _timms_value(told: Preprocessing, section: Mapping[str, Any], name: str) -> Any:
    """The value of a section's option, else timm's own."""
    if (value := section.get(name)) is None:
        return TIMM[name]
    if (read := option_value(name, str(value))) is None:
        told.doubts.append(f"{name} {value!r:.50}; {TIMM[name]} is taken")
    return TIMM[name] if read is None else read


def _shape(size: Any) -> list[int] | None:
    """`size`, if it is a (channels, height, width) that images may have."""
    if not isinstance(size, list) or len(size) != 3:
        return None
    return size if all(type(part) is int and 0 < part <= MAX_IMAGE for part in size) else None


def _add_statistics(told: Preprocessing, mean: Any, std: Any, names: str) -> None:
    """Put `mean` and `std` into `told`, if they are sensible."""
    if mean is None and std is None:
        return
    if _numbers(mean) and _numbers(std) and len(mean) == len(std) and min(std) > 0:
        told.statistics = {"mean": list(mean), "std": list(std)}
    else:
        told.doubts.append(f"{names} {mean!r:.50} and {std!r:.50}")


def _numbers(values: Any) -> bool:
    return (
        isinstance(values, list)
        and bool(values)
        and all(type(value) in (int, float) and abs(value) <= LARGEST for value in values)
    )


# --- transformers' preprocessor_config.json -------------------------------------------------------


def _of_transformers(processor: Mapping[str, Any]) -> Preprocessing:
    told = Preprocessing()
    if "image_mean" not in processor and "size" not in processor:
        return told
    if _is_off(processor, "do_normalize") or not _is_usual_scale(processor):
        told.doubts.append("a preprocessor_config.json with a normalization of its own")
    else:
        _add_statistics(
            told, processor.get("image_mean"), processor.get("image_std"), "image_mean and std"
        )
    resizing = None if _is_off(processor, "do_resize") else _processed(processor)
    if resizing is None:
        told.doubts.append("a preprocessor_config.json that resizes in a way of its own")
        return told
    told.resizing = resizing
    told.image_shape = [len(told.statistics.get("mean", "RGB")), *[resizing["image_size"]] * 2]
    return told


def _is_off(processor: Mapping[str, Any], step: str) -> bool:
    return processor.get(step, True) is not True


def _is_usual_scale(processor: Mapping[str, Any]) -> bool:
    """Whether pixels are divided by 255 before they are normalized, and nothing else."""
    factor = processor.get("rescale_factor", 1 / 255)
    usual = isinstance(factor, float) and math.isclose(factor, 1 / 255, rel_tol=1e-6)
    return usual and not _is_off(processor, "do_rescale") and not processor.get("rescale_offset")


def _processed(processor: Mapping[str, Any]) -> dict[str, Any] | None:
    """The options of a data set that do what a processor does; None if none do."""
    number = processor.get("resample", 2)
    if type(number) is not int or not 0 <= number < len(FILTERS):
        return None
    geometry = _geometry(processor)
    return geometry and {**geometry, "interpolation": FILTERS[number]}


def _geometry(processor: Mapping[str, Any]) -> dict[str, Any] | None:
    size, share = processor.get("size"), processor.get("crop_pct")
    crops = processor.get("do_center_crop") is True
    shorter = size.get("shortest_edge") if isinstance(size, dict) else None
    # A single number is the shorter side of what is cropped, else both sides.
    keeps_proportions = shorter is not None or (crops and not isinstance(size, dict))
    scale = _side(size if shorter is None else shorter)
    middle = _side(processor.get("crop_size")) if crops else scale
    if not scale or not middle or middle > scale:
        return None
    if share is not None:  # ConvNeXt
        center = scale < 384
        return _resized("center", scale, share) if center else _resized("squash", scale, 1.0)
    if keeps_proportions and not crops:
        return None
    return _resized("center" if keeps_proportions else "squash", middle, _share(middle, scale))


def _side(size: Any) -> int | None:
    """The side of a square that has `size`, if that is one."""
    if isinstance(size, dict):
        size = size.get("height") if size.get("height") == size.get("width") else None
    return size if type(size) is int and 0 < size <= MAX_IMAGE else None


def _resized(crop_mode: str, size: int, share: Any) -> dict[str, Any] | None:
    crop_pct = option_value("crop_pct", str(share))
    return crop_pct and {"image_size": size, "crop_pct": crop_pct, "crop_mode": crop_mode}


def _share(size: int, scale: int) -> float:
    """The `crop_pct` with which images are resized to exactly `scale` before the crop to `size`.

    >>> _share(224, 256), _share(224, 225)
    (0.875, 0.9955555555555555)
    """
    share = size / scale
    return share if math.floor(size / share) == scale else math.nextafter(share, 0)
