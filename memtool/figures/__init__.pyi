from .drawing import Kind as Kind
from .drawing import check_options as check_options
from .drawing import draw as draw
from .drawing import recognize as recognize
from .options import Options as Options
from .options import as_options as as_options
from .saving import FORMATS as FORMATS
from .saving import save as save
