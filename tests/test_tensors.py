"""Files that lie, and metadata: read without harm, or one error."""

import json
import pickle
import shlex
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from memtool import MemtoolError
from memtool.checkpoints import Checkpoint
from memtool.models import nets
from memtool.tensors import (
    check_kept,
    find_metadata,
    load_tensors,
    read_metadata,
    save_tensors,
    stored_tensors,
)


def crafted(path: Path, header: object, body: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file byte by byte: the header's length, the header as JSON, the tensors."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def with_metadata(path: Path, text: str) -> Path:
    """A file of one small tensor with `text` as its memtool metadata."""
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return crafted(path, {"__metadata__": {"memtool": text}, "x": tensor}, b"\0\0\0\0")


def tensor(shape: list[int], start: int, end: int, type_: str = "F32") -> dict[str, object]:
    return {"dtype": type_, "shape": shape, "data_offsets": [start, end]}


HEADERS = {
    "a tensor of 2^60 elements": {"x": tensor([2**60], 0, 4)},
    "2^60 elements and offsets to match": {"x": tensor([2**60], 0, 2**62)},
    "a product of sizes beyond 64 bits": {"x": tensor([2**40, 2**40], 0, 4)},
    "offsets beyond the end": {"x": tensor([1], 4, 8)},
    "offsets that go backwards": {"x": tensor([1], 4, 0)},
    "offsets that overlap": {"x": tensor([1], 0, 4), "y": tensor([1], 0, 4)},
    "offsets with a hole": {"x": tensor([1], 8, 12)},
    "negative sizes": {"x": tensor([-1], 0, 4)},
    "a type that does not exist": {"x": tensor([1], 0, 4, "F31")},
    "a header that is a list": [],
    "metadata that are no text": {"__metadata__": {"memtool": {}}, "x": tensor([1], 0, 4)},
    "half a header": b'{"x": {"dtype": "F32", "sha',
    "bytes that are no text": b"\xff\xfe\xfd",
    "a deep header": b"[" * 100_000,
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies_is_one_error(run, tmp_path, header):
    path = crafted(tmp_path / "lie.safetensors", header, b"\0\0\0\0")
    for command in (("info", path), ("info", "--layers", path), ("cka", path, path)):
        result = run(*command)
        assert result.code == 1
        assert result.stderr.startswith(f"memtool: error: {path}: ")
        assert "not a safetensors file, or damaged" in result.stderr or "cut short" in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("length", [0, 7, 2**40, 2**63, 2**64 - 1])
def test_a_length_of_the_header_that_lies_is_one_error(run, tmp_path, length):
    path = crafted(tmp_path / "lie.safetensors", {"x": tensor([1], 0, 4)}, b"\0\0\0\0", length)
    result = run("info", path)
    assert result.code == 1 and "not a safetensors file" in result.stderr
    assert result.stderr.count("\n") == 1


def test_noise_is_one_error(run, tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(bytes(range(131, 256)) * 9)
    result = run("info", path)
    assert result.code == 1
    assert f"{path}: not a safetensors file, or damaged (" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_folder_and_a_file_that_is_not_there(run, tmp_path):
    assert f"{tmp_path}: " in run("info", tmp_path).stderr
    assert f"{tmp_path / 'no'}: no such file" in run("info", tmp_path / "no").stderr


def test_a_pickle_is_told_by_its_first_bytes(run, tmp_path):
    for content in (pickle.dumps({}), None):
        path = tmp_path / "weights.pth"
        path.write_bytes(content) if content else torch.save({}, path)
        result = run("info", path)
        assert result.code == 1
        assert f"memtool convert {path} -o {path.with_suffix('.safetensors')}" in result.stderr


@pytest.mark.parametrize("is_listed", [False, True])
def test_the_command_for_a_pickle_called_safetensors_works(run, tmp_path, is_listed):
    path = tmp_path / "a b.safetensors"
    torch.save(nets.digits_cnn(4).state_dict(), path)
    if is_listed:
        names = dict.fromkeys(nets.digits_cnn(4).state_dict(), path.name)
        path = tmp_path / "a b.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": names}))
    command = shlex.split(run("info", path).stderr.partition(": memtool ")[2])
    assert command[-1] == str(tmp_path / "a b.converted.safetensors")
    assert run(*command).code == 0 and run("info", command[-1]).code == 0


METADATA = {
    "not JSON": "{",
    "another type": "3",
    "a list": "[]",
    "deep": "[" * 90_000 + "]" * 90_000,
    "deep beyond use": '{"kind": "checkpoint", "format": 1, "x": ' + "[" * 200 + "]" * 200 + "}",
    "no kind": '{"format": 1}',
    "no format": '{"kind": "checkpoint"}',
    "a number that is none": '{"kind": "checkpoint", "format": 1, "x": NaN}',
    "a number beyond all": '{"kind": "checkpoint", "format": 1, "x": 1e999}',
    "a whole number beyond all": '{"kind": "checkpoint", "format": ' + "9" * 5000 + "}",
    "a million lists": '{"x": [' + "[]," * 1_000_000 + "[]]}",
}


@pytest.mark.parametrize("text", METADATA.values(), ids=METADATA)
def test_absurd_metadata_are_one_error(run, tmp_path, text):
    path = with_metadata(tmp_path / "absurd.safetensors", text)
    for command in (("info", path), ("cka", path, path)):
        result = run(*command)
        assert result.code == 1
        assert result.stderr.startswith(f"memtool: error: {path}: its memtool metadata")
        assert result.stderr.count("\n") == 1 and len(result.stderr) < 500


def test_metadata_of_forty_megabytes_cost_no_more_than_their_text(tmp_path):
    path = with_metadata(tmp_path / "huge.safetensors", '{"x": [' + "1.5," * 10_000_000 + "1]}")
    tracemalloc.start()
    with pytest.raises(MemtoolError, match="absurdly large"):
        read_metadata(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * path.stat().st_size


def test_a_later_format_is_told(tmp_path):
    path = with_metadata(tmp_path / "new.safetensors", '{"kind": "checkpoint", "format": 2}')
    with pytest.raises(MemtoolError, match="is of format 2, this memtool reads up to 1; update"):
        Checkpoint.open(path)


def test_an_empty_tensor_may_have_any_shape(run, tmp_path):
    """safetensors lets it pass: it takes no bytes."""
    path = crafted(tmp_path / "empty.safetensors", {"x": tensor([2**60, 0], 0, 0)})
    assert run("info", path).code == 0
    assert run("info", "--layers", path).code == 1
    save_file({"x": torch.zeros(3)}, path)
    assert run("info", "--layers", path).code == 1


def test_what_is_written_is_read_and_equal_content_gives_equal_bytes(tmp_path):
    tensors = {"a": torch.rand(3, 4), "b": torch.arange(5)}
    tensors["shared"] = tensors["a"]
    metadata = {"x": {"b": 1.5, "a": [1, "two", None]}, "w": 0}
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_tensors(first, "other", tensors, metadata)
    save_tensors(second, "other", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert first.read_bytes() == second.read_bytes()
    found = load_tensors(first)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert {name: stored.shape for name, stored in stored_tensors(first).items()} == {
        "a": (3, 4),
        "b": (5,),
        "shared": (3, 4),
    }
    assert read_metadata(first) == {"format": 1, "kind": "other", **metadata}


def test_a_file_without_metadata_is_none_of_ours(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(3)}, path)
    assert find_metadata(path) is None
    with pytest.raises(MemtoolError, match="has no memtool metadata; memtool did not write it"):
        read_metadata(path)


def test_a_file_of_another_kind_is_told(runs):
    with pytest.raises(MemtoolError, match="is a labels file, not a checkpoint file"):
        read_metadata(runs.noisy_labels, "checkpoint")


def test_tensors_in_one_memory_are_written_separately(tmp_path):
    whole = torch.arange(12.0)
    tensors = {
        "whole": whole,
        "same": whole,
        "rows": whole.view(3, 4)[1:],
        "columns": whole.view(3, 4)[:, 1:],
        "last": whole.view(1, 3, 2, 2).contiguous(memory_format=torch.channels_last),
        "empty": torch.zeros(0),
        "none": torch.zeros(0, 3),
    }
    save_tensors(tmp_path / "x.safetensors", "state", tensors, {})
    found = load_tensors(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    long = {"model": {"name": "x" * 60_000_000, "options": {}}, "data": {}, "training": {}}
    with pytest.raises(MemtoolError, match="its memtool metadata is absurdly large"):
        check_kept(tmp_path / "x.safetensors", "checkpoint", long)
