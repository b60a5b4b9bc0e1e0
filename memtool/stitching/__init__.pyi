from .cuts import Cut as Cut
from .planning import StitchSettings as StitchSettings
from .settings import Direction as Direction
from .settings import Init as Init
from .sweep import Sweep as Sweep
