"""What a notebook needs beyond what the wings offer themselves: names, paths and frames as one has
them there."""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memtool import MemtoolError, data, figures, tables
from memtool.paths import as_path
from memtool.progress import Progress, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Iterable[Mapping[str, Any]]


def dataset(
    spec: Path | str, folder: Path | str | None = None, progress: Progress = silent
) -> data.Dataset:
    """The data set that a spec names, such as `digits`, `cifar10` or `folder:photos?image_size=64`.

    `folder` is where torchvision's data sets are, or are downloaded to. Raises MemtoolError for a
    spec that is not known and for files that cannot be read.

    >>> digits = dataset("digits")
    >>> digits.train.images.shape, digits.test.labels.shape
    ((1297, 1, 8, 8), (500,))
    """
    return data.load(str(spec), as_path(folder) if folder else None, progress=progress)


def read_table(path: Path | str) -> Any:
    """The rows of a table (CSV, TSV or JSON lines): a pandas frame if pandas is installed, else a
    list of dicts, in which an empty cell is None. Raises MemtoolError if it is not a table."""
    rows = tables.read(as_path(path))
    if not find_spec("pandas"):
        return rows
    import pandas

    return pandas.DataFrame(rows)


def draw(kind: str, rows: Any, **options: Any) -> "Figure":
    """The figure of a `kind` (convergence, divergence, stitching, supplement, heatmap or training)
    that shows `rows`, dicts or a pandas frame, as `memtool plot` draws it.

    It is a matplotlib Figure: a notebook shows it, and its `savefig` writes it. Raises MemtoolError
    for another kind, and if the rows lack what the figure needs.

    `options` are those of the command, as lists or texts: `x` ("layer" or "epoch"), `layers` and
    `marks` (globs, ["conv?", "fc"] or "conv?,fc"), `ratios` ([0, 0.25] or "0,25%"), `epochs`
    ([1, 2, "last"]), `width` ("column", "page" or inches), `title`, `style` (the path of a style
    file of matplotlib), and `net_of_control`, which subtracts the control's accuracy from that of
    stitched models.

    >>> columns = ("checkpoint", "reference", "layer", "reference_layer", "epoch", "noise_ratio")
    >>> rows = [
    ...     {**dict(zip(columns, ("a", "b", one, other, 1, 0.0))), "cka": 0.5}
    ...     for one in ("conv", "fc")
    ...     for other in ("conv", "fc")
    ... ]
    >>> draw("heatmap", rows).axes[0].get_ylabel()
    'layer of a'
    """
    return figures.draw(kind, _dicts(rows), figures.as_options(**options))


def _dicts(rows: Any) -> list[dict[str, Any]]:
    """The rows of a frame, or of anything that gives mappings; a missing value is None."""
    if hasattr(rows, "iterrows"):
        rows = rows.astype(object).where(rows.notna(), None).to_dict("records")
    try:
        found = list(rows)
    except TypeError:
        found = [rows]
    if isinstance(rows, Mapping) or not all(isinstance(row, Mapping) for row in found):
        raise MemtoolError("rows are a list of dicts or a frame, as memtool.read_table(path) gives")
    return [dict(row) for row in found]
