"""memtool: where in a neural network does memorization live?"""

from memtool.errors import MemtoolError

__all__ = ["MemtoolError", "__version__"]
__version__ = "0.1.0"
