"""memtool: where in a neural network does memorization live?"""

__version__ = "0.1.0"


class MemtoolError(Exception):
    """What went wrong, in one line meant for the user: the value, the file and the way out.

    The command line prints it after `memtool: error:` and exits with 1.
    """
