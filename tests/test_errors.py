"""Other people's exceptions in one line."""

import pytest

from memtool.cli.options import size
from memtool.errors import MemtoolError, last_line, one_line, told_size


@pytest.mark.parametrize(
    ("error", "first", "last"),
    [
        (ValueError("bad\nworse\n"), "ValueError: bad", "worse"),
        (KeyError(), "KeyError", "KeyError"),
        (RuntimeError("x" * 500), f"RuntimeError: {'x' * 200}", f"{'x' * 117}..."),
        (MemtoolError("a: is wrong"), "MemtoolError: a: is wrong", "a: is wrong"),
    ],
)
def test_errors_in_one_line(error, first, last):
    assert one_line(error) == first and last_line(error) == last


@pytest.mark.parametrize("needed", [0, 1, 1023, 1025, 118_000_000, 2**27, 2**30 - 1, 2**30 + 1])
def test_who_allows_for_a_told_size_allows_for_enough_and_little_more(needed):
    allowed, there = (size(told_size(needed, up).replace(" ", "")) for up in (True, False))
    assert there <= needed <= allowed
    assert allowed - there <= max(needed / 10, 103)
