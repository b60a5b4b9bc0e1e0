"""Model specs: text or JSON that says how to build a model. Pure data: nothing is built here.

A spec is a name and options, as in `resnet18?width=16&num_classes=10`. The name says where the
architecture comes from: `digits-cnn` (ours), `torchvision:resnet50`, `timm:vit_tiny_patch16_224`,
`FILE.py:FACTORY` (the user's own), or `FILE.json`, which holds what `ModelSpec.json` returns. The
spec of a stitched model has no text form: it is JSON in the metadata of its checkpoint, and
contains the specs of both parts.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from memtool import MemtoolError, specs
from memtool.contents import check_regular, read_json
from memtool.paths import expanded

STITCHED = "stitched"


class Connector(StrEnum):
    """The kinds of maps that a stitching layer can be."""

    auto = "auto"  # conv1x1 for feature maps, linear for vectors and tokens
    conv1x1 = "conv1x1"  # the same affine map of the channels at every position
    linear = "linear"  # an affine map of vectors or of each token; feature maps are flattened
    none = "none"  # the identity: nothing to train


@dataclass(frozen=True)
class ModelSpec:
    """The name of an architecture and the options that it is built with.

    The spec of a `FILE.py:FACTORY` also has the file's `sha256`. A spec that the user typed is
    `trusted`, and its code may run; one that was read from a file's metadata is not.

    >>> spec = ModelSpec("resnet18", {"width": 16, "num_classes": 10})
    >>> str(spec)
    'resnet18?num_classes=10&width=16'
    >>> ModelSpec.from_json(spec.json()) == spec
    True
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None
    trusted: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        if self.is_stitched:
            front, back = self.parts
            cut = f"{self.options['front_layer']}={self.options['back_layer']}"
            return f"{STITCHED}({front}, {back}, {cut})"
        options = {specs.encoded(key): _text(self.options[key]) for key in sorted(self.options)}
        return specs.join(self.name, options)

    @property
    def is_stitched(self) -> bool:
        """Whether it is a stitched model, whose layers are called `front.NAME` and `back.NAME`."""
        return self.name == STITCHED

    @property
    def is_of_library(self) -> bool:
        """Whether it is torchvision's or timm's."""
        return self.name.startswith(("torchvision:", "timm:"))

    @property
    def parts(self) -> "tuple[ModelSpec, ModelSpec]":
        """The specs of the front and the back of a stitched model, as trusted as its own."""
        front, back = (ModelSpec.from_json(self.options[part]) for part in ("front", "back"))
        return replace(front, trusted=self.trusted), replace(back, trusted=self.trusted)

    def json(self) -> dict[str, Any]:
        """The spec as JSON, which does not say whether it is trusted."""
        digest = {"sha256": self.sha256} if self.sha256 else {}
        return {"name": self.name, "options": dict(self.options), **digest}

    @staticmethod
    def from_json(value: Any) -> "ModelSpec":
        """The spec, not trusted, that `json` returned as `value`; raises MemtoolError for any other
        value."""
        match value:
            case {"name": str(name), "options": dict(options), **rest}:
                digest = rest.pop("sha256", None)
                if not rest and isinstance(digest, str | None):
                    spec = ModelSpec(name, options, digest)
                    if name == STITCHED:
                        _check_stitched(spec)
                    return spec
        raise MemtoolError(f"not a model spec: {value!r:.80}")

    @staticmethod
    def parse(text: str) -> "ModelSpec":
        """`NAME?key=value&...` as a spec, trusted since the user typed it; `FILE.json` is read.

        Raises MemtoolError for text of another form, and for files that cannot be read.
        """
        name, texts = specs.parse(text, "model")
        options = {key: _value(value) for key, value in texts.items()}
        if name.endswith(".json"):
            spec = _from_file(expanded(name))
            return replace(spec, options={**spec.options, **options})
        spec = ModelSpec(name, options, trusted=True)
        if code := code_file(name):
            spec = replace(spec, sha256=hashlib.sha256(source_of(code)).hexdigest())
        return spec


def _check_stitched(spec: ModelSpec) -> None:
    """Raise MemtoolError unless these are the options of a stitched model."""
    match spec.options:
        case {
            "front": dict(),
            "back": dict(),
            "front_layer": str(),
            "back_layer": str(),
            "stitching": dict(),
        }:
            for part in ("front", "back"):
                ModelSpec.from_json(spec.options[part])
        case _:
            raise MemtoolError(f"not the spec of a stitched model: {dict(spec.options)!r:.80}")


def _text(value: Any) -> str:
    """The text that `_value` reads as `value`: a string as it is, unless JSON would take it for
    something else, and JSON for everything but strings."""
    plain = isinstance(value, str) and _value(value) == value
    return specs.encoded(value if plain else json.dumps(value, separators=(",", ":")))


def _value(text: str) -> Any:
    """`3`, `0.5`, `true` and `[1,2]` as JSON reads them, True and False as in Python; any text
    that is not JSON is a string."""
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except (ValueError, RecursionError):
        return text


def _from_file(path: Path) -> ModelSpec:
    """The spec in a `FILE.json`."""
    check_regular(path)  # or what it says would be taken for a wrong spec
    try:
        return ModelSpec.from_json(read_json(path))
    except OSError as error:
        raise MemtoolError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, MemtoolError) as error:
        raise MemtoolError(
            f'{path}: not a model spec, such as {{"name": "resnet18", "options": {{"width": 16}}}}'
        ) from error


def code_file(name: str) -> Path | None:
    """The file of `FILE.py:FACTORY`; None for any other name."""
    path, colon, _ = name.rpartition(":")
    return expanded(path) if colon and path.endswith(".py") else None


def source_of(path: Path) -> bytes:
    """The bytes of a file of code. Raises MemtoolError if it cannot be read."""
    check_regular(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise MemtoolError(f"{path}: cannot be read ({error.strerror})") from error
