"""Reproducing the paper on one data set.

In goes a recipe (`recipes.py`): what is trained and measured for every noise ratio and seed.
`rules.py` says by which commands; `steps.py` expands that into steps, each a memtool command that
makes files, and `makefile.py` prints it as a Makefile. `runner.py` runs the steps whose outputs are
out of date, several at a time, and `record.py` keeps what they took. Out come figures and tables,
and `findings.py` says which claims of the paper hold in them, by the numbers in `claims.py`.
`report.py` makes one page of all that.

Start reading at `recipes.py`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
