"""Images that do not fit into --memory: every command gives what it gives of images that do."""

from pathlib import Path

import pytest

from memtool.data import cache, datasets

MEMORY = ("--memory", "256KiB")  # the images take 288
TINY = """
from torch import nn

def tiny(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, num_classes),
    )
"""


@pytest.fixture
def both(tmp_path: Path, monkeypatch, run):
    """`both(command, *args)`: the command twice, with its images in memory, then in a file; what it
    printed and what it wrote to a file called OUT."""
    monkeypatch.setenv("MEMTOOL_CACHE", str(tmp_path / "cache"))
    opened = []
    cached = cache.cached

    def counted(*args: object):
        opened.append(args)
        return cached(*args)

    monkeypatch.setattr(datasets, "cached", counted)

    def twice(*args: object) -> list[tuple[str, bytes]]:
        found = []
        for in_memory in (True, False):
            output = tmp_path / "out.safetensors"
            with monkeypatch.context() as patch:
                if in_memory:
                    patch.setattr(datasets, "shape_of", lambda paths, options: None)
                before = len(opened)
                result = run(*(output if arg == "OUT" else arg for arg in args), *MEMORY)
            assert result.code == 0, result.stderr
            assert len(opened) - before == (0 if in_memory else 1)
            found.append((result.stdout, output.read_bytes() if "OUT" in args else b""))
            output.unlink(missing_ok=True)
        return found

    return twice


def test_all_commands_agree_and_see_damage(tmp_path: Path, folder: Path, both, run) -> None:
    data = ("--data", f"folder:{folder}?image_size=32")
    (tmp_path / "tiny.py").write_text(TINY)
    model = ("--model", f"{tmp_path}/tiny.py:tiny")
    labels, one, two = (tmp_path / f"{name}.safetensors" for name in ("labels", "one", "two"))
    made = both("make-noisy", data[1], "-r", "50%", "-o", "OUT")
    labels.write_bytes(made[1][1])
    trained = both("train", *model, *data, "--labels", labels, "--epochs", 1, "-o", "OUT")
    one.write_bytes(trained[1][1])
    again = run("train", *model, *data, "--epochs", 1, "-o", two, *MEMORY)
    assert again.code == 0
    layers = ("--layers", "1,4", *model)
    compared = [
        both("cka", one, two, *layers, "--batch-size", 8, *kernel)
        for kernel in ([], ["--kernel", "rbf", "--estimator", "minibatch"])
    ]
    stitched = both("stitch", one, two, "--at", "1", "--epochs", 1, "--both", *model)
    for in_memory, in_file in (made, trained, *compared, stitched):
        assert in_memory == in_file
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-4 * 96 - 1] ^= 1  # the last pixel of the last image, before the checksums
    file.write_bytes(content)
    for command in (
        ("train", *model, *data, "--epochs", 1, "-o", tmp_path / "three.safetensors"),
        ("cka", one, two, *layers),
        ("stitch", one, two, "--at", "1", "--epochs", 1, *model),
    ):
        result = run(*command, *MEMORY)
        assert result.code == 1 and f"{file}: is damaged" in result.stderr
