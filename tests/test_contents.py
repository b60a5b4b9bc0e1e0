"""Files that are not what they are called: each is told by its first bytes, with its way out."""

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from memtool.contents import described, is_pickle, limited


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


def tarred(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def arrays(**values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **values)
    return buffer.getvalue()


WEIGHTS = save({"weight": torch.zeros(3, 4), "bias": torch.zeros(3)})
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 46830571\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>\n Sign in </title></head></html>"
KINDS: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "an empty file", "download"),
    "zeros": (bytes(3000), "a file of zeros", "download"),
    "LFS": (POINTER, "a Git LFS pointer, which stands for a file of 46,830,571 b", "git lfs pull"),
    "LFS from Windows": (POINTER.replace(b"\n", b"\r\n"), "a Git LFS pointer", "git lfs pull"),
    "page": (PAGE, "a web page ('Sign in')", "login"),
    "page after blanks": (b"\xef\xbb\xbf\n\n  <html lang='de'>", "a web page", "login"),
    "XHTML": (b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "">', "a web page", "login"),
    "error of a store": (
        b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>',
        "XML ('AccessDenied')",
        "download",
    ),
    "HDF5": (b"\x89HDF\r\n\x1a\n\0\0", "an HDF5 file", "PyTorch"),
    "Keras": (zipped("metadata.json", "model.weights.h5"), "a Keras archive", "PyTorch"),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:", "an ONNX model", "PyTorch"),
    "SavedModel": (b"\x08\x01\x12\xd7\x01\n\x85", "a graph of TensorFlow", "PyTorch"),
    "TFLite": (b"\x1c\0\0\0TFL3\x14\0", "a TensorFlow Lite model", "PyTorch"),
    "index of TensorFlow": (
        b"\0\0\x01\x02" * 30 + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb",
        "the index of a TensorFlow checkpoint",
        "PyTorch",
    ),
    "Flax": (b"\x81\xa6params\x83", "a MessagePack file", "PyTorch"),
    "GGUF": (b"GGUF\x03\0\0\0", "a GGUF file", "PyTorch"),
    "npz": (arrays(a=np.zeros(3), b=np.ones(2)), "a NumPy archive of a.npy, b.npy", "another"),
    "npy": (b"\x93NUMPY\x01\0v\0", "a NumPy array", "another"),
    "gzip": (gzip.compress(b"x" * 99), "a file compressed by gzip", "gunzip"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x88", "a file compressed by zstd", "zstd -d"),
    "xz": (b"\xfd7zXZ\0\0\4", "a file compressed by xz", "xz -d"),
    "zip": (zipped("a/w.pth", "b", "c", "d"), "a zip archive of a/w.pth, b, c, ...", "unzip"),
    "half a zip": (zipped("a", "b")[:60], "a zip archive (as torch.save writes) that is", "copy"),
    "tar": (tarred("w.pth", "x"), "a tar archive of w.pth, x", "tar -xf"),
    "tar of PyTorch": (
        tarred("sys_info", "pickle", "storages", "tensors"),
        "a tar archive as PyTorch wrote before",
        "save it again",
    ),
    "export": (
        zipped("x/archive_format", "x/models/model.json"),
        "a program of torch.export",
        "torch.export.load",
    ),
    "pickle": (pickle.dumps({}), "a pickle of PyTorch's", "memtool convert"),
    "old pickle": (pickle.dumps({"a": 1}, protocol=0), "a pickle of PyTorch's", "memtool convert"),
    "JSON": (json.dumps({"num_classes": 3}).encode(), "JSON that begins with", "another"),
    "an error as JSON": (b'{"error":\n "no such file"}', '\'{"error": "no such file"}\'', "copy"),
    "UTF-16": ("some, text\n".encode("utf-16"), "text that begins with 'some, text'", "another"),
    "a few bytes": (WEIGHTS[:5], "a file of 5 bytes, cut short", "download"),
    "large Flax": (b"\xde\0\x28\xa6layer0", "a MessagePack file", "PyTorch"),
    "zlib": (zlib.compress(b"x" * 99), "a file compressed by zlib", "another"),
    "text": (
        b"Invalid username or password.",
        "text that begins with 'Invalid username or password.'",
        "download",
    ),
    "table": (
        b"epoch,loss,test_accuracy\r\n1,0.5,0.75\r\n",
        "columns epoch, loss, te",
        "memtool plot",
    ),
    "half a header of a table": (
        b"\t".join(b"column" for _ in range(400)),
        "a table",
        "memtool plot",
    ),
    "list": (b"oh,well, what,next\n", "text that begins with 'oh,well", "download"),
    "half of UTF-8": ("é".encode() * 1000 + b"\xc3", "text that begins with 'ééé", "download"),
    "half a header": (WEIGHTS[:40], "a safetensors file that is cut short (40 bytes of", "copy"),
    "half the tensors": (WEIGHTS[:-1], f"bytes of {len(WEIGHTS):,})", "download"),
    "PNG": (b"\x89PNG\r\n\x1a\n\0", "a PNG image", "another"),
    "Parquet": (b"PAR1\x15", "a Parquet file", "another"),
}


@pytest.mark.parametrize("content, what, way_out", KINDS.values(), ids=KINDS)
def test_what_a_file_is_and_the_way_out(tmp_path, content, what, way_out):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    told = described(path)
    assert told and what in told.partition(";")[0] and way_out in told.partition(";")[2]
    assert "\n" not in told and "{path}" not in told and "{target}" not in told
    assert is_pickle(path) == (told.startswith("a pickle of PyTorch's"))


@pytest.mark.parametrize("kind", ["LFS", "page", "HDF5", "ONNX", "zip", "half the tensors", "npz"])
@pytest.mark.parametrize("command", ["info", "layers", "cka", "stitch", "convert"])
def test_every_command_says_it_in_one_line(run, tmp_path, kind, command):
    content, what, _ = KINDS[kind]
    path, output = tmp_path / "model.safetensors", tmp_path / "new.safetensors"
    path.write_bytes(content)
    result = run(*{
        "info": ("info", path),
        "layers": ("info", "--layers", path, "--model", "resnet18"),
        "cka": ("cka", path, path, "--data", "digits"),
        "stitch": ("stitch", path, path, "--at", "all", "--data", "digits"),
        "convert": ("convert", path, "-o", output),
    }[command])  # fmt: skip
    assert result.code == 1 and result.stdout == "" and not output.exists()
    assert result.stderr == f"memtool: error: {path}: is {described(path)}\n"
    assert what in result.stderr


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_told_from_what_torch_save_writes(tmp_path):
    path = tmp_path / "traced.pt"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    told = described(path)
    assert told and told.startswith("a TorchScript archive; ") and f"'{path}'" in told
    assert not is_pickle(path)
    for old in (False, True):
        torch.save({"x": torch.zeros(1)}, path, _use_new_zipfile_serialization=not old)
        assert is_pickle(path)


def test_a_whole_safetensors_file_is_nothing_else(tmp_path):
    """Whatever its first bytes are: they count those of the header."""
    path = tmp_path / "x.safetensors"
    for length in (0x28, 0x280, 0x380, 0x480, 0x580, 0xA181, 0x6328):
        header = b"{}".ljust(length)
        path.write_bytes(length.to_bytes(8, "little") + header)
        assert described(path) is None and not is_pickle(path)


def test_weights_under_such_a_name_are_converted(run, tmp_path):
    """A header of 640 bytes begins as a pickle does."""
    text = json.dumps({"__metadata__": {"x": "y"}}).encode().ljust(640)
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    result = run("convert", path, "-o", tmp_path / "new.safetensors")
    assert result.code == 1 and "its 0 tensors" in result.stderr


FOLDERS = {
    "nothing": ([], "a folder; name a file"),
    "weights": (["config.json", "model.safetensors"], "name a file in it: {}/model.safetensors"),
    "shards": (
        ["model-00001-of-00001.safetensors", "model.safetensors.index.json", "pytorch_model.bin"],
        "name a file in it: {}/model.safetensors.index.json",
    ),
    "epochs": (["a.pth", "b.pth"], "name a file in it: {0}/a.pth or {0}/b.pth"),
    "SavedModel": (["saved_model.pb", "variables"], "a folder of TensorFlow's"),
    "distributed": (["__0_0.distcp", ".metadata"], "format_utils dcp_to_torch {} all.pth"),
    "unpacked": (["data.pkl", "version", "data"], "zip -0 -r {0}.pth {0}"),
}


@pytest.mark.parametrize("names, told", FOLDERS.values(), ids=FOLDERS)
def test_a_folder_says_which_file_may_be_meant(run, tmp_path, names, told):
    for name in names:
        (tmp_path / name).touch()
    for command in (("info", tmp_path), ("convert", tmp_path, "-o", tmp_path / "x.safetensors")):
        result = run(*command)
        assert result.code == 1 and result.stderr.count("\n") == 1
        assert told.format(tmp_path) in result.stderr


def test_data_are_not_told_how_to_become_weights(tmp_path):
    path = tmp_path / "images.npz"
    path.write_bytes(b"\x89HDF\r\n\x1a\n\0\0")
    assert described(path, weights=False) == "an HDF5 file (of Keras or h5py, say)"
    path.write_bytes(POINTER)
    assert described(path, weights=False) == described(path)


def test_what_is_not_there_or_no_file_is_not_read(tmp_path):
    assert described(tmp_path / "no") is None
    assert described(Path("/dev/zero")) is None


@pytest.mark.parametrize(
    "command",
    [
        ["plot", "FILE", "-o", "figure.svg"],
        ["make-noisy", "digits", "-r", "5%", "--kind", "matrix", "--matrix", "FILE", "-o", "OUT"],
        ["train", "--model", "FILE", "--data", "digits", "-o", "OUT", "--dry-run"],
    ],
    ids=lambda command: command[0],
)
def test_text_that_is_too_large_is_refused_unread(run, tmp_path, command):
    path = tmp_path / "absurd.json"
    with open(path, "wb") as file:
        file.truncate(2**42)
    out = str(tmp_path / "out.safetensors")
    ended = run(*[{"FILE": str(path), "OUT": out}.get(part, part) for part in command])
    assert (ended.code, ended.stdout) == (1, "")
    assert f"{path}: cannot be read" in ended.stderr and "is larger than" in ended.stderr


@pytest.mark.parametrize("most", [0, 10_000])
def test_a_file_without_an_end_is_read_up_to_the_limit(most):
    with open(os.devnull, "rb") as empty:
        assert limited(empty, most) == b""
    with (
        open("/dev/zero", "rb") as endless,
        pytest.raises(OSError, match=f"it is larger than {most / 1024:.1f} KiB"),
    ):
        limited(endless, most)
    assert limited(io.BytesIO(b"x" * most), most) == b"x" * most
