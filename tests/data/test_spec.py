"""Data set specs: options, what is refused, and what is recorded."""

import pytest

from memtool.data.spec import Options, parse, with_options


def test_flags_become_options_of_the_spec() -> None:
    assert with_options("folder:x", image_size=None) == "folder:x"
    spec = with_options("folder:a?b?split_at=80%", image_size=8, split_at="0.5")
    assert spec == "folder:a?b?split_at=0.5&image_size=8"
    source, options = parse(spec)
    assert source == "folder:a?b"
    assert options == Options(image_size=8, split_at=0.5)


@pytest.mark.parametrize(
    ("text", "value"),
    [("80%", 0.8), ("0.25", 0.25), ("1000", 1000), ("1", 1)],
)
def test_split_at_is_a_part_or_a_number(text: str, value: float) -> None:
    assert parse(f"x?split_at={text}")[1].split_at == value


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("split_at=1.0", "part or the number"),
        ("split_at=120%", "part or the number"),
        ("split_at=nan", "part or the number"),
        ("image_size=0", "whole number"),
        ("samples=-3", "whole number"),
        ("samples=", "whole number"),
        ("samples", "no ="),
        ("mean=0.5,x", "separated by commas"),
        ("std=0", "positive"),
        ("size=3", "there are: image_size"),
        ("image_size=8&crop_pct=0", "from 0.1 to 2"),
        ("image_size=8&crop_pct=nan", "from 0.1 to 2"),
        ("image_size=8&crop_pct=87", "from 0.1 to 2"),
        ("image_size=8&crop_mode=middle", "crop_mode is center, squash, border, not 'middle'"),
        ("image_size=8&interpolation=random", "nearest, bilinear, bicubic"),
        ("image_size=1&crop_pct=1.1", "image_size=1 divided by crop_pct=1.1 is no pixel"),
        ("crop_pct=0.9", "crop_pct is for resizing; say to what size"),
        ("interpolation=bicubic", "interpolation is for resizing; say to what size"),
        ("image_size=8&crop_mode=border", "say what that is (mean=0.5)"),
        ("image_size=8&crop_mode=border", "in color for each channel (mean=0.5,0.5,0.5)"),
    ],
)
def test_options_out_of_range_are_refused(query: str, told: str, refused) -> None:
    assert told in refused(f"digits?{query}")


@pytest.mark.parametrize(
    "spec",
    [
        "digits",
        "digits?",
        "folder:a?b?",
        "folder:photos?image_size=64&split_at=80%",
        "folder:a%20b?mean=0.5%2C0.5",
    ],
)
def test_a_spec_without_flags_is_recorded_as_it_was_typed(spec: str) -> None:
    assert with_options(spec) == with_options(spec, samples=None) == spec


def test_escapes_are_decoded_when_read_and_kept_when_recorded() -> None:
    spec = with_options("folder:a%20b?mean=0.5%2C0.25", split_at="80%", image_size=64)
    assert spec == "folder:a%20b?mean=0.5%2C0.25&split_at=80%&image_size=64"
    source, options = parse(spec)
    assert source == "folder:a%20b"
    assert options == Options(image_size=64, split_at=0.8, mean=[0.5, 0.25])
