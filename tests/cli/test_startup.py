"""Large packages are imported without collections, and all else is as ever."""

import gc
import importlib
import subprocess
import sys

import pytest

from memtool.cli.startup import _Hastened

CHECK = """
import gc, sys
import memtool.cli
assert "torch" not in sys.modules
import torch
assert gc.isenabled() and gc.get_freeze_count() > 100_000
assert torch.__spec__.name == "torch" and torch.ones(2).sum() == 2
"""


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Import a package with this text, as the large ones are."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [_Hastened({"large", "absent"}), *sys.meta_path])

    def load(text):
        (tmp_path / "large").mkdir()
        (tmp_path / "large" / "__init__.py").write_text(text)
        (tmp_path / "large" / "part.py").write_text("import gc\nwas_enabled = gc.isenabled()\n")
        return importlib.import_module("large")

    yield load
    for name in ("large", "large.part"):
        sys.modules.pop(name, None)
    gc.unfreeze()


def test_nothing_is_collected_meanwhile(imported):
    large = imported("from large import part\nlater = part.was_enabled\n")
    assert not large.later and gc.isenabled()
    assert large.part.__spec__.name == "large.part"


def test_collections_that_are_off_stay_off(imported):
    gc.disable()
    try:
        imported("")
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_cannot_be_imported_leaves_collections_on(imported):
    with pytest.raises(ZeroDivisionError):
        imported("1 / 0")
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError, match="absent"):
        importlib.import_module("absent")


def test_the_command_line_imports_pytorch_so():
    subprocess.run([sys.executable, "-c", CHECK], check=True)


INTERRUPTED = """
import sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == "memtool.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
from memtool.__main__ import main
main()
"""


def test_ctrl_c_while_the_command_line_is_imported_is_no_traceback():
    result = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True)
    assert (result.returncode, result.stdout, result.stderr) == (130, b"", b"")
