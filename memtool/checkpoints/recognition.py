"""What the tensors of a file that memtool did not write are: of which model, under which names.

Everything here works on names and shapes, as a file's header gives them: no weights are read.
"""

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from memtool import MemtoolError
from memtool.models import building as models
from memtool.models import sources
from memtool.models.building import Refused, Shape
from memtool.models.spec import ModelSpec

logger = logging.getLogger(__name__)

Shapes = Mapping[str, Shape]

# What training code puts before the name of each tensor: DataParallel, torch.compile, Lightning,
# timm's and others' moving averages. The weights themselves come before averages of them.
WRAPPERS = (
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "network.",
    "ema.",
    "model_ema.",
    "ema_model.",
    "averaged_model.",
)
# What moving averages keep beside the weights.
COUNTERS = {"n_averaged", "initted", "step", "num_updates", "decay"}
# Batch norm counts batches since PyTorch 0.4.1; nothing in eval mode looks at the count.
UNCOUNTED = ".num_batches_tracked"
# Sizes of images to try where the shapes depend on them: those of the usual data sets and models.
IMAGE_SIZES = (
    *(8, 16, 28, 32, 48, 64, 84, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 248, 256, 272),
    *(288, 299, 320, 336, 384, 392, 448, 475, 480, 512, 518, 600),
)
TRIED = {"aux_logits": (False,), "image_size": IMAGE_SIZES, "img_size": IMAGE_SIZES}
MAX_CONFIG = 1_000_000  # bytes


@dataclass(frozen=True)
class Identity:
    """Which model a file holds: its spec, and for each of the model's tensors the name in the file.

    `known_by` says how it is known. `hints` are what is known of the images beyond: `mean`, `std`,
    `image_shape`.
    """

    spec: ModelSpec
    names: Mapping[str, str]
    known_by: str
    hints: Mapping[str, Any] = field(default_factory=dict)


def identify(path: Path, shapes: Shapes, model: ModelSpec | None) -> Identity:
    """What the tensors of `path` are: what `model` says, else what a `config.json` beside it says,
    else what their names and shapes say. Raises MemtoolError if that is nothing, or not one thing.
    """
    if model:
        return _identity(path, model, shapes, "--model")
    config = _config_beside(path)
    if named := _named_by(config):
        found = _identity(path, named, shapes, "config.json", _hints(config))
        logger.info(f"{path}: is {named.name}, says the config.json beside it")
        return found
    return _recognized(path, shapes)


def _identity(
    path: Path,
    spec: ModelSpec,
    shapes: Shapes,
    known_by: str,
    hints: Mapping[str, Any] = {},  # noqa: B006 (never changed)
) -> Identity:
    """Raises MemtoolError if the tensors are not those of `spec`, completed where it can be."""
    try:
        level = _closest(spec, shapes)
        found = {name: shapes[key] for name, key in level.names.items()}
        spec = completed(spec, found)
        wanted = expected(spec, found)
    except MemtoolError as error:
        raise MemtoolError(f"{path}: {error}") from error
    if problems := misfits(wanted, found):
        raise MemtoolError(f"{path}: its tensors do not fit the model {spec}: {problems}")
    level.tell(path)
    return Identity(spec, level.names, known_by, hints)


# --- Names ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Level:
    """The tensors of a file with so many wrappers undone: names in the model to those in the file.

    `undone` are the prefixes, outermost first; `left` are the names of the tensors left aside.
    """

    names: Mapping[str, str]
    undone: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def tell(self, path: Path) -> None:
        """Log what was undone and left aside."""
        if self.undone:
            logger.info(f"{path}: its tensors are wrapped in {'.'.join(self.undone)!r}, undone")
        if self.left:
            logger.info(f"{path}: {len(self.left)} tensors left aside ({_first(self.left)})")


def _levels(names: Sequence[str]) -> Iterator[_Level]:
    """The file as it is, then with ever more wrappers undone."""
    level: _Level | None = _Level({name: name for name in names})
    while level:
        yield level
        level = _unwrapped(level)


def _unwrapped(level: _Level) -> _Level | None:
    """`level` without the prefix that every tensor has; None if there is none.

    Of weights beside their moving average, the weights."""
    weights = {name: key for name, key in level.names.items() if name not in COUNTERS}
    groups: dict[str, dict[str, str]] = {}
    for name, key in weights.items():
        prefix = next((prefix for prefix in WRAPPERS if name.startswith(prefix)), None)
        if prefix is None:
            return None
        groups.setdefault(prefix, {})[name.removeprefix(prefix)] = key
    if not groups:
        return None
    chosen = min(groups, key=WRAPPERS.index)
    kept = set(groups[chosen].values())
    left = tuple(key for key in level.names.values() if key not in kept)
    return _Level(groups[chosen], (*level.undone, chosen.rstrip(".")), level.left + left)


def _first(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])


# --- The model is named ---------------------------------------------------------------------------


def expected(spec: ModelSpec, shapes: Shapes) -> dict[str, Shape]:
    """The shapes of the tensors that the model has, as `at_most` as large as `shapes`."""
    model = models.skeleton(spec, models.at_most(spec, shapes))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def misfits(wanted: Shapes, found: Shapes) -> str:
    """In words, which tensors are missing, left over, or of another shape; empty if none are."""
    problems = {
        "missing": [key for key in wanted if key not in found and not key.endswith(UNCOUNTED)],
        "unexpected": [key for key in found if key not in wanted],
        "of another shape": [
            f"{key} {found[key]} for {wanted[key]}"
            for key in wanted
            if key in found and found[key] != wanted[key]
        ],
    }
    return "; ".join(
        f"{len(keys)} {what} ({_first(keys)})" for what, keys in problems.items() if keys
    )


def _closest(spec: ModelSpec, shapes: Shapes) -> _Level:
    """The tensors with as many wrappers undone as makes most of their names those of the model."""
    wanted = expected(spec, shapes).keys()
    return max(_levels(list(shapes)), key=lambda level: len(wanted & level.names.keys()))


def completed(spec: ModelSpec, shapes: Shapes) -> ModelSpec:
    """`spec` with the options not given that the shapes of a file's tensors tell: how many classes,
    channels of the images, channels of the first stage, how large the images are, and whether
    there are auxiliary classifiers."""
    accepted = sources.accepted(spec) or []
    free = [option for option in accepted if option not in spec.options]
    if _fits(spec, shapes):
        return spec
    depth = "in_chans" if "in_chans" in accepted else "channels"
    for option in ("num_classes", depth, "width"):
        if option in free and (value := _read_off(spec, option, shapes)):
            spec = _with(spec, option, value)
    for option, values in TRIED.items():
        if option in free and not _fits(spec, shapes):
            tried = (_with(spec, option, value) for value in values)
            spec = next((other for other in tried if _fits(other, shapes)), spec)
    return spec


def _with(spec: ModelSpec, option: str, value: Any) -> ModelSpec:
    return replace(spec, options={**spec.options, option: value})


def _fits(spec: ModelSpec, shapes: Shapes) -> bool:
    try:
        return not misfits(expected(spec, shapes), shapes)
    except MemtoolError:
        return False


def _read_off(spec: ModelSpec, option: str, shapes: Shapes) -> int | None:
    """The value of an option that is the size of some tensor in some dimension: it is found by
    building the model with two values."""
    values = (11, 13)
    try:
        one, two = (
            {
                name: tuple(tensor.shape)
                for name, tensor in models.skeleton(_with(spec, option, value)).state_dict().items()
            }
            for value in values
        )
    except MemtoolError:
        return None
    for name, found in shapes.items():
        sizes = zip(one.get(name, ()), two.get(name, ()), found, strict=False)
        for *built, size in sizes:
            if tuple(built) == values and len(found) == len(one[name]):
                return size
    return None


# --- A config.json beside the file ----------------------------------------------------------------


def _config_beside(path: Path) -> dict[str, Any]:
    """What is in the `config.json` of a Hugging Face model; empty if there is none to be read."""
    file = path.with_name("config.json")
    try:
        if file.stat().st_size > MAX_CONFIG:
            return {}
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _named_by(config: Mapping[str, Any]) -> ModelSpec | None:
    """The timm model that a `config.json` names, not trusted any more than the file itself."""
    match config:
        case {"architecture": str(name)}:
            options = config.get("model_args")
            options = dict(options) if isinstance(options, dict) else {}
            if isinstance(classes := config.get("num_classes"), int):
                options.setdefault("num_classes", classes)
            return ModelSpec(f"timm:{name}", options)
    return None


def _hints(config: Mapping[str, Any]) -> dict[str, Any]:
    """mean, std and image_shape, where a `config.json` gives them."""
    about = config.get("pretrained_cfg")
    about = about if isinstance(about, dict) else config
    hints: dict[str, Any] = {}
    match about.get("mean"), about.get("std"):
        case [list(mean), list(std)] if len(mean) == len(std) and _positive(std) and _finite(mean):
            hints |= {"mean": mean, "std": std}
    match about.get("input_size"):
        case [int(), int(), int()] as size if all(0 < part <= 10_000 for part in size):
            hints["image_shape"] = size
    return hints


def _finite(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _positive(values: Sequence[Any]) -> bool:
    return _finite(values) and all(value > 0 for value in values)


# --- Names and shapes alone -----------------------------------------------------------------------


def _recognized(path: Path, shapes: Shapes) -> Identity:
    for level in _levels(list(shapes)):
        plain = {name: shapes[key] for name, key in level.names.items()}
        specs = matching(tuple(plain.items()))
        if len(specs) > 1:
            raise MemtoolError(
                f"{path}: its tensors are those of several models; say which: "
                f"{' or '.join(f'--model {str(spec)!r}' for spec in specs)}"
            )
        if specs:
            level.tell(path)
            logger.info(f"{path}: is {specs[0]}, going by the names and shapes of its tensors")
            _tell_doubt(path, specs[0])
            return Identity(specs[0], level.names, "tensors")
    raise MemtoolError(
        f"{path}: memtool did not write it, and its {len(shapes)} tensors "
        f"({_first(list(shapes))}) are those of no model of ours or of torchvision; "
        "say what it holds: --model SPEC, as in --model timm:resnet18"
    )


def _tell_doubt(path: Path, spec: ModelSpec) -> None:
    if spec.name in ("torchvision:googlenet", "torchvision:inception_v3"):
        logger.info(
            f"{path}: taken without transform_input, which tensors do not tell; weights that "
            f"torchvision gives need --model {spec.name}?transform_input=true"
        )


@lru_cache(maxsize=16)
def matching(shapes: tuple[tuple[str, Shape], ...]) -> list[ModelSpec]:
    """Our models and torchvision's that have exactly these tensors.

    Most are given up at their first parameter, so all eighty take a fraction of a second.
    """
    found = dict(shapes)
    specs = []
    for spec in _known():
        try:
            model = models.skeleton(spec, _among(spec, found))
        except MemtoolError:
            continue
        if _same_names(model.state_dict(), found):
            spec = completed(spec, found)
            specs += [spec] if _fits(spec, found) else []
    return specs


def _known() -> list[ModelSpec]:
    library = [f"torchvision:{name}" for name in sources.torchvision_names()]
    headless = [
        ModelSpec(name, {"aux_logits": False})
        for name in library
        if "aux_logits" in (sources.accepted(ModelSpec(name)) or ())
    ]
    return [*map(ModelSpec, [*sources.ours(), *library]), *headless]


def _among(spec: ModelSpec, found: Shapes) -> Any:
    """An `admit` that stops a library's model at the first parameter whose shape the file has not.

    What depends on the number of classes (1000 there) or on the size of the images (the position
    embeddings, of three dimensions) may differ.
    """
    shapes = set(found.values())

    def admit(shape: Shape) -> None:
        if shape not in shapes and 1000 not in shape and len(shape) != 3 and ":" in spec.name:
            raise Refused("another model")

    return admit


def _same_names(wanted: Mapping[str, Any], found: Shapes) -> bool:
    return {key for key in wanted if not key.endswith(UNCOUNTED)} == {
        key for key in found if not key.endswith(UNCOUNTED)
    }
