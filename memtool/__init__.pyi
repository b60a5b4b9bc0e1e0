from .errors import MemtoolError as MemtoolError
from .similarity import CKA as CKA
from .similarity import cka as cka

__version__: str
