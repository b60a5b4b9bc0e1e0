from .cuts import all_cuts as all_cuts
from .planning import Cut as Cut
from .planning import StitchSettings as StitchSettings
from .settings import Direction as Direction
from .settings import Init as Init
from .sweep import Sweep as Sweep
