"""Reproducing the paper on one data set.

In goes a recipe (`recipes.py`): what is trained and measured for every noise ratio and seed.
`steps.py` turns it into steps, each a memtool command that makes one file, and prints them as a
Makefile; `runner.py` runs those whose output is out of date, several at a time. Out come figures
and tables, and `findings.py` says in numbers what the tables show.

Start reading at `recipes.py`. To add a study, add a member to `Study`, its recipe to `RECIPES`, and
what is expected of it to `findings.py`, which knows the digits only. To add a step for every run,
`yield` it in `steps.py`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
