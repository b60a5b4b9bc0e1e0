"""What torch.save and pickle.dump wrote: every way of writing, and files that lie."""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from memtool import MemtoolError
from memtool.checkpoints import archives
from memtool.checkpoints.conversion import unpickle
from memtool.checkpoints.pickles import Name, Reference

torch.manual_seed(0)
BASE = torch.randn(6, 8)
CONTENT = {
    "whole": BASE,
    "same": BASE,
    "part": BASE[1:3, ::2],
    "transposed": BASE.t(),
    "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "expanded": torch.arange(3.0).expand(4, 3),
    "none": torch.empty(0, 3),
    "scalar": torch.tensor(3.5),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    **{
        str(type_): torch.tensor([0, 1, 1]).to(type_)
        for type_ in (
            *(torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64),
            *(torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool),
            *(torch.complex64, torch.complex128),
        )
    },
}


def pickled(content: object, path: Path, protocol: int) -> None:
    path.write_bytes(pickle.dumps(content, protocol))


WAYS: dict[str, Callable[[object, Path], None]] = {
    "zip": torch.save,
    "zip of protocol 4": partial(torch.save, pickle_protocol=4),
    "before 1.6": partial(torch.save, _use_new_zipfile_serialization=False),
    **{f"pickle of protocol {n}": partial(pickled, protocol=n) for n in range(6)},
}


@pytest.mark.parametrize("write", WAYS.values(), ids=WAYS)
def test_tensors_come_back_as_they_were(tmp_path, write):
    path = tmp_path / "weights.pth"
    write(CONTENT, path)
    found = unpickle(path)
    assert list(found) == list(CONTENT)
    for name, expected in CONTENT.items():
        assert found[name].dtype == expected.dtype and found[name].shape == expected.shape
        assert found[name].stride() == expected.stride() or expected.numel() < 2
        assert found[name].tolist() == expected.tolist(), name


def zipped(members: dict[str, bytes], path: Path, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def members(content: object) -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("folder", ["some/", ""])
def test_an_archive_that_was_packed_again(tmp_path, compression, folder):
    path = tmp_path / "again.pth"
    renamed = {f"{folder}{name}": content for name, content in members(CONTENT).items()}
    zipped(renamed, path, compression)
    assert torch.equal(unpickle(path)["whole"], BASE)


def test_an_archive_of_a_machine_whose_numbers_begin_with_their_highest_byte(tmp_path):
    types = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint16, torch.bool)
    types += (torch.complex64, torch.complex128, torch.float8_e4m3fn)
    tensors = {str(type_): torch.tensor([0, 1, 3]).to(type_) for type_ in types}
    content = members({**tensors, "part": tensors["torch.float32"][1:]})
    for number, tensor in enumerate(tensors.values()):
        part = tensor.real if tensor.is_complex() else tensor
        name = next(name for name in content if name.endswith(f"/data/{number}"))
        swapped = np.frombuffer(content[name], f"V{part.itemsize}")
        content[name] = b"".join(one.tobytes()[::-1] for one in swapped)
    order = next(name for name in content if name.endswith("/byteorder"))
    zipped({**content, order: b"big"}, tmp_path / "big.pth")
    found = unpickle(tmp_path / "big.pth")
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].tolist() == tensor.tolist(), name
    assert found["part"].tolist() == [1, 3]
    zipped({**content, order: b"middle"}, tmp_path / "big.pth")
    with pytest.raises(MemtoolError, match="its order of bytes is b'middle'"):
        unpickle(tmp_path / "big.pth")


def test_old_files_have_the_same_order_of_bytes_on_all_machines(tmp_path):
    path = tmp_path / "old.pth"
    path.write_bytes(old(path).replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))
    assert torch.load(path)["x"].tolist() == unpickle(path)["x"].tolist() == [0, 1, 2, 3]


def test_an_archive_without_checksums(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    torch.save(CONTENT, tmp_path / "x.pth")
    torch.serialization.set_crc32_options(before)
    assert torch.equal(unpickle(tmp_path / "x.pth")["part"], CONTENT["part"])


def test_a_damaged_archive_is_refused(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"x": torch.full((1000,), 1.5)}, path)
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<f", 1.5), struct.pack("<f", 2.5), 1))
    with pytest.raises(MemtoolError, match="cannot be read as a pickle .*CRC"):
        unpickle(path)


def test_more_pickles_than_one_are_told(tmp_path, caplog):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"x": torch.ones(1)}) + pickle.dumps({"y": 2}))
    with caplog.at_level("INFO"):
        assert list(unpickle(path)) == ["x"]
    assert "holds more than one pickle; only the first was read" in caplog.text


def test_an_old_file_holds_several_pickles_and_is_one(tmp_path, caplog):
    tensors = {name: torch.rand(3) for name in "abc"}
    torch.save(tensors, path := tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with caplog.at_level("INFO"):
        assert unpickle(path).keys() == tensors.keys()
    assert not caplog.records


# --- Files that lie -------------------------------------------------------------------------------


def changed(path: Path, find: bytes, replace: bytes) -> Path:
    """An archive of one tensor of 4 numbers in which `find` is replaced in its pickle."""
    content = members({"x": torch.arange(4.0)})
    name = next(name for name in content if name.endswith("/data.pkl"))
    assert find in content[name]
    content[name] = content[name].replace(find, replace, 1)
    zipped(content, path)
    return path


# The arguments begin with the storage of 4 numbers (K\x04tq\x07Q), offset 0 (K\x00), shape (4,)
# (K\x04\x85) and strides (1,).
LIES = {
    "a larger storage": (
        b"K\x04tq",
        b"M\xff\xfftq",
        "a storage of 16 bytes, not of 65,535 numbers of torch.float32",
    ),
    "an absurd one": (b"K\x04tq", b"\x8a\x07" + b"\x7f" * 7 + b"tq", "a storage of 16 bytes"),
    "a negative one": (b"K\x04tq", b"J\xff\xff\xff\xfftq", "has no storage as PyTorch"),
    "another type": (
        b"FloatStorage",
        b"DoubleStorage",
        "of 16 bytes, not of 4 numbers of torch.float64",
    ),
    "no type": (b"FloatStorage", b"OtherStorage", "lies in a OtherStorage"),
    "no such storage": (
        b"X\x01\0\0\x000",
        b"X\x01\0\0\x007",
        "lies in a storage that is not there ('7')",
    ),
    "a way out": (b"X\x01\0\0\x000", b"X\x0b\0\0\x00../data.pkl", "is not there"),
    "beyond the end": (b"QK\x00K\x04", b"QK\x01K\x04", "claims 4 numbers up to number 4 of"),
    "far beyond": (b"QK\x00K\x04", b"QJ\xff\xff\xff\x7fK\x04", "claims 4 numbers up to"),
    "before the start": (b"QK\x00K\x04", b"QJ\xff\xff\xff\xffK\x04", "no sensible shape"),
    "text": (b"QK\x00K\x04", b"QNK\x04", "no sensible shape"),
    "more dimensions": (b"K\x04\x85", b"K\x02K\x02\x86", "no sensible shape"),
    "more numbers": (b"K\x04\x85", b"M\xff\xff\x85", "claims 65,535 numbers up to number 65,534"),
}


@pytest.mark.parametrize("find, replace, told", LIES.values(), ids=LIES)
def test_a_tensor_that_lies_about_its_storage(tmp_path, find, replace, told):
    path = changed(tmp_path / "lie.pth", find, replace)
    with pytest.raises(MemtoolError) as error:
        unpickle(path)
    assert str(error.value).startswith(f"{path}: its tensor x ") and told in str(error.value)


def test_strides_of_0_make_no_terabytes(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"x": torch.ones(1).expand(2**20, 2**20)}, path)
    with pytest.raises(MemtoolError, match="its tensor x claims 1,099,511,627,776 numbers"):
        unpickle(path)


def test_a_zip_of_zeros_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.pth"
    content = members({"x": torch.zeros(2**24)})
    zipped(content, path, zipfile.ZIP_DEFLATED)
    with pytest.raises(MemtoolError, match="it unpacks to absurdly much"):
        unpickle(path)


def old(path: Path, **options: int) -> bytes:
    torch.save({"x": torch.arange(4.0)}, path, _use_new_zipfile_serialization=False)
    return path.read_bytes()


def test_old_files_that_lie(tmp_path):
    path = tmp_path / "old.pth"
    content = old(path)
    numbers = struct.pack("<q", 4) + struct.pack("<4f", 0, 1, 2, 3)
    assert content.endswith(numbers)
    lies = {
        content[:-1]: "cut short; download or copy it again",
        content[: -len(numbers)]: "of 0 bytes|cut short",
        content.replace(numbers, struct.pack("<q", 2**40) + numbers[8:]): "cut short",
        content.replace(numbers, struct.pack("<q", -1) + numbers[8:]): "cannot be read",
        content.replace(
            numbers, struct.pack("<q", 3) + numbers[8:]
        ): "of 12 bytes, not of 4 numbers",
        content.replace(b"M\xe9\x03.", b"M\xea\x03."): "is of version 1002",
    }
    for lie, told in lies.items():
        assert lie != content
        path.write_bytes(lie)
        with pytest.raises(MemtoolError, match=told):
            unpickle(path)


def test_old_files_whose_storages_are_parts_of_others(tmp_path):
    """As PyTorch before 0.4 wrote them: a reference may end with the part that is meant."""
    path = tmp_path / "old.pth"
    old(path)
    with archives.opened(path) as archive:
        name = Name("torch", "FloatStorage")
        [tensor] = archive.content.values()
        key = tensor.arguments[0].id[2]
        whole = ("storage", name, key, "cpu", 4)
        assert archive.storage(Reference(whole)).tolist() == [0, 1, 2, 3]
        assert archive.storage(Reference((*whole, None))).tolist() == [0, 1, 2, 3]
        assert archive.storage(Reference((*whole, ("part", 1, 2)))).tolist() == [1, 2]
        for part in (("part", 3, 2), ("part", -1, 2), ("part", 0, -1), ("part",), 3):
            with pytest.raises(ValueError, match="outside of its storage"):
                archive.storage(Reference((*whole, part)))
