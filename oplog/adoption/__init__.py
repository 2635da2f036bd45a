"""Adoption: logs the rows that were in a table before the log was.

`run` goes through the tables chunk by chunk, `table_rows` reads the next rows, `locking` keeps
writers out meanwhile, `choice` selects and orders the types, `report` holds progress. Other
sessions may go on writing, and an adoption may be killed at any moment and started again.
"""

from oplog.adoption.locking import LockWait
from oplog.adoption.report import AdoptedType, AdoptionReport
from oplog.adoption.run import CHUNK_ROWS, AdoptionTarget, Progress, adopt_tables

__all__ = [
    "CHUNK_ROWS",
    "AdoptedType",
    "AdoptionReport",
    "AdoptionTarget",
    "LockWait",
    "Progress",
    "adopt_tables",
]
