"""Adoption: logs the rows that were in a table before the log was.

`run` goes through the tables chunk by chunk, `table_rows` reads the next rows, `locking` keeps
writers out meanwhile, `chunk_record` appends them, `choice` selects and orders the types, `report`
holds progress. `refill` logs again what DDL rewrote. Other sessions may go on writing, and either
may be killed at any moment and started again.
"""

from oplog.adoption.chunk_record import CHUNK_ROWS, AdoptionTarget
from oplog.adoption.locking import LockWait
from oplog.adoption.refill import log_rewritten
from oplog.adoption.report import AdoptedType, AdoptionReport, RefillReport
from oplog.adoption.run import Progress, adopt_tables

__all__ = [
    "CHUNK_ROWS",
    "AdoptedType",
    "AdoptionReport",
    "AdoptionTarget",
    "LockWait",
    "Progress",
    "RefillReport",
    "adopt_tables",
    "log_rewritten",
]
