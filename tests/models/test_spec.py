"""Model specs as data: their text and their JSON."""

import json
import subprocess
import sys

import pytest

from memtool import MemtoolError, models
from memtool.models import ModelSpec


@pytest.mark.parametrize(
    "text, name, options",
    [
        ("resnet18", "resnet18", {}),
        ("resnet18?width=16&num_classes=100", "resnet18", {"width": 16, "num_classes": 100}),
        ("torchvision:vit_b_16?image_size=32", "torchvision:vit_b_16", {"image_size": 32}),
        ("torchvision:swin_t?window_size=[4,4]", "torchvision:swin_t", {"window_size": [4, 4]}),
        ("torchvision:googlenet?aux_logits=False", "torchvision:googlenet", {"aux_logits": False}),
        ("torchvision:alexnet?dropout=0.25", "torchvision:alexnet", {"dropout": 0.25}),
    ],
)
def test_a_spec_is_a_name_and_options_that_are_written_as_they_are_read(text, name, options):
    spec = models.parse(text)
    assert (spec.name, spec.options) == (name, options)
    assert models.parse(str(spec)) == spec
    assert ModelSpec.from_json(json.loads(json.dumps(spec.json()))) == spec


def test_a_json_file_holds_a_spec(tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(ModelSpec("resnet18", {"width": 16}).json()))
    assert models.parse(str(path)) == ModelSpec("resnet18", {"width": 16})
    assert models.parse(f"{path}?width=8") == ModelSpec("resnet18", {"width": 8})
    for content in ("{", "[]", '{"name": 3, "options": {}}', '{"name": "resnet18"}', "[" * 100_000):
        path.write_text(content)
        with pytest.raises(MemtoolError, match="spec.json: not a model spec, such as"):
            models.parse(str(path))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"front": {}, "back": {}, "front_layer": "a", "back_layer": "a", "stitching": {}},
        {"front": 3, "back": 3, "front_layer": "a", "back_layer": "a", "stitching": {}},
    ],
    ids=["empty", "parts that are no specs", "parts of another type"],
)
def test_specs_of_stitched_models_are_checked(options):
    with pytest.raises(MemtoolError, match="not (the spec of a stitched model|a model spec)"):
        ModelSpec.from_json({"name": "stitched", "options": options})


def test_specs_are_read_without_torch():
    code = (
        "import sys; from memtool.models import ModelSpec; ModelSpec.parse('resnet18?width=4'); "
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
