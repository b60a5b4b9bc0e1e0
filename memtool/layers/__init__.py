"""Layers of any network: their names, shapes and order, and which of them are cuts.

Read `layer` first, then `hooks`, by which all else sees what a layer gives, runs a network up to it
or on from it (`Back`). `tracing` finds the layers, and the cuts among them by the `dataflow` of a
forward pass; `ordering` tells whether rows come in the order of the images, and `footprint` what a
pass takes in memory.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
