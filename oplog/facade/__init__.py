"""`Oplog`: the one object an application holds.

Two halves on one foundation; each method is one call into the module that does the work.
"""

from oplog.facade.reading import ReadingOplog
from oplog.facade.writing import WritingOplog


class Oplog(WritingOplog, ReadingOplog):
    """An operation log in one schema of a database, for one catalog of types."""


__all__ = ["Oplog"]
