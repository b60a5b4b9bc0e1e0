"""Other people's exceptions in one line."""

import pytest

from memtool.errors import MemtoolError, last_line, one_line


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
