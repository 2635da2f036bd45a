"""`Oplog`: the one object an application holds.

Three parts on one foundation; each method is one call into the module that does the work.
"""

from oplog.facade.archiving import ArchivingOplog
from oplog.facade.writing import WritingOplog


class Oplog(WritingOplog, ArchivingOplog):
    """An operation log in one schema of a database, for one catalog of types."""


__all__ = ["Oplog"]
