"""Layers as an x axis: a place for each tensor, in order of execution, and the ends of stages."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from matplotlib.axes import Axes

from memtool.figures.colors import Style
from memtool.figures.letters import drawable
from memtool.figures.rows import Rows, groups
from memtool.figures.stages import stage_ends
from memtool.figures.style import LINE_HEIGHT, layer_ticks, names_length, room_for
from memtool.tables import Row

# A shortcut runs beside the layers of its block, of which none depends on it. What a whole stage
# begins with, in ConvNeXt or Swin, has the name of one.
STAGE_START = r"^(.*\.)?(stages|layers|levels)\.\d+\.downsample(\.|$)"
SIDE = re.compile(rf"(?!{STAGE_START})(.*\.)?(downsample|shortcut)(\.|$)")
STAGE_LINE: Style = {"color": "0.6", "linestyle": "--", "linewidth": 0.6, "zorder": 0}
MOST_NAMED = 24  # layers that are all named


@dataclass(frozen=True)
class LayerAxis:
    """The layers of a figure by their places, from 0 on.

    `ends` names the stage that ends at a place, or the layer that is marked there.
    """

    layers: tuple[str, ...]
    ends: dict[int, str]

    @classmethod
    def of(cls, rows: Rows, marks: Sequence[str] = ()) -> "LayerAxis":
        """The axis for some rows; `marks` are globs of layers that have lines instead of stages."""
        layers = tuple(one_per_tensor(rows))
        return cls(layers, stage_ends(layers, marks))

    @cached_property
    def places(self) -> dict[str, int]:
        """The place of each layer."""
        return {layer: place for place, layer in enumerate(self.layers)}

    def placed(self, rows: Iterable[Row]) -> list[Row]:
        """The rows of these layers, with a column `place`."""
        places = self.places
        return [{**row, "place": places[row["layer"]]} for row in rows if row["layer"] in places]

    @property
    def marked(self) -> list[int]:
        """Where curves have markers: everywhere, or at the ends of stages if layers are many."""
        many = len(self.layers) > MOST_NAMED
        return [place for place in range(len(self.layers)) if not many or place in self.ends]

    def draw(self, axes: Axes, length: float) -> float:
        """Draw the lines at the ends of stages, and name layers or stages along `length` inches.

        Returns the inches that the names take below the axis.
        """
        for place in self.ends:
            axes.axvline(place, **STAGE_LINE)
        axes.set_xlim(-0.02 * len(self.layers) - 0.3, 1.02 * len(self.layers) - 0.7)
        if len(self.layers) > MOST_NAMED and self.ends:
            return self._name_stages(axes, length)
        layer_ticks(axes.xaxis, self.layers, length)
        axes.tick_params(axis="x", rotation=90)
        return names_length(self.layers)

    def _name_stages(self, axes: Axes, length: float) -> float:
        """Name the stages where they end, and the last layer if there is room."""
        pitch = length / len(self.layers)
        last = len(self.layers) - 1
        for named in ({**self.ends, last: self.layers[last]}, self.ends):
            names = [drawable(name) for name in named.values()]
            if room_for(names, [place * pitch for place in named]):
                axes.set_xticks(list(named), names)
                return 0.0
        shown: list[int] = []
        for place in reversed(self.ends):
            if not shown or (shown[0] - place) * pitch >= LINE_HEIGHT:
                shown.insert(0, place)
        axes.set_xticks(shown, [drawable(self.ends[place]) for place in shown])
        axes.tick_params(axis="x", rotation=90)
        return names_length(self.ends.values())


def one_per_tensor(rows: Rows) -> list[str]:
    """The layers in order, of those whose output is the very same tensor the outermost alone.

    The column `same_as` says which they are.
    """
    tensors = groups(rows, lambda row: str(row["same_as"] or row["layer"]))
    return [
        min((str(row["layer"]) for row in group), key=lambda name: name.count("."))
        for group in tensors.values()
    ]


def is_side(layer: str) -> bool:
    """Whether a layer is part of a shortcut.

    >>> is_side("layer2.0.downsample.1"), is_side("layer2.0.bn1")
    (True, False)
    >>> is_side("stages.1.downsample.0"), is_side("stages.1.blocks.0.downsample")
    (False, True)
    """
    return SIDE.match(layer) is not None


def without_shortcuts(rows: Iterable[Row]) -> list[Row]:
    """The rows of the layers along the main path."""
    return [row for row in rows if not is_side(row["layer"])]


def on_main_path(rows: Rows) -> list[Row]:
    """The rows of the layers along the main path, of each tensor those of one layer."""
    layers = {*one_per_tensor(rows)}
    return [row for row in without_shortcuts(rows) if row["layer"] in layers]
