"""A database brought back, or kept up to date, from a log that lies elsewhere.

Puts together what reads a log (`oplog.store.LogSource`) and what folds it (`oplog.replay`).
Must not know where the log lies. The hard thing is to be exact in somebody else's tables:
what stands in the way of rows is taken away for one transaction, and put back as it was.
"""

from oplog.recovery.follow import FollowReport, follow_log
from oplog.recovery.restore import RestoreReport, restore_log

__all__ = [
    "FollowReport",
    "RestoreReport",
    "follow_log",
    "restore_log",
]
