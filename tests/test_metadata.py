"""The declared metadata: what memtool writes is declared, what is not as declared is refused."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from memtool import MemtoolError, data
from memtool.metadata import (
    HEADER,
    KINDS,
    METRICS,
    NOISE,
    TRAINING,
    Field,
    Fields,
    check,
    places,
)
from memtool.models import build, parse
from memtool.tables import FileRow, TrainingRow, columns
from memtool.tensors import read_metadata, save_tensors
from memtool.training import state
from memtool.training.evaluation import EpochMetrics, Metrics

NET = """
from torch import nn

def net(n):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, n))
"""
CONFIG = {
    "input_size": [1, 8, 8],
    "mean": [0.5],
    "std": [0.25],
    "crop_pct": 0.875,
    "crop_mode": "center",
    "interpolation": "bicubic",
}


@pytest.fixture(scope="module")
def written(run, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """The metadata of a file of every kind and of each way to make it, by its name."""
    root = tmp_path_factory.mktemp("written")
    images = np.random.default_rng(0).integers(0, 256, (32, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(32) % 4
    parts = {"train_images": images, "train_labels": labels}
    parts |= {"test_images": images[::2], "test_labels": labels[::2]}
    np.savez(root / "set.npz", **parts)
    np.save(root / "given.npy", labels)
    np.savetxt(root / "matrix.csv", np.eye(4)[[1, 0, 2, 3]], delimiter=",")
    (root / "net.py").write_text(NET)
    torch.manual_seed(0)
    save_file(build(parse("digits-cnn?num_classes=4")).state_dict(), root / "foreign.safetensors")
    (root / "config.json").write_text(json.dumps({"pretrained_cfg": CONFIG}))

    def made(*command: object) -> None:
        result = run(*(str(part).replace("ROOT", str(root)) for part in command))
        assert result.code == 0, result.stderr

    for part in ("train", "test"):
        for label in range(4):
            path = root / f"deep/{part}/{label}/x.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(1000 + images[label, 0].astype(np.uint16)).save(path)
    noisy = ("make-noisy", "ROOT/set.npz", "-o")
    made(*noisy, "ROOT/uniform.safetensors", "-r", "50%")
    made(*noisy, "ROOT/matrix.safetensors", "-r", "50%", "--matrix", "ROOT/matrix.csv")
    made(*noisy, "ROOT/given.safetensors", "--from", "ROOT/given.npy")
    made("make-noisy", "folder:ROOT/deep", "-o", "ROOT/deep.safetensors", "-r", "50%")
    train = ("train", "--data", "ROOT/set.npz", "--epochs", 1, "-o")
    cnn = ("--model", "digits-cnn")
    made("train", "--data", "folder:ROOT/deep", "--epochs", 0, *cnn, "-o", "ROOT/dark.safetensors")
    made(*train, "ROOT/cnn.safetensors", *cnn, "--labels", "ROOT/matrix.safetensors",
         "--save-every", 1, "--order-seed", 1)  # fmt: skip
    made(*train, "ROOT/own.safetensors", "--model", "ROOT/net.py:net?n=4",
         "--labels", "ROOT/given.safetensors")  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state.State, "remove", lambda self: None)
        made(*train, "ROOT/stopped.safetensors", *cnn, "--labels", "ROOT/uniform.safetensors")
        patch.setenv("MEMTOOL_CACHE", str(root / "cache"))
        data.load(f"folder:{root}/deep?image_size=8", memory=100)
    stitch = ("stitch", "ROOT/cnn.safetensors", "ROOT/stopped.safetensors", "--at", "block1")
    made(*stitch, "--epochs", 0, "--save", "ROOT/start", "-o", "ROOT/start.csv")
    made(*stitch, "--epochs", 1, "--save", "ROOT/trained", "-o", "ROOT/trained.csv")
    made("convert", "ROOT/foreign.safetensors", *cnn, "-o", "ROOT/converted.safetensors")
    made("convert", "ROOT/cnn.safetensors", "-o", "ROOT/copied.safetensors")
    others = {"foreign.safetensors"}
    files = [file for file in root.rglob("*.safetensors") if file.name not in others]
    return {str(file.relative_to(root)): read_metadata(file) for file in files}


def told(kind: str) -> Fields:
    return {**HEADER, **KINDS[kind].fields}


def found(values: Any, fields: Fields, section: str = "") -> Iterator[tuple[str, Field | None]]:
    """The place of each value in a file, and its declaration, None if there is none."""
    for name, value in values.items():
        place, field = f"{section}{name}", fields.get(name)
        yield place, field
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict) and field and field.type.fields:
                yield from found(part, field.type.fields, f"{place}{field.type.elements}.")


def test_every_field_that_is_written_is_declared(written):
    for name, metadata in written.items():
        places_found = found(metadata, told(metadata["kind"]))
        assert [place for place, field in places_found if field is None] == [], name


def test_every_declared_field_is_written_to_some_file(written):
    declared_before: list[Fields] = []
    for kind in KINDS:
        of_kind = [metadata for metadata in written.values() if metadata["kind"] == kind]
        met = {place for metadata in of_kind for place, _ in found(metadata, told(kind))}
        assert {place for place, _ in places(told(kind), declared_before)} - met == set(), kind


def test_metrics_are_those_that_training_computes():
    hints = get_type_hints(Metrics)
    assert METRICS.keys() == hints.keys()
    for name, field in METRICS.items():
        assert field.type.holds(None) == (type(None) in get_args(hints[name])), name
    assert {*METRICS, "epoch"} == get_type_hints(EpochMetrics).keys()


# --- What is refused ------------------------------------------------------------------------------


def sections(values: Any, fields: Fields, path: tuple[Any, ...] = ()) -> Iterator[Any]:
    """The path to each object in a file, and the fields that it is declared to have."""
    yield path, fields
    for name, value in values.items():
        within = fields[name].type.fields if name in fields else {}
        for index, part in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(part, dict) and within:
                step = (name,) if index is None else (name, index)
                yield from sections(part, within, (*path, *step))


def changes(metadata: Any, fields: Fields) -> Iterator[tuple[Any, Any, str, bool]]:
    """Copies of the metadata without a field that is required, or with one that is of no declared
    type, each with the section and the name of the field."""
    for path, declared in sections(metadata, fields):
        for name, field in declared.items():
            copy = deepcopy(metadata)
            section = copy
            for step in path:
                section = section[step]
            if name not in section:
                continue
            kept = section.pop(name)
            if field.required:
                yield deepcopy(copy), path, name, False
            for wrong in (None, True, "x\n", 1.5, -1, 10**400, 0, [], {}, [{}], [3, [4], "x"]):
                if not field.type.holds(wrong):
                    section[name] = wrong
                    yield deepcopy(copy), path, name, True
            section[name] = kept
            check(Path("f"), metadata["kind"], copy)


def spelled(path: tuple[Any, ...]) -> str:
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in path]
    return "".join(steps).removeprefix(".")


def test_whatever_is_missing_or_of_another_type_is_refused_in_one_line(written):
    refused = 0
    for metadata in written.values():
        kind = metadata["kind"]
        for changed, path, name, present in changes(metadata, KINDS[kind].fields):
            with pytest.raises(MemtoolError) as error:
                check(Path("a.safetensors"), kind, changed)
            said, place = str(error.value), f" in {spelled(path)!r}" if path else ""
            what = f"no sensible {name!r}{place}: " if present else f"no {name!r}{place}"
            assert said.startswith(f"a.safetensors: its memtool metadata has {what}")
            assert "\n" not in said and len(said) < 250
            refused += 1
    assert refused > 1000


def test_fields_that_are_not_declared_are_kept_and_not_read(tmp_path):
    path, weights = tmp_path / "later.safetensors", {"x": torch.zeros(1)}
    metadata = {"model": {}, "data": {"later": 1}, "training": {}, "later": [{"a": None}]}
    save_tensors(path, "checkpoint", weights, metadata)
    assert read_metadata(path, "checkpoint") == {"format": 1, "kind": "checkpoint", **metadata}


def test_the_noise_ratio_of_given_labels_is_told_alike_everywhere() -> None:
    meanings = [columns(kind)["noise_ratio"].meaning for kind in (TrainingRow, FileRow)]
    meanings += [NOISE["ratio"].meaning, TRAINING["noise_ratio"].meaning]
    assert len(set(meanings)) == 1 and "if they were given, are mislabelled" in meanings[0]
