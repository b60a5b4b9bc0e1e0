"""Specs as text: where options begin, what an escape is, and that nothing is lost on the way."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memtool import MemtoolError, specs
from memtool.models.spec import ModelSpec

# Half of a surrogate pair can come out of JSON, and into a file's metadata.
any_text = st.text(st.characters())
names = any_text.filter(lambda name: not name.endswith(".json") and ".py:" not in name)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | any_text,
    lambda inner: st.lists(inner) | st.dictionaries(any_text, inner),
    max_leaves=4,
)


@pytest.mark.parametrize(
    "spec, name, options",
    [
        ("digits", "digits", {}),
        ("digits?", "digits", {}),
        ("", "", {}),
        ("resnet18?width=16&num_classes=10", "resnet18", {"width": "16", "num_classes": "10"}),
        ("folder:a?b?c=1", "folder:a?b", {"c": "1"}),
        ("folder:a?b?", "folder:a?b", {}),
        ("x?a=b=c&d=", "x", {"a": "b=c", "d": ""}),
        ("x?&a=1&&b=2&", "x", {"a": "1", "b": "2"}),
        ("x?a=1&b=2&a=3", "x", {"a": "3", "b": "2"}),
        ("x?a=1%262&b%3d=%3F", "x", {"a": "1&2", "b=": "?"}),
        ("x?split_at=80%", "x", {"split_at": "80%"}),
        ("x?split_at=80%25&a=%zz%2", "x", {"split_at": "80%", "a": "%zz%2"}),
        ("x?a=1+2", "x", {"a": "1+2"}),
        ("x?a=%C3%A9%E9", "x", {"a": "%C3%A9%E9"}),
        ("x?a=\u00e9%C3%A9", "x", {"a": "\u00e9\u00e9"}),
        ("folder:100%25/a%26b", "folder:100%25/a%26b", {}),
        ("folder:100%25?a=1", "folder:100%25", {"a": "1"}),
    ],
)
def test_a_spec_is_a_name_and_options(spec: str, name: str, options: dict[str, str]) -> None:
    assert specs.parse(spec, "data set") == (name, options)


def test_options_as_typed_keep_their_escapes() -> None:
    spec = "folder:x?a=1%262&split_at=80%"
    assert specs.split(spec, "data set") == ("folder:x", {"a": "1%262", "split_at": "80%"})
    assert specs.join(*specs.split(spec, "data set")) == spec


@pytest.mark.parametrize("kind", ["model", "data set"])
def test_an_option_without_a_value_is_an_error_that_names_both(kind: str) -> None:
    with pytest.raises(MemtoolError, match=f"^{kind} 'a\\?b': options go as NAME.* 'b' has no ="):
        specs.parse("a?b", kind)


@given(any_text, st.dictionaries(any_text, any_text))
def test_names_and_options_survive_as_text(name: str, options: dict[str, str]) -> None:
    encoded = {specs.encoded(key): specs.encoded(value) for key, value in options.items()}
    assert specs.parse(specs.join(name, encoded), "data set") == (name, options)


@given(any_text)
@example("%")
@example("a b+c&d=e?f#g%26")
def test_encoded_text_is_plain(text: str) -> None:
    assert specs.encoded(text).isascii()
    assert not set(specs.encoded(text)) & set("?&=+# \t\n\"'")


@given(names, st.dictionaries(any_text, values))
@example("resnet18", {"width": "16", "kind": "true", "a": "True", "b": "NaN", "c": '"x"', "d": ""})
@example("what?/x", {})
def test_model_specs_survive_as_text(name: str, options: dict[str, object]) -> None:
    spec = ModelSpec(name, options)
    found = ModelSpec.parse(str(spec))
    assert (found.name, found.options) == (name, options)
    # 1 and True and 1.0 are equal in Python, and other things in JSON.
    assert json.dumps(found.options, sort_keys=True) == json.dumps(options, sort_keys=True)


def test_text_nested_too_deep_for_json_is_a_string() -> None:
    assert ModelSpec.parse(f"x?a={'[' * 100_000}").options == {"a": "[" * 100_000}
