"""Pickles as inert values: nothing in them runs, whatever operations they are made of."""

import argparse
import copyreg
import io
import pickle
import pickletools
import struct
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memtool import MemtoolError
from memtool.checkpoints import pickles
from memtool.checkpoints.conversion import unpickle
from memtool.checkpoints.pickles import OPERATIONS, Call, Name, Reference, read

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner)
    | st.tuples(inner, inner) | st.tuples(inner) | st.just(()) | st.tuples(inner, inner, inner),
)  # fmt: skip


def value_of(content: bytes) -> object:
    return read(io.BytesIO(content))[0]


@given(VALUES, st.integers(3, 5))
def test_plain_values_are_what_they_were(value, protocol):
    assert value_of(pickle.dumps(value, protocol)) == value


@given(st.lists(st.integers() | st.text() | st.booleans() | st.floats(allow_nan=False)))
def test_old_protocols(value):
    """Which have no bytes of their own."""
    for protocol in (0, 1, 2):
        assert value_of(pickle.dumps({"a": value}, protocol)) == {"a": value}


def test_every_operation_has_its_meaning():
    known = OPERATIONS.keys() | {"STOP", "NEXT_BUFFER", "READONLY_BUFFER"}
    assert {operation.name for operation in pickletools.opcodes} <= known


def test_what_the_values_share_they_still_share():
    shared = [1]
    value = value_of(pickle.dumps({"a": shared, "b": (shared, shared)}))
    assert value["a"] is value["b"][0] is value["b"][1]
    cycle: list[object] = []
    cycle.append(cycle)
    value = value_of(pickle.dumps(cycle))
    assert value[0] is value


def test_objects_are_calls_that_remember():
    value = value_of(pickle.dumps(argparse.Namespace(lr=0.1)))
    assert value.state == {"lr": 0.1}
    assert Name("argparse", "Namespace") in (value.function, *value.arguments)


# --- Nothing runs ---------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def attacks(path: Path) -> dict[str, bytes]:
    """Pickles that make the file `path` when they are run, each by another operation."""
    command, code = f"touch {path}", f"open({str(path)!r}, 'w').close()"
    system = b"cposix\nsystem\n"
    return {
        "REDUCE": system + text(command) + b"\x85R.",
        "REDUCE of eval": b"cbuiltins\neval\n" + text(code) + b"\x85R.",
        "REDUCE of exec": b"cbuiltins\nexec\n" + text(code) + b"\x85R.",
        "STACK_GLOBAL": text("posix") + text("system") + b"\x93" + text(command) + b"\x85R.",
        "an attribute": b"\x80\x04" + text("os") + text("path.os.system") + b"\x93"
        + text(command) + b"\x85R.",
        "INST": b"(" + text(command) + b"iposix\nsystem\n.",
        "OBJ": b"(" + system + text(command) + b"o.",
        "Python 2": b"\x80\x02c__builtin__\neval\n" + text(code) + b"\x85R.",
        "NEWOBJ": b"cmemtool_test_evil\nOnNew\n" + text(str(path)) + b"\x85\x81.",
        "NEWOBJ_EX": b"cmemtool_test_evil\nOnNew\n" + text(str(path)) + b"\x85}\x92.",
        "BUILD": b"cmemtool_test_evil\nOnState\n)\x81" + text(str(path)) + b"b.",
        "SETITEM": b"cmemtool_test_evil\nOnItem\n)\x81" + text(str(path)) + b"Ns.",
        "SETITEMS": b"cmemtool_test_evil\nOnItem\n)\x81(" + text(str(path)) + b"Nu.",
        "APPEND": b"cmemtool_test_evil\nOnItem\n)\x81" + text(str(path)) + b"a.",
        "APPENDS": b"cmemtool_test_evil\nOnItem\n)\x81(" + text(str(path)) + b"e.",
        "ADDITEMS": b"cmemtool_test_evil\nOnItem\n)\x81(" + text(str(path)) + b"\x90.",
        "a key": b"}cmemtool_test_evil\nOnHash\n" + text(str(path)) + b"\x85\x81Ns.",
        "GLOBAL imports": b"cmemtool_test_evil\nanything\n.",
        "EXT1": b"\x82\xf0" + text(command) + b"\x85R.",
        "PERSID": b"P" + code.encode() + b"\n.",
        "a method": b"coperator\nmethodcaller\n" + text("touch") + b"\x85R"
        b"cpathlib\nPath\n" + text(str(path)) + b"\x85R\x85R.",
    }  # fmt: skip


EVIL = """
import pathlib
pathlib.Path({path!r}).touch()
class OnNew:
    def __new__(cls, path): pathlib.Path(path).touch(); return object.__new__(cls)
class OnState:
    def __setstate__(self, path): pathlib.Path(path).touch()
class OnItem:
    def __setitem__(self, path, value): pathlib.Path(path).touch()
    def append(self, path): pathlib.Path(path).touch()
    add = append
class OnHash(OnNew):
    def __init__(self, path): self.path = path
    def __hash__(self): pathlib.Path(self.path).touch(); return 0
"""


@pytest.fixture
def evil(tmp_path, monkeypatch) -> Iterator[Path]:
    """The path that attacks make, and a module to import whose import makes it as well."""
    path = tmp_path / "ran"
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "memtool_test_evil.py").write_text(EVIL.format(path=str(path)))
    monkeypatch.syspath_prepend(folder)
    copyreg.add_extension("posix", "system", 0xF0)
    yield path
    copyreg.remove_extension("posix", "system", 0xF0)


@pytest.mark.parametrize("name", attacks(Path("x")))
def test_nothing_runs(run, evil, tmp_path, name):
    content = attacks(evil)[name]
    file = tmp_path / "weights.pth"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    contents = (
        content,  # alone
        b"}" + text("state_dict") + content[:-1] + b"s.",  # where the weights are wanted
        b"}" + text("x") + rebuild + b"(" + content[:-1] + b"K\0K\1\x85K\1\x85tRs.",  # as a storage
    )
    for content in contents:
        file.write_bytes(b"\x80\x04" + content)
        result = run("convert", file, "-o", tmp_path / "out.safetensors")
        assert result.code == 1 and result.stderr.count("\n") == 1
        assert not evil.exists() and "memtool_test_evil" not in sys.modules


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", attacks(Path("x")))
def test_they_would_run_elsewhere(evil, name):
    """In an unpickler that does what it is told."""
    file = io.BytesIO(b"\x80\x04" + attacks(evil)[name])
    try:
        Victim(file).load()
    except Exception:
        pass
    finally:
        sys.modules.pop("memtool_test_evil", None)
    assert evil.exists()


class Victim(pickle._Unpickler):  # the one in Python
    def persistent_load(self, pid: str) -> object:
        return eval(pid)


# --- Broken and absurd ----------------------------------------------------------------------------


@given(st.binary(max_size=60))
def test_noise_raises_what_it_may(content):
    try:
        value_of(content)
    except (ValueError, IndexError, KeyError, TypeError):
        pass


@cache  # the old format has addresses in memory, of more digits or fewer each time
def saved(zipped):
    buffer = io.BytesIO()
    content = {"state_dict": {"a": torch.ones(3, 2), "b": torch.zeros(2)}, "args": {"lr": 0.1}}
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@given(st.data())
def test_a_file_with_other_bytes_is_read_or_refused(tmp_path_factory, data):
    """One byte of it, or a few, are others; then it is cut."""
    changed = bytearray(saved(data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed.pth"
    path.write_bytes(changed[: data.draw(st.integers(len(changed) // 2, len(changed)))])
    try:
        unpickle(path)
    except MemtoolError as error:
        assert str(error).startswith(f"{path}: ")


def test_more_operations_than_a_network_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_OPERATIONS", 100)
    assert value_of(b"(" + b"]" * 97 + b"l.") == [[]] * 97
    path = tmp_path / "lists.pth"
    path.write_bytes(b"\x80\x02(" + b"]" * 98 + b"l.")
    with pytest.raises(MemtoolError, match="lists.pth: .*more than 100 operations"):
        unpickle(path)


DEPTH = 200_000
DEEP = {
    "lists": b"]" * DEPTH + b"a" * (DEPTH - 1) + b".",
    "tuples": b")" + b"\x85" * DEPTH + b".",
    "dicts": b"}N" * DEPTH + b"N" + b"s" * DEPTH + b".",
    "calls": b"cx\ny\n" + b")R" * DEPTH + b".",
    "objects": b"cx\ny\n" + b")R(" * 1 + b"N" + b"\x85" * DEPTH + b"b0.",
    "tuples as a key": b"})" + b"\x85" * DEPTH + b"Ns.",
    "tuples in a set": b"\x8f()" + b"\x85" * DEPTH + b"\x90.",
    "tuples frozen": b"()" + b"\x85" * DEPTH + b"\x91.",
}


@pytest.mark.parametrize("content", DEEP.values(), ids=DEEP)
def test_depth_does_no_harm(tmp_path, content):
    path = tmp_path / "deep.pth"
    path.write_bytes(b"\x80\x04" + content)
    with pytest.raises(MemtoolError, match="deep.pth: "):
        unpickle(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x05\x8e" + struct.pack("<Q", 2**62) + b"x.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**50) + b"x.",
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
        b"\x80\x04N\x72" + struct.pack("<I", 2**32 - 1) + b".",
        b"\x80\x05\x97.",
        b"\x80\x07.",
        b"\x80\x04",
        b"\x80\x04.",
    ],
)  # fmt: skip
def test_sizes_that_lie(tmp_path, content):
    path = tmp_path / "lie.pth"
    path.write_bytes(content)
    with pytest.raises(MemtoolError, match="lie.pth: "):
        unpickle(path)


def test_references_are_told():
    value, references = read(io.BytesIO(b"\x80\x02" + text("a") + text("b") + b"\x86Q."))
    assert isinstance(value, Reference) and references == [value]
    assert value.id == ("a", "b")
    value, references = read(io.BytesIO(b"(" + text("module") + b"ca\nb\nNNtQ)R."))
    assert isinstance(value, Call) and value.function == Name("a", "b") and references == []
