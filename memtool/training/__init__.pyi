from .loop import Optimizer as Optimizer
from .loop import Schedule as Schedule
from .loop import TrainConfig as TrainConfig
from .loop import accuracy as accuracy
from .loop import make_optimizer as make_optimizer
from .loop import optimize as optimize
from .loop import predict as predict
from .run import Run as Run
