"""memtool shows where in a neural network memorization lives.

    memtool.cka(x, y), memtool.CKA()     CKA of tensors, at once or batch by batch
    memtool.load(path)                   a network: its module, `.model`, and its normalization
    memtool.dataset(spec)                images and labels
    memtool.trace(module, images)        layers, their shapes, which of them are cuts
    memtool.read_table(path)             the rows of a table, as a pandas frame if pandas is there
    memtool.draw(kind, rows)             the figures

Nothing is imported before it is used: `import memtool` takes no time.
"""

import lazy_loader

from memtool.errors import MemtoolError as MemtoolError

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
