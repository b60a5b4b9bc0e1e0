"""CKA: how similar the representations of two networks are, layer by layer.

Two networks and the same images go in; a table of HSIC comes out, and CKA of that. Read `hsic`
first, which has the formulas and the table. Three producers fill it, each a recorder of one network
and sums of a pair of networks (see `recorder`): `minibatch`, `tiles` and `feature_space`. `pairs`
says which layers are compared, `planning` how that fits into memory, `measuring` has the loop over
the images, `comparison` makes rows. `streaming` is the same for tensors, without files or models.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
