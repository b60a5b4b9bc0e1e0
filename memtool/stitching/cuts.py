"""Cuts: where a network can be cut in two, and which cut of one network meets which of another."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memtool import MemtoolError
from memtool.checkpoints import Checkpoint, trace_all
from memtool.data import told_shape
from memtool.errors import told_names
from memtool.layers import Layer, select
from memtool.specs import matches

logger = logging.getLogger("memtool")

Cut = tuple[Layer, Layer]  # of the front and of the back


class NoCut(MemtoolError):
    """Two layers at which nothing can be stitched. `reason` is the part of the message that may
    hold for others, too."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class ChosenCut:
    """A cut, and whether the user has named its layers rather than a pattern that they match."""

    layers: Cut
    is_named: bool


def chosen_cuts(
    fronts: Sequence[Checkpoint], back: Checkpoint, at: Sequence[str]
) -> dict[Path, list[ChosenCut]]:
    """The cuts of each front with the back that match `at`, by the front's path.

    Raises MemtoolError if a front does not take the images that the back takes, and as
    `matching_cuts` does.
    """
    for front in fronts:
        if front.image_shape != back.image_shape:
            raise MemtoolError(
                f"{front.path}: takes {told_shape(front.image_shape)}, but {back.path} takes "
                f"{told_shape(back.image_shape)}; stitch networks for images of one size"
            )
    *ours, theirs = trace_all([*fronts, back])
    return {
        front.path: matching_cuts(trace.named, theirs.named, at, front.path, back.path)
        for front, trace in zip(fronts, ours, strict=True)
    }


def matching_cuts(
    front: Sequence[Layer], back: Sequence[Layer], at: Sequence[str], path: Path, back_path: Path
) -> list[ChosenCut]:
    """The cuts that match `at`: globs on the front's layers, or FRONT=BACK for other names there.

    Of the layers that match and are one tensor, the outermost alone is met by a glob. One for which
    the back has no cut of its name is left out with a note, unless no other matches. The paths say
    whose layers they are. Raises MemtoolError for a layer that is no cut, with the reason and,
    where there is one, the innermost block around it that is a cut.
    """
    names = {layer.name for layer in back}
    chosen, refused = dict[Cut, bool](), dict[Layer, MemtoolError]()
    for pattern in at:
        ours, theirs = _ends(pattern, [layer.name for layer in front], names)
        for layer in _matching(front, ours, path):
            is_named = layer.name == ours
            other = layer.name if theirs is None else theirs
            try:
                if theirs is None and other not in names:
                    raise _has_no_such(back_path, other, path)
                cut = layer, _only(_matching(back, other, back_path), ours, other, back_path)
            except MemtoolError as error:
                if is_named or theirs is not None:
                    raise
                refused[layer] = error
            else:
                chosen[cut] = chosen.get(cut, False) or is_named
    order = {layer: number for number, layer in enumerate(front)}
    cuts = sorted(chosen, key=lambda cut: order[cut[0]])
    distinct = _distinct(cuts)
    kept = [cut for cut in cuts if chosen[cut] or cut in distinct]
    met = {layer.same_as for layer, _ in kept}
    lacking = [(layer, layer) for layer in front if layer in refused and layer.same_as not in met]
    leave_out(path, {layer.name: refused[layer] for layer, _ in _distinct(lacking)}, kept)
    return [ChosenCut(cut, chosen[cut]) for cut in kept]


def _distinct(cuts: Sequence[Cut]) -> list[Cut]:
    """The cuts, in order of execution, but of those between the same tensors the outermost alone.
    Where both layers have the same name, the tensor of the front decides."""
    same: dict[tuple[str, str], dict[Layer, Cut]] = {}
    for front, back in cuts:
        theirs = "" if front.name == back.name else back.same_as
        same.setdefault((front.same_as, theirs), {}).setdefault(front, (front, back))
    return [group[_outermost(list(group))] for group in same.values()]


def _only(layers: Sequence[Layer], front: str, back: str, path: Path) -> Layer:
    """The outermost of the cuts that match the BACK of a pattern. Raises MemtoolError unless they
    are one tensor."""
    distinct = [layer for layer, _ in _distinct([(layer, layer) for layer in layers])]
    if len(distinct) > 1:
        names = [layer.name for layer in distinct]
        raise MemtoolError(
            f"{path}: {back!r} matches several layers: {told_names(names)}; name the one that is "
            f"meant, as in --at '{front}={names[0]}', or leave it out, for layers of equal names: "
            f"--at '{front}'"
        )
    return distinct[0]


def _outermost(layers: Sequence[Layer]) -> Layer:
    """Of layers that are one tensor, in order of execution, the outermost block around the first,
    which made it, else the first itself."""
    first = layers[0]
    around = [
        layer
        for layer in layers
        if layer.name == layer.same_as or first.name.startswith(f"{layer.name}.")
    ]
    return min(around, key=lambda layer: len(layer.name), default=first)


def leave_out(path: Path, refused: Mapping[str, MemtoolError], found: Collection[Cut]) -> None:
    """Note that cuts of the front in the file `path`, by the names of its layers, are left out, and
    why: once for those with the same reason. Raises the first error if no others were `found`."""
    if refused and not found:
        raise next(iter(refused.values()))
    reasons: dict[str, list[str]] = {}
    for name, error in refused.items():
        reason = error.reason if isinstance(error, NoCut) else str(error)
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        logger.info(f"{path}: {told_names(names)} left out: {reason}")


def _ends(pattern: str, front: Collection[str], back: Collection[str]) -> tuple[str, str | None]:
    """FRONT and BACK of a pattern, given the names of all layers; BACK is None where there is none.

    Names may contain `=`: a pattern that is one is not split, others are where layers match. Where
    they match on one side alone, that is as long as can be; where on none, nothing is split.

    >>> _ends("rate=2", ["rate=2"], ["fc"]), _ends("rate=2=fc", ["rate=2"], ["fc"])
    (('rate=2', None), ('rate=2', 'fc'))
    >>> _ends("rate=2=cf", ["rate=2"], ["fc"]), _ends("rate=3", ["rate=2"], ["fc"])
    (('rate=2', 'cf'), ('rate=3', None))
    """
    places = [place for place, letter in enumerate(pattern) if letter == "="]
    splits = [(pattern[:place], pattern[place + 1 :]) for place in places]
    by_front = [split for split in splits if any(matches(name, split[0]) for name in front)]
    by_back = [split for split in splits if any(matches(name, split[1]) for name in back)]
    by_both = [split for split in by_front if split in by_back]
    if pattern in front:
        return pattern, None
    if by_both:
        return by_both[0]
    if any(matches(name, pattern) for name in front):
        return pattern, None
    return next(iter([*reversed(by_front), *by_back]), (pattern, None))


def _matching(layers: Sequence[Layer], pattern: str, path: Path) -> list[Layer]:
    found = select(layers, [pattern], str(path))
    found = [layer for layer in found if layer.name == pattern] or found
    if [layer.name for layer in found] == [pattern] and not found[0].is_cut:
        if found[0].is_output:
            raise MemtoolError(
                f"{path}: {pattern!r} is the output: nothing comes after it that could be stitched "
                f"to it; cut before it (list the cuts: memtool info --layers {path})"
            )
        if axis := found[0].batch_axis:
            raise MemtoolError(
                f"{path}: {pattern!r} has the images along axis {axis} of its output (tokens come "
                "first, say), where networks are not stitched; cut where the images come first "
                f"(list the cuts: memtool info --layers {path})"
            )
        around = [
            block.name for block in layers if block.is_cut and pattern.startswith(f"{block.name}.")
        ]
        raise not_a_cut(path, pattern, around[0] if around else None)
    cuts = [layer for layer in found if layer.is_cut]
    if not cuts:
        raise MemtoolError(
            f"{path}: no layer that matches {pattern!r} is a cut "
            f"(list them: memtool info --layers {path})"
        )
    return cuts


def _has_no_such(path: Path, layer: str, front: Path) -> NoCut:
    return NoCut(
        f"{path}: has no layer {layer!r}; say which of its layers goes with that of {front}: "
        f"--at {layer}=BACK_LAYER (list them: memtool info --layers {path})",
        f"{path} has no layer of such a name; --at FRONT_LAYER=BACK_LAYER says which goes with it",
    )


def not_a_cut(path: Path, layer: str, block: str | None) -> MemtoolError:
    """The error for a layer that is no cut; `block` is the innermost one around it that is."""
    hint = f"the block around it, {block!r}, is" if block else "nor is a block around it"
    return MemtoolError(
        f"{path}: {layer!r} is not a cut, what comes after it depends on the input in other ways "
        f"too; {hint} (list them: memtool info --layers {path})"
    )
