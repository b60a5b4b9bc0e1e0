from .checkpoint import Checkpoint as Checkpoint
from .checkpoint import load as load
from .checkpoint import trace_all as trace_all
from .conversion import convert as convert
from .description import file_rows as file_rows
from .description import layer_rows as layer_rows
from .network import Network as Network
