"""PyTorch's compiler is imported once something compiles, and not before.

PyTorch's optimizers and dispatch modes, and torchvision, import `torch._dynamo` to tell it what it
should leave alone. It takes as long to import as PyTorch itself, and some 80 MB, for nothing where
nothing is compiled.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

DYNAMO = "torch._dynamo"
UTILS = "torch._dynamo.utils"  # of which torchvision takes `is_compile_supported`
TOLD = ("torch", "memtool")  # whose functions may stay unknown to a compiler that is not there


def postpone() -> None:
    """Put modules in place of the compiler's that import it once they are asked for more than to
    leave PyTorch's own functions alone. Does nothing if the compiler is there already."""
    if DYNAMO not in sys.modules:
        sys.modules[DYNAMO] = _Dynamo(DYNAMO)
        sys.modules[UTILS] = _Utils(UTILS)


def is_there() -> bool:
    """Whether the compiler has been imported."""
    return not isinstance(sys.modules.get(DYNAMO), _Postponed | None)


class _Postponed(ModuleType):
    """A module that imports the one of its name for all that it does not have itself."""

    def __getattr__(self, name: str) -> Any:
        # Whoever goes through all modules asks each for its __file__ and the like. The __path__ of
        # a package is asked for when one of its modules is imported.
        if name.startswith("__") and (self.__name__, name) != (DYNAMO, "__path__"):
            raise AttributeError(f"{self.__name__} is not imported yet")
        return getattr(self._imported(), name)

    def _imported(self) -> ModuleType:
        for name in (DYNAMO, UTILS):
            if isinstance(sys.modules.get(name), _Postponed):
                del sys.modules[name]
        importlib.import_module(DYNAMO)
        return importlib.import_module(self.__name__)


class _Dynamo(_Postponed):
    def graph_break(self, msg: str = "") -> None:
        """Nothing, as no graph is made."""

    def disable(self, fn: Any = None, *args: Any, **kwargs: Any) -> Any:
        """`fn` itself, which nothing compiles."""
        if str(getattr(fn, "__module__", "")).partition(".")[0] in TOLD:
            return fn
        return self._imported().disable(fn, *args, **kwargs)


class _Utils(_Postponed):
    def is_compile_supported(self, device_type: Any) -> Any:
        """What the compiler says, which is imported for it: nothing asks before it calls."""
        return self._imported().is_compile_supported(device_type)
