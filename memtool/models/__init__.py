"""Models: a spec, as in `resnet18?width=16`, becomes a torch module, with or without weights.

Read `spec` first: a `ModelSpec` is the name of an architecture and its options, pure data.
`sources` knows where architectures come from (ours, torchvision, timm, the user's file) and which
options they have, `building` makes the module, `nets` has our own networks and `stitched` the
network that joins the front of one to the back of another. `outputs` finds the logits in what a
model returns, and `trials` runs a model on a few images to see what it asks for.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
