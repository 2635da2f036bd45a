"""`Oplog`: the one object an application holds.

Parts on one foundation; each method is one call into the module that does the work.
"""

from oplog.facade.forking import ForkingOplog, ForkReport
from oplog.facade.pruning import RetainingOplog
from oplog.facade.upkeep import UpkeepOplog


class Oplog(ForkingOplog, RetainingOplog, UpkeepOplog):
    """An operation log in one schema of a database, for one catalog of types."""


__all__ = ["ForkReport", "Oplog"]
