"""Recognition: which model the tensors of a file are of, where its metadata do not say.

Everything here works on names and shapes, as a file's header gives them: no weights are read.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memtool import MemtoolError, models
from memtool.checkpoints.adapters import Ambiguous, Reading, read_names
from memtool.checkpoints.names import (
    Shapes,
    have_same_names,
    misfits,
    outline_of,
    renamed,
)
from memtool.checkpoints.rewriting import Match, rewriting
from memtool.contents import read_json
from memtool.errors import shortened, some
from memtool.models import ModelSpec
from memtool.tensors import Shape

if TYPE_CHECKING:
    from torch import nn

    from memtool.models import Admit

logger = logging.getLogger("memtool")

# Sizes of images to try where the shapes depend on them: those of the usual data sets and models.
IMAGE_SIZES = (
    *(8, 16, 28, 32, 48, 64, 84, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 248, 256, 272),
    *(288, 299, 320, 336, 384, 392, 448, 475, 480, 512, 518, 600),
)
# Options whose value no single size tells, and the values to try.
TRIED = {"aux_logits": (False,), "image_size": IMAGE_SIZES, "img_size": IMAGE_SIZES}


def identify(
    path: Path, shapes: Shapes, model: ModelSpec | None, same: Mapping[str, str] | None = None
) -> Match:
    """The model whose tensors `path` holds: `model` if it is given, else the one that a
    `config.json` beside the file names, else the only known one with these names and shapes.

    `same` maps further names of the tensors to those that they have in the file. Raises
    MemtoolError if the tensors are not those of the model, and if no known model or more than one
    has them.
    """
    same = same or {}
    shapes = {**shapes, **renamed(shapes, same)}
    try:
        match = _match(shapes, same, model, path)
    except MemtoolError as error:
        raise MemtoolError(f"{path}: {error}") from error
    return replace(match, names={name: same.get(key, key) for name, key in match.names.items()})


def _match(shapes: Shapes, same: Mapping[str, str], model: ModelSpec | None, path: Path) -> Match:
    if model:
        return _match_named(path, shapes, same, model, "--model")
    config = json_beside(path, "config.json")
    if named := _named_by(config):
        try:
            match = _match_named(path, shapes, same, named, "config.json")
        except MemtoolError as error:
            raise MemtoolError(
                f"{error} (the config.json beside it says that model; --model SPEC says another)"
            ) from error
        logger.info(f"{path}: recognized as {named.name} by the config.json beside it")
        return match
    spec = _recognized(shapes, same)
    logger.info(f"{path}: recognized as {spec} by the names and shapes of its tensors")
    _log_doubt(path, spec)
    return _match_named(path, shapes, same, spec, "tensors")


# --- The model is named ---------------------------------------------------------------------------


def _match_named(
    path: Path,
    shapes: Shapes,
    same: Mapping[str, str],
    spec: ModelSpec,
    known_by: str,
) -> Match:
    """The match of the tensors with `spec`, completed by options that their shapes tell.

    Raises MemtoolError if the tensors are not those of the model.
    """
    reading = _read(spec, shapes, same)
    spec = complete_from_shapes(spec, renamed(shapes, reading.names))
    reading = _read(spec, shapes, same)
    found = renamed(shapes, reading.names)
    if not _fits(spec, found) and (
        other := rewriting(spec, shapes, complete_from_shapes, known_by)
    ):
        logger.info(
            f"{path}: has the tensors of {other.spec.name} in another layout; rewritten as timm "
            "does when it loads them"
        )
        return other
    try:
        _check_fit(spec, outline_of(spec, found).shapes, found)
    except MemtoolError as error:
        beside = f"; it has {some(reading.others)} besides" if reading.others else ""
        raise MemtoolError(f"{error}{beside}") from error
    reading.log(path)
    return Match(spec, reading.names, found, known_by)


def checked_skeleton(path: Path, spec: ModelSpec, shapes: Shapes) -> "nn.Module":
    """The model without weights. Raises MemtoolError, which names `path`, if it cannot be built or
    if `shapes` are not those of its tensors."""
    try:
        model = models.skeleton(spec, models.size_limit(spec, shapes.values()))
        _check_fit(spec, models.shapes_of(model), shapes)
        return model
    except MemtoolError as error:
        raise MemtoolError(f"{path}: {error}") from error


def _check_fit(spec: ModelSpec, expected: Shapes, found: Shapes) -> None:
    if problems := misfits(expected, found):
        raise MemtoolError(f"its tensors do not fit the model {spec}: {problems}")


def _read(spec: ModelSpec, shapes: Shapes, same: Mapping[str, str]) -> Reading:
    """The names in a file with these shapes, read as those of the model's tensors."""
    outline = outline_of(spec, shapes)
    return read_names(list(outline.shapes), list(shapes), outline.tied, same)


def complete_from_shapes(spec: ModelSpec, shapes: Shapes) -> ModelSpec:
    """`spec` with the options that it does not give and the shapes of its tensors tell: the number
    of classes, the channels of the images and of the first stage, the size of the images, and
    whether there are auxiliary classifiers."""
    accepted = models.accepted_options(spec) or []
    free = [option for option in accepted if option not in spec.options]
    if _fits(spec, shapes):
        return spec
    for option in ("num_classes", models.channels_option(accepted), "width"):
        if option in free and (value := _read_off(spec, option, shapes)):
            spec = _with_option(spec, option, value)
    for option, values in TRIED.items():
        if option in free and not _fits(spec, shapes) and _may_tell(option, spec, shapes):
            tried = (_with_option(spec, option, value) for value in values)
            spec = next((other for other in tried if _fits(other, shapes)), spec)
    return spec


def known_classes(spec: ModelSpec, shapes: Shapes) -> int | None:
    """How many classes a model tells apart, as its options say or the shapes of its tensors show;
    0 if it was made without a head, None if that cannot be told."""
    if "num_classes" in spec.options:
        option = spec.options["num_classes"]
        return option if isinstance(option, int) else None
    accepted = models.accepted_options(spec) or []
    return _read_off(spec, "num_classes", shapes) if "num_classes" in accepted else None


def _may_tell(option: str, spec: ModelSpec, shapes: Shapes) -> bool:
    """Whether another value may make the shapes fit: a size of images does not change names."""
    return option == "aux_logits" or have_same_names(outline_of(spec, shapes).shapes, shapes)


def _with_option(spec: ModelSpec, option: str, value: Any) -> ModelSpec:
    return replace(spec, options={**spec.options, option: value})


def _fits(spec: ModelSpec, shapes: Shapes) -> bool:
    """Whether `shapes` are those of the model's tensors."""
    try:
        return not misfits(outline_of(spec, shapes).shapes, shapes)
    except MemtoolError:
        return False


def _read_off(spec: ModelSpec, option: str, shapes: Shapes) -> int | None:
    """The value of an option that is the size of some tensor in some dimension; None if it is not.

    The model is built with two values of the option, which shows where its value is to be found;
    without a limit of size, since other options may still have defaults that make it larger.
    """
    values = (11, 13)
    try:
        first, second = (outline_of(_with_option(spec, option, n)).shapes for n in values)
    except MemtoolError:
        return None
    for name, found in shapes.items():
        sizes = zip(first.get(name, ()), second.get(name, ()), found, strict=False)
        for *built, size in sizes:
            if tuple(built) == values and len(found) == len(first[name]):
                return size
    return None


# --- A config.json beside the file ----------------------------------------------------------------


def json_beside(path: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file beside `path`; empty if there is none, or, with a warning, if it
    cannot be read."""
    file = path.with_name(name)
    try:
        config = read_json(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning(f"{file}: is ignored, since it cannot be read ({shortened(error)})")
        return {}
    return config if isinstance(config, dict) else {}


def _named_by(config: Mapping[str, Any]) -> ModelSpec | None:
    """The timm model that a `config.json` names; it is trusted no more than the file itself."""
    match config:
        case {"architecture": str(name)}:
            options = config.get("model_args")
            options = dict(options) if isinstance(options, dict) else {}
            if isinstance(classes := config.get("num_classes"), int):
                options.setdefault("num_classes", classes)
            match config.get("pretrained_cfg"):
                case {"fixed_input_size": True, "input_size": [_, int(height), int(width)]}:
                    options.setdefault("img_size", [height, width])  # as timm does
            return ModelSpec(f"timm:{name}", options)
    return None


# --- Names and shapes alone -----------------------------------------------------------------------


def _recognized(shapes: Shapes, same: Mapping[str, str]) -> ModelSpec:
    """The only model, ours or torchvision's, that has the tensors."""
    specs = matching(tuple(shapes.items()), tuple(same.items()))
    if len(specs) > 1:
        raise MemtoolError(
            "its tensors are those of several models; say which: "
            f"{' or '.join(f'--model {str(spec)!r}' for spec in specs)}"
        )
    if not specs:
        raise MemtoolError(
            f"memtool did not write it, and its {len(shapes)} tensors "
            f"({some(list(shapes))}) are those of no model of ours or of torchvision; "
            "say what it holds: --model SPEC, as in --model timm:resnet18"
        )
    return specs[0]


def _log_doubt(path: Path, spec: ModelSpec) -> None:
    """Log which option of the model its tensors do not tell."""
    if spec.name in ("torchvision:googlenet", "torchvision:inception_v3"):
        logger.info(
            f"{path}: its tensors do not show whether it was trained with transform_input; built "
            "without, which is wrong for weights from torchvision: pass --model "
            f"'{spec.name}?transform_input=true' for those"
        )
    if spec.name in ("resnet18", "resnet34", "resnet50"):
        logger.info(
            f"{path}: its tensors do not show whether it pools before its first block, as "
            f"torchvision's networks do; {spec.name} does not"
        )


@lru_cache(maxsize=16)
def matching(
    shapes: tuple[tuple[str, Shape], ...], same: tuple[tuple[str, str], ...] = ()
) -> list[ModelSpec]:
    """The models, ours and torchvision's, whose tensors have exactly these names and shapes, as
    `read_names` reads them: those for which the fewest names are left aside.

    Most are given up at their first parameter, so that trying all eighty takes a fraction of a
    second. Raises MemtoolError if a file holds a model several times.
    """
    found = dict(shapes)
    specs: dict[int, list[ModelSpec]] = {}
    ambiguous: Ambiguous | None = None
    for spec in _known_specs():
        try:
            model = models.skeleton(spec, _shapes_limit(spec, found))
            reading = read_names(list(model.state_dict()), list(found), same=dict(same))
            completed = _completed(spec, model, renamed(found, reading.names))
        except Ambiguous as error:
            ambiguous = error
        except MemtoolError:
            continue
        else:
            if completed and not reading.others:
                specs.setdefault(len(reading.beside), []).append(completed)
    if ambiguous and not specs:
        raise ambiguous
    return specs[min(specs)] if specs else []


def _completed(spec: ModelSpec, model: "nn.Module", found: Shapes) -> ModelSpec | None:
    """The spec with the options that the shapes tell, if they are then those of its tensors."""
    if not have_same_names(model.state_dict(), found):
        return None
    spec = complete_from_shapes(spec, found)
    return spec if _fits(spec, found) else None


def _known_specs() -> list[ModelSpec]:
    """Our models and torchvision's, those that may have auxiliary classifiers also without them."""
    library = [f"torchvision:{name}" for name in models.torchvision_names()]
    without_auxiliary = [
        ModelSpec(name, {"aux_logits": False})
        for name in library
        if "aux_logits" in (models.accepted_options(ModelSpec(name)) or ())
    ]
    return [*map(ModelSpec, [*models.OURS, *library]), *without_auxiliary]


def _shapes_limit(spec: ModelSpec, found: Shapes) -> "Admit":
    """An `admit` that refuses a model of torchvision's at the first parameter whose shape is not
    among those found.

    Shapes may differ that depend on the number of classes (1000 there) or on the size of the images
    (position embeddings, which have three dimensions).
    """
    shapes = set(found.values())

    def admit(shape: Shape) -> None:
        if shape not in shapes and 1000 not in shape and len(shape) != 3 and ":" in spec.name:
            raise models.Refused("another model")

    return admit
