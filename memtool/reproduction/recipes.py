"""What is done in a reproduction, as data; without torch, so that the command line starts fast."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any

from memtool import MemtoolError, specs
from memtool.data.spec import with_options
from memtool.errors import counted
from memtool.figures.options import SUPPLEMENTED
from memtool.training.defaults import config_for
from memtool.training.settings import Augment

RATIOS = (0, 5, 10, 15, 20, 25, 37.5, 50, 67.5)  # noise ratios of the paper, in percent
RESNETS = ("resnet18", "resnet34", "resnet50")
WITH_WIDTH = ("cnn", *RESNETS)
MOST_RATIOS, MOST_SEEDS, MOST_EPOCHS = 100, 1000, 100_000
CHECKPOINTS = 25  # of a run, at most, unless something else is chosen
GIVEN = {  # the options that the steps give each command themselves, or need as they are
    "train": "--model --data --labels --epochs --seed --order-seed --save-at --table --output -o"
    " --dry-run --help -h",
    "cka": "--reference --layers --pairs --samples --output -o --dry-run --help -h",
    "stitch": "--at --seed --save --output -o --dry-run --help -h",
}

# One thread per step, unless the environment says otherwise: as many steps run at once as there are
# processors, and the last digits of a sum depend on the number of threads, which must not depend on
# how many steps run at once.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


class Study(StrEnum):
    """What the paper is reproduced on."""

    digits = "digits"  # by a small CNN
    cifar10 = "cifar10"  # by ResNet-18, as the paper does
    svhn = "svhn"  # by a CNN


@dataclass(frozen=True)
class Recipe:
    """What is done for every noise ratio and seed; strings are options as one types them.

    The clean model, which the others are compared with, is that of noise ratio 0. Seeds are counted
    from 0. `saved` are the epochs whose checkpoints are compared, besides the last one's. `train`,
    `cka` and `stitch` are further options of these commands. `samples` limits the test images that
    CKA takes. `supplement` are the noise ratios
    whose stitched models are compared with the clean one, None for a few, evenly chosen.
    """

    data: str
    model: str
    epochs: int
    saved: tuple[int, ...]
    layers: str = "all"  # memtool cka --layers
    cuts: str = "all"  # memtool stitch --at
    ratios: tuple[float, ...] = RATIOS  # in percent
    seeds: int = 1
    train: str = ""
    cka: str = "--estimator exact"  # the paper's
    samples: int | None = None  # memtool cka --samples
    stitch: str = ""
    supplement: tuple[float, ...] | None = None  # in percent

    @staticmethod
    def of(data: str, model: str) -> "Recipe":
        """For any data set and model, with the epochs that the model is trained for by default."""
        epochs = config_for(specs.split(model, "model")[0], images=50_000).epochs
        saved = every(-(-epochs // CHECKPOINTS), epochs)
        return Recipe(data=data, model=model, epochs=epochs, saved=saved)

    def but(self, **chosen: Any) -> "Recipe":
        """The recipe with what is chosen, and not None, in place of its own; with other `epochs`,
        as many checkpoints are as evenly spread over these.

        Raises MemtoolError for a checkpoint that is saved after the last epoch, for more than
        MOST_RATIOS noise ratios, for one of the supplement that is none of the recipe's, for
        options that the steps set themselves, and for some whose quotation marks do not end.
        """
        chosen = {name: value for name, value in chosen.items() if value is not None}
        epochs = chosen.get("epochs", self.epochs)
        if "saved" not in chosen and epochs != self.epochs:
            chosen["saved"] = every(-(-epochs // CHECKPOINTS), epochs)
        if max(chosen.get("saved", ()), default=0) > epochs:
            raise MemtoolError(
                f"--save-at {max(chosen['saved'])}: the runs have {counted(epochs, 'epoch')}"
            )
        if "saved" in chosen:
            chosen["saved"] = tuple(sorted({*chosen["saved"]} - {epochs}))
        if "ratios" in chosen:
            chosen["ratios"] = tuple(sorted({0, *map(_plain, chosen["ratios"])}))
        if "supplement" in chosen:
            chosen["supplement"] = tuple(sorted(set(map(_plain, chosen["supplement"]))))
        recipe = replace(self, **chosen)
        for command in GIVEN:
            _words(command, getattr(recipe, command))
        if len(recipe.ratios) > MOST_RATIOS:
            raise MemtoolError(f"--ratios: {len(recipe.ratios)} are more than {MOST_RATIOS}")
        if others := {*recipe.supplemented} - {*recipe.ratios}:
            raise MemtoolError(
                f"--supplement {min(others)}%: the noise ratios are {told(recipe.ratios)}"
            )
        return recipe

    @property
    def supplemented(self) -> tuple[float, ...]:
        """The noise ratios whose stitched models are compared with the clean one, in percent.

        >>> RECIPES[Study.digits].supplemented
        (5, 15, 37.5, 67.5)
        """
        from memtool.figures.selection import few  # which the command line does not need to start

        if self.supplement is not None:
            return self.supplement
        return few([ratio for ratio in self.ratios if ratio] or [0], SUPPLEMENTED)

    @property
    def is_tried(self) -> bool:
        """Whether its commands are those of a study, which are known to work."""
        same = ("data", "model", "layers", "cuts", "train", "cka", "samples", "stitch")
        return any(
            all(getattr(self, name) == getattr(study, name) for name in same)
            for study in RECIPES.values()
        )

    def devices(self, default: str) -> set[str]:
        """The devices that its steps compute on: those that the options of each command name last,
        and the default of a command whose options name none.

        >>> sorted(replace(RECIPES[Study.digits], train="--device=cpu").devices("auto"))
        ['auto', 'cpu']
        """
        typed = [pairwise(_words(command, getattr(self, command))) for command in GIVEN]
        named = [[value for option, value in pairs if option == "--device"] for pairs in typed]
        return {names[-1] if names else default for names in named}

    def small(self) -> "Recipe":
        """For two processor cores: three noise ratios, 5,000 training images, 2,000 test images in
        CKA, the blocks alone of RESNETS (torchvision's too, whose layers have the same names), and
        a width of 16 for the networks that have one."""
        name, options = specs.split(self.model, "model")
        is_resnet = name.removeprefix("torchvision:") in RESNETS
        width = {"width": "16"} if name in WITH_WIDTH else {}
        return self.but(
            ratios=(0, 25, 50),
            data=with_options(self.data, samples_train=5000),
            model=specs.join(name, {**width, **options}),
            layers="relu,layer?.?,avgpool,fc" if is_resnet else None,
            samples=2000,
        )

    @staticmethod
    def from_json(choices: Mapping[str, Any]) -> "Recipe":
        """The recipe that `json` made these of; what else is among them does not count. Raises
        KeyError for a choice that is not.

        >>> Recipe.from_json(RECIPES[Study.digits].json()).json() == RECIPES[Study.digits].json()
        True
        """
        own: dict[str, Any] = {field.name: choices[field.name] for field in fields(Recipe)}
        lists = {name: tuple(value) for name, value in own.items() if isinstance(value, list)}
        return Recipe(**own | lists)

    def json(self) -> dict[str, Any]:
        """All choices, as JSON holds them."""
        choices = {**asdict(self), "supplement": self.supplemented}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in choices.items()}


def chosen_recipe(
    study: Study | None,
    data: str | None,
    model: str | None,
    small: bool,
    samples_train: int | None,
    save_every: int | None,
    **chosen: Any,
) -> Recipe:
    """The recipe of a study, of other data or another model, or of both without a study; reduced,
    if it is to be `small`; then with what is chosen. Augmented images are trained on for the epochs
    that `memtool train` takes for them.

    Raises MemtoolError without a study unless there are data and a model, and as `Recipe.but` does.
    """
    if study is not None:
        recipe = RECIPES[study]
    elif data and model:
        recipe = Recipe.of(data, model)
    else:
        raise MemtoolError(f"name a study ({', '.join(Study)}), or --data and --model")
    if study is not None and model and specs.split(model, "model")[0] != recipe.model:
        recipe = Recipe.of(recipe.data, model)
    recipe = recipe.but(data=data, model=model)
    if small:
        recipe = recipe.small()
    words = _words("train", chosen.get("train") or "")
    if ("--augment", Augment.crop_flip) in pairwise(words) and not chosen.get("epochs"):
        name = specs.split(recipe.model, "model")[0]
        config = config_for(name, images=50_000, augment=Augment.crop_flip)
        chosen["epochs"] = max(recipe.epochs, config.epochs)
    if save_every:
        epochs = chosen.get("epochs") or recipe.epochs
        chosen["saved"] = [*(chosen.get("saved") or ()), *every(save_every, epochs)]
    recipe = recipe.but(**chosen)
    if samples_train:
        recipe = recipe.but(data=with_options(recipe.data, samples_train=samples_train))
    return recipe


def every(step: int, epochs: int) -> tuple[int, ...]:
    """The epochs at regular intervals, but for the last one.

    >>> every(4, 12)
    (4, 8)
    """
    return tuple(range(step, epochs, step))


def _words(command: str, options: str) -> list[str]:
    """Options of a command as a shell would split them, with `--name=value` as two words.

    Raises MemtoolError for some that a shell could not split, or that the steps set themselves.
    """
    try:
        typed = shlex.split(options)
    except ValueError as error:
        raise MemtoolError(f"--{command} {options!r}: {str(error).lower()}") from error
    words = [w for word in typed for w in (word.split("=", 1) if word[:2] == "--" else [word])]
    for name in words:
        if name in GIVEN[command].split():
            raise MemtoolError(
                f"--{command} {options!r}: reproduce sets {name} itself, by its own options "
                "(memtool reproduce --help)"
            )
    return words


def _plain(ratio: float) -> float:
    """A ratio in percent to the digits that names of files have; a whole number as an int, whose
    text has no point.

    >>> _plain(7.000000000000001), _plain(33.333333)
    (7, 33.3333)
    """
    ratio = float(f"{ratio:g}")
    return int(ratio) if ratio == int(ratio) else ratio


def told(numbers: Iterable[float]) -> str:
    """Numbers as they are typed.

    >>> told([0, 37.5])
    '0 37.5'
    """
    return " ".join(f"{number:g}" for number in numbers)


RECIPES = {
    Study.digits: replace(
        Recipe.of("digits", "digits-cnn"),
        saved=every(2, 20),
        layers="block?,fc",
        cuts="block?",
        # A few checkpoints at a time: steps that run at once then stay below 1 GB each.
        cka="--estimator exact --memory 48MiB",
    ),
    Study.cifar10: replace(Recipe.of("cifar10", "resnet18"), cuts="layer?"),
    Study.svhn: replace(Recipe.of("svhn", "cnn"), layers="block?,fc", cuts="block?"),
}
