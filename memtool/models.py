"""Model specs: text or JSON that says how to build a model, and the building.

A spec is a name and options, as in `resnet18?width=16&num_classes=10`. The name says where the
architecture comes from: `digits-cnn` (ours), `torchvision:resnet50`, `timm:vit_tiny_patch16_224`,
`FILE.py:FACTORY` (the user's own), or `FILE.json`, which holds what `ModelSpec.json` gives. A
stitched model has no text form: its spec lives in its checkpoint's metadata, as JSON that holds the
specs of both parts.
"""

import hashlib
import inspect
import json
import math
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

from memtool import MemtoolError

if TYPE_CHECKING:
    from torch import nn

    Factory = Callable[..., nn.Module]

STITCHED = "stitched"
# What these builders would download or unpickle: memtool reads weights from safetensors alone.
NOT_OPTIONS = {
    "weights",
    "progress",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
}


@dataclass(frozen=True)
class ModelSpec:
    """The name of an architecture and the options it is built with.

    A `FILE.py:FACTORY` also has the file's `sha256`, and is `trusted` if the user typed it: a
    spec found in a file's metadata is not, and runs no code.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None
    trusted: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        if self.name == STITCHED:
            front, back = self.parts
            cut = f"{self.options['front_layer']}={self.options['back_layer']}"
            return f"{STITCHED}({front}, {back}, {cut})"
        options = "&".join(f"{key}={_text(value)}" for key, value in sorted(self.options.items()))
        return f"{self.name}?{options}" if options else self.name

    @property
    def parts(self) -> "tuple[ModelSpec, ModelSpec]":
        """The specs of a stitched model's front and back, trusted as it is itself."""
        front, back = (ModelSpec.from_json(self.options[part]) for part in ("front", "back"))
        return replace(front, trusted=self.trusted), replace(back, trusted=self.trusted)

    def json(self) -> dict[str, Any]:
        digest = {"sha256": self.sha256} if self.sha256 else {}
        return {"name": self.name, "options": dict(self.options), **digest}

    @staticmethod
    def from_json(value: Any) -> "ModelSpec":
        """Raises MemtoolError if `value` is not what `json` gives."""
        match value:
            case {"name": str(name), "options": dict(options), **rest}:
                digest = rest.pop("sha256", None)
                if not rest and isinstance(digest, str | None):
                    spec = ModelSpec(name, options, digest)
                    if name == STITCHED:
                        _check_stitched(spec)
                    return spec
        raise MemtoolError(f"not a model spec: {value!r:.80}")


def _check_stitched(spec: ModelSpec) -> None:
    match spec.options:
        case {
            "front": dict(),
            "back": dict(),
            "front_layer": str(),
            "back_layer": str(),
            "stitching": dict(),
        }:
            assert spec.parts
        case _:
            raise MemtoolError(f"not the spec of a stitched model: {dict(spec.options)!r:.80}")


def _text(value: Any) -> str:
    """An option's value as `parse` reads it."""
    return quote(
        value if isinstance(value, str) else json.dumps(value, separators=(",", ":")), safe="/:,[]"
    )


def _value(text: str) -> Any:
    """`3`, `0.5`, `true`, `[1,2]` as what JSON makes of them; anything else is a string."""
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text


def parse(text: str) -> ModelSpec:
    """`NAME?key=value&...` as a spec; raises MemtoolError for a name or an option not known.

    Whoever calls this has it from the user: a `FILE.py:FACTORY` in it may run.
    """
    name, _, query = text.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise MemtoolError(f"model {text!r}: options go as NAME?key=value&key=value") from error
    options = {key: _value(value) for key, value in pairs}
    if name.endswith(".json"):
        spec = _from_file(Path(name))
        spec = replace(spec, options={**spec.options, **options})
    else:
        spec = ModelSpec(name, options, trusted=True)
        if code := _code_file(name):
            spec = replace(spec, sha256=hashlib.sha256(_source(code)).hexdigest())
    _check_options(spec)
    return spec


def _from_file(path: Path) -> ModelSpec:
    try:
        return ModelSpec.from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise MemtoolError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError, MemtoolError) as error:
        raise MemtoolError(
            f'{path}: not a model spec, such as {{"name": "resnet18", "options": {{"width": 16}}}}'
        ) from error


# --- Sources of architectures ---------------------------------------------------------------------


def ours() -> "dict[str, Factory]":
    from memtool import nets

    return {
        "digits-cnn": nets.digits_cnn,
        "cnn": nets.cnn,
        "resnet18": nets.resnet18,
        "resnet34": nets.resnet34,
        "resnet50": nets.resnet50,
    }


def torchvision_names() -> list[str]:
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def _timm_names() -> list[str]:
    return list(_timm().list_models())


def _timm() -> Any:
    if not find_spec("timm"):
        raise MemtoolError("timm is not installed (python -m pip install 'memtool[timm]')")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm
    return timm


def _code_file(name: str) -> Path | None:
    """The file of `FILE.py:FACTORY`; None for any other name."""
    path, colon, _ = name.rpartition(":")
    return Path(path) if colon and path.endswith(".py") else None


def _source(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MemtoolError(f"{path}: cannot be read ({error.strerror})") from error


def _factory(spec: ModelSpec) -> "Factory":
    """What builds the model, by where its name says that it comes from. Raises MemtoolError."""
    source, _, name = spec.name.rpartition(":")
    if _code_file(spec.name):
        return _own_factory(spec)
    if not source and name in ours():
        return ours()[name]
    if source == "torchvision" and name in torchvision_names():
        import torchvision

        builder: Factory = torchvision.models.get_model_builder(name)
        return builder
    # A tag such as .a1_in1k names weights, which come from elsewhere.
    if source == "timm" and (bare := name.partition(".")[0]) in _timm_names():
        entry: Factory = _timm().models.model_entrypoint(bare)
        return entry
    raise MemtoolError(_unknown(spec.name))


def _unknown(name: str) -> str:
    """What to say of a name that no source has: the nearest ones, and where was looked."""
    known = {bare: bare for bare in ours()}
    known |= {f"torchvision:{bare}": bare for bare in torchvision_names()}
    if find_spec("timm"):
        known |= {f"timm:{bare}": bare for bare in _timm_names()}
        timm = "timm:NAME"
    else:
        timm = "not in timm, which is not installed (python -m pip install 'memtool[timm]')"
    bare = name.rpartition(":")[2]
    nearest = (
        [full for full, its in known.items() if its == bare]
        or [full for full in known if full.startswith(name)]
        or get_close_matches(name, known)
        or [full for full, its in known.items() if its.startswith(bare)]
    )[:3]
    hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
    places = f"{', '.join(ours())}, torchvision:NAME, FILE.py:FACTORY, FILE.json, {timm}"
    return f"unknown model {name!r}{hint} (looked in: {places})"


def _own_factory(spec: ModelSpec) -> "Factory":
    """The function that a trusted `FILE.py:FACTORY` names, from the very bytes that were hashed."""
    path = _code_file(spec.name)
    assert path
    if not spec.trusted:
        raise MemtoolError(
            f"model {spec.name!r} is code, and stands in the file's metadata; if you trust it, "
            f"pass --trust, or type it: --model {spec.name}"
        )
    source = _source(path)
    if hashlib.sha256(source).hexdigest() != spec.sha256:
        raise MemtoolError(
            f"{path}: is not the file that model {spec.name!r} was recorded with (its SHA-256 "
            f"differs); bring that back, or type what is to run: --model {spec.name}"
        )
    wanted = spec.name.rpartition(":")[2]
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        exec(compile(source, path, "exec"), namespace)
    except Exception as error:
        raise MemtoolError(f"{path}: cannot be run ({one_line(error)})") from error
    if not callable(factory := namespace.get(wanted)):
        callables = [key for key, value in namespace.items() if inspect.isfunction(value)]
        nearest = get_close_matches(wanted, callables, n=3) or callables[:3]
        raise MemtoolError(
            f"{path}: has no function {wanted!r}; it has: {', '.join(nearest) or 'none'}"
        )
    return typing.cast("Factory", factory)


def accepted(spec: ModelSpec) -> list[str] | None:
    """The options that a model may be built with; None if its factory takes any.

    torchvision's and timm's builders pass theirs on to the class that they say they return.
    """
    factory = _factory(spec)
    parameters = dict(inspect.signature(factory).parameters)
    names = [key for key, value in parameters.items() if value.kind is not value.VAR_KEYWORD]
    if len(names) == len(parameters):
        return names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        returned = _returned(factory)
    if returned is None:
        return None
    names += [
        key
        for key, value in inspect.signature(returned).parameters.items()
        if key not in names and value.kind in (value.POSITIONAL_OR_KEYWORD, value.KEYWORD_ONLY)
    ]
    return names


def _returned(factory: "Factory") -> Any:
    try:
        returned = typing.get_type_hints(factory).get("return")
    except (NameError, TypeError):
        return None
    return returned if inspect.isclass(returned) else None


def _check_options(spec: ModelSpec) -> None:
    """Raise MemtoolError unless the factory takes each option of `spec`."""
    names = accepted(spec)
    library = spec.name.startswith(("torchvision:", "timm:"))
    for option in spec.options:
        if library and option in NOT_OPTIONS:
            raise MemtoolError(
                f"model {spec.name!r}: {option!r} is no option here; weights come from a file "
                "(memtool convert makes one)"
            )
        if names is not None and option not in names:
            told = [name for name in names if not (library and name in NOT_OPTIONS)]
            raise MemtoolError(
                f"model {spec.name!r} has no option {option!r} (it has: {', '.join(told)})"
            )


def image_shape(spec: ModelSpec) -> "tuple[int, int, int]":
    """(channels, height, width) of the images that a model is meant for, as far as its spec or its
    library says; else (3, 224, 224)."""
    if spec.name == STITCHED:
        return image_shape(spec.parts[0])
    source, _, name = spec.name.rpartition(":")
    known = dict(spec.options)
    known |= {key: value for key, value in _defaults(spec).items() if key not in known}
    channels = known.get("channels", known.get("in_chans", 3))
    size = known.get("image_size", known.get("img_size", 32 if name in ours() else 224))
    if source == "torchvision" and not {"image_size", "input_size"} & spec.options.keys():
        size = _trained_size(name)
    if source == "timm" and "img_size" not in spec.options:
        config = _timm().models.get_pretrained_cfg(name)
        size = config.input_size[-1] if config else size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    return channels, height, width


def _defaults(spec: ModelSpec) -> dict[str, Any]:
    parameters = inspect.signature(_factory(spec)).parameters.items()
    return {key: value.default for key, value in parameters if value.default is not value.empty}


def _trained_size(name: str) -> int:
    """The size of the images that torchvision's own weights of a model were trained for."""
    import torchvision

    weights = list(torchvision.models.get_model_weights(name))
    return int(weights[-1].transforms.keywords["crop_size"]) if weights else 224


def fitted(spec: ModelSpec, image_shape: tuple[int, int, int], classes: int) -> ModelSpec:
    """`spec` with the options that the data set settles, as far as its factory takes them.

    Raises MemtoolError for images that are not square, or not RGB, where the model needs it.
    """
    channels, height, width = image_shape
    names = accepted(spec) or []
    sizes = {"image_size": height, "img_size": height, "input_size": [height, width]}
    if height != width and {"image_size", "img_size"} & set(names):
        raise MemtoolError(f"model {spec.name!r} takes square images, these are {width}x{height}")
    if channels != 3 and spec.name.startswith("torchvision:"):
        raise MemtoolError(
            f"model {spec.name!r} takes images of 3 channels, these have {channels}; one of ours "
            f"takes any ({', '.join(ours())})"
        )
    # timm's resnets have `channels` of their own: those of the stages.
    depth = "in_chans" if "in_chans" in names else "channels"
    settled = {"num_classes": classes, depth: channels, **sizes}
    known = {key: value for key, value in settled.items() if key in names}
    return replace(spec, options={**known, **spec.options})


# --- Building -------------------------------------------------------------------------------------


def build(spec: ModelSpec) -> "nn.Module":
    """The model, with fresh weights from torch's global generator. Raises MemtoolError."""
    try:
        if spec.name == STITCHED:
            from memtool.stitch import StitchedModel

            return StitchedModel.build(spec)
        _check_options(spec)
        return _built(spec)
    except MemtoolError:
        raise
    except Exception as error:  # whatever a factory makes of its options
        raise MemtoolError(f"model {str(spec)!r} cannot be built: {one_line(error)}") from error


def _built(spec: ModelSpec) -> "nn.Module":
    from torch import nn

    options = dict(spec.options)
    if spec.name in ("torchvision:googlenet", "torchvision:inception_v3"):
        options.setdefault("init_weights", True)  # or they warn that the default may change
    model = _factory(spec)(**options)
    if not isinstance(model, nn.Module):
        raise MemtoolError(
            f"model {spec.name!r}: gives a {type(model).__name__}, not a torch.nn.Module"
        )
    return model


def one_line(error: BaseException) -> str:
    """An error of someone else's code: its type and the beginning of what it says."""
    text = str(error).strip().partition("\n")[0][:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Refused(MemtoolError):
    """What `admit` raises to stop the building of a skeleton."""


Shape = tuple[int, ...]


def at_most(spec: ModelSpec, shapes: Mapping[str, Shape]) -> Callable[[Shape], None]:
    """An `admit` for the model of a file that holds tensors of these shapes: it stops a model with
    more than twice as many parameters, or elements in them (and some more: a factory may replace
    what it has built).

    A spec that the user typed may be of any size. Raises Refused at once if another one has a
    number beyond the count of elements: a factory might make a list of as many.
    """
    if spec.trusted:
        return lambda shape: None
    tensors = 2 * len(shapes) + 1000
    elements = 2 * sum(map(math.prod, shapes.values())) + 10_000_000
    for number in _numbers(dict(spec.options)):
        if not abs(number) <= elements:
            raise Refused(f"model {str(spec)!r:.200} is far larger than what it holds")

    def admit(shape: Shape) -> None:
        nonlocal tensors, elements
        tensors -= 1
        elements -= math.prod(shape)
        if tensors < 0 or elements < 0:
            raise Refused(f"model {str(spec)!r:.200} is far larger than what it holds")

    return admit


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)


def skeleton(spec: ModelSpec, admit: Callable[[Shape], None] = lambda shape: None) -> "nn.Module":
    """The model without weights: its parameters on the meta device, its buffers as they are.

    Takes next to no memory and time: `admit` gets the shape of each parameter before that has cost
    anything, and may raise Refused. The few models that look at their parameters while they are
    built get real ones.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        try:
            with _watched_parameters(admit, to_meta=True):
                return build(spec)
        except Refused:
            raise
        except MemtoolError:
            with _watched_parameters(admit, to_meta=False):
                return build(spec)


@contextmanager
def _watched_parameters(admit: Callable[[Shape], None], to_meta: bool) -> Iterator[None]:
    """Within the block each parameter is shown to `admit`, and moved to the meta device, as a
    module takes it: before it has been filled, so that even a huge one has not cost any memory.

    Better than torch.device("meta") around the block: buffers, and what a model computes while it
    is built (regnet its widths, swin its position indices), keep their values.
    """
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook

    def see(module: Any, name: str, parameter: Any) -> Any:
        if parameter is None:
            return None
        admit(tuple(parameter.shape))
        if parameter.is_meta or not to_meta:
            return None
        return torch.nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(see)
    try:
        yield
    finally:
        handle.remove()
