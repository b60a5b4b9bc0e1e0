"""What models return: the logits in it, whether two results are the same; and what they raise."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from memtool import MemtoolError
from memtool.device import is_trouble_of_processes
from memtool.errors import is_lack_of_memory, one_line
from memtool.layers import computed_scale, parts_of, plain


def logits_of(result: Any, classes: int | None = None) -> Tensor | None:
    """The logits, (n, classes), in what a model returned; None if there are none.

    They are the result itself; or what it has under `logits`, as a key or an attribute; or the
    first tensor of that shape in a tuple, list, dict or dataclass. If the number of classes is not
    known, a tensor of two dimensions will do.

    >>> features, logits = torch.zeros(2, 64), torch.zeros(2, 10)
    >>> logits_of((features, logits), classes=10) is logits, logits_of(features, classes=10)
    (True, None)
    """
    found = find_logits(result, classes)
    return found[1] if found else None


def find_logits(result: Any, classes: int | None) -> tuple[str, Tensor] | None:
    """Where the logits are, and the logits."""
    parts = dict(parts_by_name(result))
    if "logits" in parts:
        parts = {"logits": parts["logits"]}
    for name, part in parts.items():
        if isinstance(part, Tensor) and part.ndim == 2 and classes in (None, part.shape[1]):
            return name, part
    return None


def parts_by_name(result: Any) -> Iterator[tuple[str, Any]]:
    """What a result consists of, by name; a tensor consists of itself."""
    if isinstance(result, Tensor):
        yield "", result
    elif parts := list(parts_of(result)):
        yield from ((str(name), value) for name, value in parts)
    elif hasattr(result, "logits"):
        yield "logits", result.logits


def described(result: Any) -> str:
    """What a model returned, in a few words: shapes of tensors, types of anything else.

    >>> described((torch.zeros(2, 64), {"logits": torch.zeros(2, 10)}))
    '((2, 64), {logits: (2, 10)})'
    """
    if isinstance(result, Tensor):
        return str(tuple(result.shape))
    parts = list(parts_by_name(result))
    if not parts:
        return type(result).__name__
    if isinstance(result, tuple | list) and not hasattr(result, "_fields"):
        return f"({', '.join(described(part) for _, part in parts)})"
    return f"{{{', '.join(f'{name}: {described(part)}' for name, part in parts)}}}"


@contextmanager
def foreign_code(what: str) -> Iterator[None]:
    """Within the block, any exception of other people's code becomes a MemtoolError of one line,
    which begins with `what`. A lack of memory, and trouble between the processes of a torchrun, are
    none of their doing."""
    try:
        yield
    except MemtoolError:
        raise
    except Exception as error:
        if is_lack_of_memory(error) or is_trouble_of_processes(error):
            raise
        raise MemtoolError(f"{what}: {one_line(error)} (--debug shows where)") from error


def nearly_equal(a: Tensor, b: Tensor, rtol: float = 1e-3, atol: float = 1e-3) -> bool:
    """Equal but for rounding: to `rtol` of each value of `b`, or `atol` of its `computed_scale`.

    The defaults are as far as that can be told of two kernels for the same thing.
    """
    a, b = plain(a), plain(b)
    if a.shape != b.shape or not a.is_floating_point():
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=rtol, atol=atol * computed_scale(b), equal_nan=True)
