from .activations import shared as shared
from .checks import verified_cuts as verified_cuts
from .cuts import chosen_cuts as chosen_cuts
from .planning import Cut as Cut
from .planning import StitchSettings as StitchSettings
from .settings import Direction as Direction
from .settings import Init as Init
from .sweep import Sweep as Sweep
