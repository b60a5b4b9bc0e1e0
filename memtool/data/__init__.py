"""Data sets, and label noise.

In goes a spec such as `digits`, `cifar10` or `folder:photos?image_size=64&split_at=80%`; out comes
a `Dataset` of a training and a test split, uint8 images and int64 labels. Start reading
at `load` in `datasets`. The spec is taken apart by `spec`; `sources`, `folders` and `arrays` list
the examples that it names, whose labels `classes` makes sense of; `splitting` divides them;
`pictures` reads an image file, `images` all of them, and `resizing` brings them to one size; what
outgrows memory goes into a file by `cache`. `batches` brings images to a device, and `statistics`
measures them. For networks on vectors there are vectors, float32, instead of images.

`noise` replaces labels by random ones, as arrays; `labels` keeps given and true labels in a file.
Those that others made are read by `label_sources`; `naming` tells which row is of which image.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
