from .checkpoint import (
    Checkpoint as Checkpoint,
)
from .checkpoint import (
    Network as Network,
)
from .checkpoint import (
    load_weights as load_weights,
)
from .checkpoint import (
    traced_all as traced_all,
)
