"""From the log back to tables: replay and verify.

An effect that does not fit the row it meets stops the replay, with the table, the key and the
position: the log lacks a change, or holds one twice.
"""

from oplog.replay.rebuild import Progress, ReplayReport, replay_log
from oplog.replay.table_comparison import Difference
from oplog.replay.verification import MOST_DIFFERENCES, VerifyReport, verify_tables

__all__ = [
    "MOST_DIFFERENCES",
    "Difference",
    "Progress",
    "ReplayReport",
    "VerifyReport",
    "replay_log",
    "verify_tables",
]
