"""Stitching: the front of one network, a trained stitching layer, the back of another.

Checkpoints and cuts go in; one row for each cut and direction comes out, and a stitched model for
each if it is to be kept. Start at `Sweep.rows` in `sweep`. `planning` says what is done at a cut,
`cuts` where networks may be cut, `checks` whether that holds for the networks as they are.
`activations` keeps what the networks compute, `execution` trains and tests one stitching layer,
which `least_squares` initializes, and `unfinished` keeps rows until the table is done. The
stitching layer and the stitched model themselves are in `memtool.models`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
