"""`Oplog`: the one object an application holds.

Four parts on one foundation; each method is one call into the module that does the work.
"""

from oplog.facade.upkeep import UpkeepOplog
from oplog.facade.writing import WritingOplog


class Oplog(WritingOplog, UpkeepOplog):
    """An operation log in one schema of a database, for one catalog of types."""


__all__ = ["Oplog"]
