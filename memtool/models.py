"""Model specs: text or JSON that says how to build a model, and the building.

`digits-cnn`, with options as in `digits-cnn?num_classes=10&channels=3`. A stitched model has no
text form: its spec lives in its checkpoint's metadata, as JSON that holds the specs of both parts.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from memtool import MemtoolError

if TYPE_CHECKING:
    from torch import nn

STITCHED = "stitched"


@dataclass(frozen=True)
class ModelSpec:
    """The name of an architecture and the options it is built with."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.name == STITCHED:
            front, back = (ModelSpec.from_json(self.options[part]) for part in ("front", "back"))
            cut = f"{self.options['front_layer']}={self.options['back_layer']}"
            return f"{STITCHED}({front}, {back}, {cut})"
        options = "&".join(f"{key}={value}" for key, value in sorted(self.options.items()))
        return f"{self.name}?{options}" if options else self.name

    def json(self) -> dict[str, Any]:
        return {"name": self.name, "options": dict(self.options)}

    @staticmethod
    def from_json(value: Any) -> "ModelSpec":
        """Raises MemtoolError if `value` is not what `json` gives."""
        match value:
            case {"name": str(name), "options": dict(options), **rest} if not rest:
                return ModelSpec(name, options)
        raise MemtoolError(f"not a model spec: {value!r:.80}")


def parse(text: str) -> ModelSpec:
    """`NAME?key=value&...` as a spec; raises MemtoolError for a name or an option not known."""
    name, _, query = text.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise MemtoolError(f"model {text!r}: options go as NAME?key=value&key=value") from error
    spec = ModelSpec(name, {key: _value(value) for key, value in pairs})
    _check_options(spec)
    return spec


def _value(text: str) -> int | float | str:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def _factories() -> dict[str, "Callable[..., nn.Module]"]:
    from memtool import nets

    return {"digits-cnn": nets.digits_cnn}


def _factory(name: str) -> "Callable[..., nn.Module]":
    factories = _factories()
    if name not in factories:
        nearest = get_close_matches(name, factories, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise MemtoolError(f"unknown model {name!r}{hint} (known: {', '.join(factories)})")
    return factories[name]


def _check_options(spec: ModelSpec) -> None:
    accepted = list(inspect.signature(_factory(spec.name)).parameters)
    for option in spec.options:
        if option not in accepted:
            raise MemtoolError(
                f"model {spec.name!r} has no option {option!r} (it has: {', '.join(accepted)})"
            )


def fitted(spec: ModelSpec, image_shape: tuple[int, int, int], classes: int) -> ModelSpec:
    """`spec` with the options that the data set settles, as far as its factory takes them."""
    channels, height, width = image_shape
    if height != width and "image_size" in inspect.signature(_factory(spec.name)).parameters:
        raise MemtoolError(f"model {spec.name!r} takes square images, these are {width}x{height}")
    settled = {"num_classes": classes, "channels": channels, "image_size": height}
    accepted = inspect.signature(_factory(spec.name)).parameters
    known = {key: value for key, value in settled.items() if key in accepted}
    return ModelSpec(spec.name, {**known, **spec.options})


def build(spec: ModelSpec) -> "nn.Module":
    """The model, with fresh weights from torch's global generator. Raises MemtoolError."""
    if spec.name == STITCHED:
        from memtool.stitch import StitchedModel

        return StitchedModel.build(spec.options)
    _check_options(spec)
    try:
        return _factory(spec.name)(**spec.options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MemtoolError(f"model {str(spec)!r} cannot be built: {error}") from error
