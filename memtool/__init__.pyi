from .checkpoints import load as load
from .errors import MemtoolError as MemtoolError
from .layers import trace as trace
from .notebook import dataset as dataset
from .notebook import draw as draw
from .notebook import read_table as read_table
from .similarity import CKA as CKA
from .similarity import cka as cka

__version__: str
