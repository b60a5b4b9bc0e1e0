"""Training a classifier.

In go a model spec, a data set with given labels, and hyperparameters (`TrainConfig`); out come
checkpoints on disk and one `TrainingRow` per epoch. Start reading at `loop.py`: `optimize` is the
one training loop, for classifiers and stitching layers alike, and `fit` applies it to a classifier.
`run.py` puts that on disk, with `state.py` for resuming a run that was stopped.

To add an optimizer or a schedule, add a member to its enum in `settings.py` and a case to
`make_optimizer` or to `TrainConfig.rate`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
