"""Checkpoints: a safetensors file becomes a network with its weights, or rows that describe it.

Read `checkpoint` first: a `Checkpoint` is what a file's header says, cheap to open; `load` goes
straight to the `Network`, a torch module in eval mode with the normalization of its images. For
files that memtool did not write, `recognition` finds the model by the names and shapes of the
tensors, `adapters` undoes what training code does to the names, and `rewriting` reads layouts that
timm reads; `conversion` makes checkpoints of them and of pickles, which `pickles` reads as inert
values, `archives` with their storages, and in which `rebuilding` finds tensors. `preprocessing`
reads what the configuration beside weights says of their images. `description` has the rows of
`memtool info`.

To read the files of other training code, add its tokens to `adapters.WRAPPERS` or its spellings to
`adapters.SPELLINGS`, or the keys under which it pickles the weights to `conversion.NESTED`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
