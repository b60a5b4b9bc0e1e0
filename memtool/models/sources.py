"""Where architectures come from: our own networks, torchvision, timm, or a factory of the user's.

Every source gives a factory, a function from options to a torch module, whose signature tells which
options the model has. Nothing is built here.
"""

import hashlib
import inspect
import re
import shlex
import sys
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from memtool import MemtoolError
from memtool.errors import Stopped, one_line, shortened
from memtool.models.spec import ModelSpec, code_file, source_of

if TYPE_CHECKING:
    from torch import nn

    Factory = Callable[..., nn.Module]

# Our own networks: the name in a spec, and the function in memtool.models.nets that builds it.
OURS = {
    "digits-cnn": "digits_cnn",
    "cnn": "cnn",
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
}
# Options by which the builders of torchvision and timm would download or unpickle something:
# memtool reads weights from safetensors files only.
NOT_OPTIONS = {
    "weights",
    "progress",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
}


def torchvision_names() -> list[str]:
    """The names of torchvision's classifiers."""
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


def factory_of(spec: ModelSpec) -> "Factory":
    """The function that builds the model, from the source that the spec's name tells.

    Raises MemtoolError for a name that no source has, and for code that is not trusted.
    """
    source, _, name = spec.name.rpartition(":")
    if code_file(spec.name):
        return _user_factory(spec)
    if spec.name in OURS:
        from memtool.models import nets

        ours: Factory = getattr(nets, OURS[spec.name])
        return ours
    if source == "torchvision" and name in torchvision_names():
        import torchvision

        builder: Factory = torchvision.models.get_model_builder(name)
        return builder
    # A tag such as .a1_in1k names weights, which memtool takes from a file instead.
    if source == "timm" and (bare := name.partition(".")[0]) in _timm_names():
        entry: Factory = _timm().models.model_entrypoint(bare)
        return entry
    if spec.name.endswith(".py"):
        raise MemtoolError(f"model {spec.name!r}: name its function, too: {spec.name}:FACTORY")
    raise MemtoolError(_unknown(spec.name))


def _unknown(name: str) -> str:
    """The error message for a name that no source has, with the nearest names and the sources."""
    known = {bare: bare for bare in OURS}
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
    places = f"{', '.join(OURS)}, torchvision:NAME, FILE.py:FACTORY, FILE.json, {timm}"
    return f"unknown model {name!r}{hint} (looked in: {places})"


def _user_factory(spec: ModelSpec) -> "Factory":
    """The function that a trusted `FILE.py:FACTORY` names, from the very bytes that were hashed."""
    path = code_file(spec.name)
    assert path
    if not spec.trusted:
        raise MemtoolError(
            f"model {spec.name!r} is code, and stands in the file's metadata; if you trust it, "
            f"pass --trust, or type it: --model {spec.name}"
        )
    source = source_of(path)
    if hashlib.sha256(source).hexdigest() != spec.sha256:
        raise MemtoolError(
            f"{path}: is not the file that model {spec.name!r} was recorded with (its SHA-256 "
            f"differs); bring that back, or type what is to run: --model {spec.name}"
        )
    return _function_in(path, source, spec.name.rpartition(":")[2])


def _function_in(path: Path, source: bytes, wanted: str) -> "Factory":
    """Run the `source` of a file of code, and return the function of that name."""
    # A module of its own, under a name that no other has: dataclasses look theirs up, say.
    digest = hashlib.sha256(bytes(path.absolute()) + source).hexdigest()
    module = ModuleType(re.sub(r"\W", "_", f"{path.stem}_{digest[:16]}"))
    module.__file__, module.__package__ = str(path), ""  # part of none
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, path, "exec"), vars(module))
    except Stopped:
        raise
    except (Exception, SystemExit) as error:
        hint = _hint(path, error)
        raise MemtoolError(f"{path}: cannot be run ({one_line(error)}){hint}") from error
    namespace = vars(module)
    if not callable(factory := namespace.get(wanted)):
        callables = [
            key
            for key, value in namespace.items()
            if inspect.isfunction(value)
            or inspect.isclass(value)
            and value.__module__ == module.__name__
        ]
        nearest = get_close_matches(wanted, callables, n=3) or callables[:3]
        raise MemtoolError(
            f"{path}: has no function or class {wanted!r}; it has: {', '.join(nearest) or 'none'}"
        )
    from torch import nn

    if isinstance(factory, nn.Module):
        raise MemtoolError(
            f"{path}: {wanted!r} is a network, not a function or class that makes one; name one "
            "that does"
        )
    return typing.cast("Factory", factory)


def _hint(path: Path, error: BaseException) -> str:
    """What helps where code is a script, or a part of a package, or needs a module that lies in a
    folder around it."""
    if isinstance(error, SystemExit):
        return '; what it does as a script belongs below if __name__ == "__main__":'
    if isinstance(error, ImportError) and "relative import" in str(error):
        return "; the file is run by itself, as no part of a package: import by whole names"
    name = (getattr(error, "name", None) or "").partition(".")[0]
    if name and isinstance(error, ModuleNotFoundError):
        for folder in path.absolute().parents:
            if (folder / f"{name}.py").exists() or (folder / name).is_dir():
                return f"; it is found with PYTHONPATH={shlex.quote(str(folder))}"
    return ""


def accepted_options(spec: ModelSpec) -> list[str] | None:
    """The names of the options that a model may be built with; None if its factory takes any.

    The builders of torchvision and timm pass theirs on to the class that they are annotated to
    return, or that they return. Raises MemtoolError as `factory_of` does.

    >>> accepted_options(ModelSpec("resnet18"))
    ['num_classes', 'channels', 'width']
    """
    factory = factory_of(spec)
    parameters = dict(inspect.signature(factory).parameters)
    names = [key for key, value in parameters.items() if value.kind is not value.VAR_KEYWORD]
    if len(names) == len(parameters):
        return names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        returned = _returned_class(factory)
        if returned is None and spec.name.startswith("timm:"):
            returned = _built_class(factory)
    if returned is None:
        return None
    return list(dict.fromkeys([*names, *_parameters_of(returned)]))


def _parameters_of(model: type) -> Iterator[str]:
    """The names of what a class is made with: what its `__init__` takes and, as long as it passes
    others on, those of its bases."""
    for base in model.__mro__:
        if initialize := vars(base).get("__init__"):
            _, *parameters = inspect.signature(initialize).parameters.values()
            for one in parameters:
                if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
                    yield one.name
            if not any(one.kind is one.VAR_KEYWORD for one in parameters):
                return


@cache
def _built_class(factory: "Factory") -> Any:
    """The class of what a factory returns, without weights; None if it fails."""
    import torch

    try:
        with torch.device("meta"):
            return type(factory())
    except Exception:  # whatever a model raises that needs real tensors
        return None


def _returned_class(factory: "Factory") -> Any:
    """The class that a factory is annotated to return; None if there is none."""
    try:
        returned = typing.get_type_hints(factory).get("return")
    except (NameError, TypeError):
        return None
    return returned if inspect.isclass(returned) else None


def check_options(spec: ModelSpec) -> None:
    """Raise MemtoolError unless the model has each option of `spec`."""
    names = accepted_options(spec)
    for option in spec.options:
        if spec.is_of_library and option in NOT_OPTIONS:
            raise MemtoolError(
                f"model {spec.name!r}: {option!r} is no option here; weights come from a file "
                "(memtool convert makes one)"
            )
        if names is not None and option not in names:
            listed = [name for name in names if not (spec.is_of_library and name in NOT_OPTIONS)]
            raise MemtoolError(
                f"model {spec.name!r} has no option {option!r} (it has: {', '.join(listed)})"
            )


def image_shape(spec: ModelSpec) -> tuple[int, int, int]:
    """(channels, height, width) of the images that a model is meant for.

    That is what its options say, else the defaults of its factory, else the images that the
    library's own weights were trained on; 3 channels and 224x224 where nothing says otherwise.

    >>> image_shape(ModelSpec("cnn", {"channels": 1}))
    (1, 32, 32)

    Raises MemtoolError if its options are not those of images.
    """
    if spec.is_stitched:
        return image_shape(spec.parts[0])
    source, _, name = spec.name.rpartition(":")
    known = dict(spec.options)
    known |= {key: value for key, value in _defaults(spec).items() if key not in known}
    channels = known.get("channels", known.get("in_chans", 3))
    size = known.get("image_size", known.get("img_size", 32 if spec.name in OURS else 224))
    if source == "torchvision" and not {"image_size", "input_size"} & spec.options.keys():
        size = _trained_size(name)
    if source == "timm" and "img_size" not in spec.options:
        config = _timm().models.get_pretrained_cfg(name)
        size = config.input_size[-1] if config else size
    match [channels, *(size if isinstance(size, tuple | list) else (size, size))]:
        case [int(channels), int(height), int(width)] if min(channels, height, width) > 0:
            return channels, height, width
    raise MemtoolError(
        f"model {shortened(spec.name)}: takes no images of {shortened(channels)} channels and size "
        f"{shortened(size)}"
    )


def _defaults(spec: ModelSpec) -> dict[str, Any]:
    """The options of a model that have a default value, with that value."""
    parameters = inspect.signature(factory_of(spec)).parameters.items()
    return {key: value.default for key, value in parameters if value.default is not value.empty}


def _trained_size(name: str) -> int:
    """The size of the images that torchvision's newest weights of a model were trained on."""
    import torchvision

    weights = list(torchvision.models.get_model_weights(name))
    return int(weights[-1].transforms.keywords["crop_size"]) if weights else 224


def channels_option(names: Sequence[str]) -> str:
    """Which of a model's options is the number of channels of its images.

    timm's resnets have `channels` too, but those are the channels of their stages.
    """
    return "in_chans" if "in_chans" in names else "channels"


def complete_for_dataset(spec: ModelSpec, image_shape: tuple[int, ...], classes: int) -> ModelSpec:
    """`spec` with the options that a data set determines, where it does not give them itself and
    the model has them: the number of classes, and the channels and the size of the images.

    `image_shape` is (channels, height, width), or (features,) of vectors, for which a factory may
    have the option `in_features`. Raises MemtoolError for images that are not square, or do not
    have three channels, where the model needs that, and for vectors where it takes images.

    >>> str(complete_for_dataset(ModelSpec("resnet18", {"width": 16}), (1, 8, 8), 10))
    'resnet18?channels=1&num_classes=10&width=16'
    """
    names = accepted_options(spec) or []
    if len(image_shape) == 1:
        return _complete_for_vectors(spec, names, image_shape[0], classes)
    channels, height, width = image_shape
    sizes = {"image_size": height, "img_size": height, "input_size": [height, width]}
    if height != width and {"image_size", "img_size"} & set(names):
        raise MemtoolError(f"model {spec.name!r} takes square images, these are {width}x{height}")
    if channels != 3 and spec.name.startswith("torchvision:"):
        raise MemtoolError(
            f"model {spec.name!r} takes images of 3 channels, these have {channels}; repeat the "
            f"gray one (--data '...?channels=3'), or take one of ours ({', '.join(OURS)})"
        )
    determined = {"num_classes": classes, channels_option(names): channels, **sizes}
    known = {key: value for key, value in determined.items() if key in names}
    return replace(spec, options={**known, **spec.options})


def _complete_for_vectors(
    spec: ModelSpec, names: Sequence[str], features: int, classes: int
) -> ModelSpec:
    if spec.name in OURS or spec.is_of_library:
        raise MemtoolError(
            f"model {spec.name!r} takes images, the data set has vectors of {features} numbers; "
            "name a network on vectors (FILE.py:FACTORY), or save images as (n, channels, height, "
            "width)"
        )
    determined = {"num_classes": classes, "in_features": features}
    known = {key: value for key, value in determined.items() if key in names}
    return replace(spec, options={**known, **spec.options})


def parse(text: str) -> ModelSpec:
    """The spec that `NAME?key=value&...` stands for, checked against its source.

    `text` must come from the user, since it is trusted: a `FILE.py` that it names is run. Raises
    MemtoolError for an unknown name and for an option that the model does not have.

    >>> parse("resnet18?width=16")
    ModelSpec(name='resnet18', options={'width': 16}, sha256=None, trusted=True)
    """
    spec = ModelSpec.parse(text)
    check_options(spec)
    return spec
