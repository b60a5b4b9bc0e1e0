from .drawing import Kind as Kind
from .drawing import draw as draw
from .drawing import recognize as recognize
from .style import FORMATS as FORMATS
from .style import save as save
