"""From the log back to tables: replay, verify, history.

Reads entries through `oplog.reading.reader` and knows nothing of how they came to be written. The
hard thing is refusing to be lenient: an effect that does not fit the row it meets is an
alarm about the log, so it stops the replay with the table, the key and the position.
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
