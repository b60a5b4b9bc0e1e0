"""PyTorch and its like are imported in three quarters of the time: what they make stays, so that
Python need not look for garbage among it, neither meanwhile nor when it exits."""

import gc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

LARGE = {"torch", "torchvision", "timm", "sympy"}


def hasten() -> None:
    """Have the large packages that are not there yet imported so, whenever that is."""
    if missing := LARGE - set(sys.modules):
        sys.meta_path.insert(0, _Hastened(missing))


class _Hastened(MetaPathFinder):
    """Finds each of some packages once, to be loaded without collections."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.names:
            return None
        self.names.remove(name)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            _load_without_collections(spec.loader)
        return spec


def _load_without_collections(loader: Loader) -> None:
    load = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            load(module)
        finally:
            gc.freeze()
            if was_enabled:
                gc.enable()

    loader.exec_module = exec_module  # type: ignore[method-assign]
