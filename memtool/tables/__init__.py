"""Tables: rows to and from CSV, TSV and JSON lines, and as text for a terminal.

A row is a dictionary: one measurement with all its conditions. Start with `rows`, which declares
the columns of each table that memtool writes; `writing` and `reading` handle files and streams, and
`terminal` lays a table out as text.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
