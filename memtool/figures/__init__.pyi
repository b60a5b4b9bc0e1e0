from .curves import cut_name as cut_name
from .drawing import Kind as Kind
from .drawing import check_options as check_options
from .drawing import draw as draw
from .drawing import points as points
from .drawing import recognize as recognize
from .layer_axis import on_main_path as on_main_path
from .options import Options as Options
from .options import as_options as as_options
from .rows import Needs as Needs
from .saving import FORMATS as FORMATS
from .saving import check_format as check_format
from .saving import save as save
from .similarity import same_run as same_run
from .terminal import as_text as as_text

def check_settings() -> None: ...
