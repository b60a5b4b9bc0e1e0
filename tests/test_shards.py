"""Weights in several files: read as one through their index, or refused with the reason."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from memtool import MemtoolError
from memtool.models import nets
from memtool.shards import check_whole, shards_of
from memtool.tensors import files_of, find_metadata, load_tensors, stored_tensors

MODEL = ("--model", "digits-cnn")
DATA = ("--data", "digits")
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def sharded(folder: Path, seed: int = 0) -> Path:
    """The index of a network whose weights are in two files."""
    torch.manual_seed(seed)
    weights = nets.digits_cnn(10).state_dict()
    names = list(weights)
    parts = {FIRST: names[:9], SECOND: names[9:]}
    folder.mkdir(exist_ok=True)
    for file, some in parts.items():
        save_file({name: weights[name] for name in some}, folder / file, {"format": "pt"})
    save_file(weights, folder / "whole.safetensors")
    files = {name: file for file, some in parts.items() for name in some}
    return index(folder, files)


def index(folder: Path, files: object) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    return path


def files_in(path: Path) -> dict[str, str]:
    return json.loads(path.read_text())["weight_map"]


def test_the_index_stands_for_all_its_tensors(tmp_path):
    path = sharded(tmp_path)
    whole = load_file(tmp_path / "whole.safetensors")
    assert files_of(path) == [tmp_path / FIRST, tmp_path / SECOND]
    assert find_metadata(path) is None
    tensors = load_tensors(path)
    assert tensors.keys() == whole.keys() == stored_tensors(path).keys()
    assert all(torch.equal(tensors[name], whole[name]) for name in whole)


def cells(stdout: str) -> list[list[str]]:
    return [line.split(",")[2:] for line in stdout.splitlines()]


@pytest.mark.parametrize("name", ["cka", "stitch"])
def test_commands_give_what_they_give_of_one_file(run, tmp_path, name):
    a, b = sharded(tmp_path / "a"), sharded(tmp_path / "b", seed=1)
    whole = [path.with_name("whole.safetensors") for path in (a, b)]
    options = {
        "cka": ("--layers", "block*"),
        "stitch": ("--at", "block2,block5", "--epochs", "0"),
    }[name]
    sharded_result = run(name, a, b, *options, *DATA, *MODEL)
    whole_result = run(name, *whole, *options, *DATA, *MODEL)
    assert sharded_result.code == whole_result.code == 0, sharded_result.stderr
    assert cells(sharded_result.stdout) == cells(whole_result.stdout)
    assert str(a) in sharded_result.stdout


def test_info_and_convert(run, tmp_path):
    path, new = sharded(tmp_path), tmp_path / "new.safetensors"
    [row] = map(json.loads, run("info", path, "--format", "jsonl").stdout.splitlines())
    assert row["model"].startswith("digits-cnn") and row["model_from"] == "tensors"
    assert row["tensors"] == len(files_in(path))
    assert row["bytes"] == sum((tmp_path / part).stat().st_size for part in (FIRST, SECOND))
    assert run("info", "--layers", path).code == 0
    result = run("convert", path, "-o", new)
    assert result.code == 0, result.stderr
    whole = load_file(tmp_path / "whole.safetensors")
    assert all(torch.equal(value, whole[name]) for name, value in load_file(new).items())


def test_a_stopped_sweep_knows_its_networks_by_all_their_files(run, tmp_path):
    from memtool.stitching.unfinished import _digest

    path = sharded(tmp_path / "a")
    before = _digest(path)
    assert before == _digest(sharded(tmp_path / "b"))
    save_file({name: value + 1 for name, value in load_file(tmp_path / "a" / SECOND).items()},
              tmp_path / "a" / SECOND)  # fmt: skip
    assert _digest(path) != before


@pytest.mark.parametrize(
    "file",
    [
        "../b/x.safetensors",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a/b",
        "a\\b",
        "x\0y",
        "x" * 256,
        "数" * 99,
        "\ud800",
    ],
)
def test_files_elsewhere_are_refused(tmp_path, file):
    path = sharded(tmp_path)
    index(tmp_path, {**files_in(path), "fc.weight": file})
    with pytest.raises(MemtoolError, match="'fc.weight' is in .*, which is no file beside it"):
        shards_of(path)


def test_a_link_beside_the_index_is_followed(tmp_path):
    """Caches of downloads are made of links."""
    path = sharded(tmp_path)
    (tmp_path / "blobs").mkdir()
    (tmp_path / SECOND).rename(tmp_path / "blobs" / "4d7a")
    (tmp_path / SECOND).symlink_to("blobs/4d7a")
    assert len(load_tensors(path)) == len(files_in(path))


BROKEN = {
    "not JSON": ("{", "not an index of shards"),
    "empty": ("", "is an empty file; download"),
    "a page": ("<!doctype html><title>Sign in</title>", "is a web page ('Sign in')"),
    "a pointer": ("version https://git-lfs.github.com/spec/v1\nsize 3\n", "git lfs pull"),
    "a list": ("[]", "it has no weight_map"),
    "no map": ('{"weight_map": {}}', "it has no weight_map"),
    "numbers": ('{"weight_map": {"a": 1}}', "it has no weight_map"),
    "a name twice": ('{"weight_map": {"a": "x", "a": "y"}}', "it has 'a' twice"),
    "deep": ("[" * 200_000, "not an index of shards"),
    "a missing file": (
        '{"weight_map": {"a": "model-00003-of-00003.safetensors"}}',
        "1 of its 1 files is missing (model-00003-of-00003.safetensors)",
    ),
}


@pytest.mark.parametrize("content, told", BROKEN.values(), ids=BROKEN)
def test_broken_indexes_are_one_line(run, tmp_path, content, told):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(content)
    convert = ("convert", path, "-o", tmp_path / "new.safetensors")
    for command in (("info", path), ("cka", path, path), convert):
        result = run(*command)
        assert result.code == 1 and result.stderr.count("\n") == 1
        assert result.stderr.startswith(f"memtool: error: {path}: ") and told in result.stderr


def test_files_that_are_not_as_the_index_says(run, tmp_path):
    path = sharded(tmp_path)
    files = files_in(path)
    first = {name: file for name, file in files.items() if name != "block1.conv.weight"}
    index(tmp_path, first)
    assert "in another file or in none" in run("info", "--layers", path).stderr
    index(tmp_path, {**files, "block1.conv.weight": SECOND})  # which has a tensor of this name not
    assert f"{SECOND}: has not the tensors" in run("info", "--layers", path).stderr
    index(tmp_path, {**files, "more": SECOND})
    assert "has not the tensors that model.safetensors.index.json" in run("info", path).stderr
    save_file({**load_file(tmp_path / SECOND), "block1.conv.weight": torch.zeros(1)},
              tmp_path / SECOND)  # fmt: skip
    index(tmp_path, files)  # the same tensor in two files
    result = run("info", "--layers", path)
    assert result.code == 1 and f"{SECOND}: has tensors" in result.stderr
    (tmp_path / SECOND).write_bytes(b"")
    assert f"{tmp_path / SECOND}: is an empty file" in run("info", "--layers", path).stderr


def test_one_part_alone_says_what_else_is_needed(run, tmp_path):
    path = sharded(tmp_path)
    for command in (("info", "--layers", tmp_path / FIRST), ("cka", tmp_path / FIRST, path)):
        result = run(*command)
        assert result.code == 1
        assert result.stderr == f"memtool: error: {tmp_path / FIRST}: is part 1 of 2; name {path}\n"
    path.unlink()
    (tmp_path / FIRST).unlink()
    told = f"put {FIRST}, model.safetensors.index.json beside it, and name {path}"
    assert told in run("info", "--layers", tmp_path / SECOND).stderr
    row = run("info", tmp_path / SECOND)
    assert row.code == 0 and ",safetensors," in row.stdout and told in row.stderr


def test_names_that_look_like_parts_and_are_none(runs, tmp_path):
    for name in ("model-00001-of-00001.safetensors", "epoch-3-of-life.safetensors", "x.pth"):
        check_whole(tmp_path / name)
    with pytest.raises(MemtoolError, match="is part 2 of 999999999; put .*, ... beside it"):
        check_whole(tmp_path / "x-2-of-999999999.bin")


def test_a_checkpoint_of_memtool_may_have_such_a_name(run, runs, tmp_path):
    path = tmp_path / "noise-00001-of-00002.safetensors"
    path.write_bytes(runs.clean.read_bytes())
    assert run("info", "--layers", path).code == 0
