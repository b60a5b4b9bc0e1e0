from .datasets import Dataset as Dataset
from .datasets import Split as Split
from .datasets import load as load
from .datasets import normalize as normalize
from .spec import Options as Options
from .spec import parse as parse
from .spec import with_options as with_options
