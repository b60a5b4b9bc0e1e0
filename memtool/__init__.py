"""memtool: where in a neural network does memorization live?"""

import lazy_loader

from memtool.errors import MemtoolError as MemtoolError

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
