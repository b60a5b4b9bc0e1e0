"""Training a classifier.

In go a model spec, a data set with given labels, and hyperparameters (`TrainConfig`); out come
checkpoints on disk and one `TrainingRow` per evaluated epoch. Start reading at `loop.py`:
`optimize` is the one training loop, for classifiers and stitching layers alike, and `fit` applies
it to a classifier; `evaluation.py` measures what that has learned. `run.py` puts both on disk, with
`state.py` for resuming a run that was stopped, and `parallel.py` shares them among processes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
