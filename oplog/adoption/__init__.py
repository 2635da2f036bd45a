"""Adoption: logging the rows that existed before the log did.

`work` goes through the tables chunk by chunk, `chunk` reads the next rows, `locking` keeps
them as they were read, `choice` says which and in what order. Stands above capture and
replay; the facade calls it. The hard thing is to agree with writers that go on writing, and
to be killed at any moment without harm.
"""

from oplog.adoption.locking import LockWait
from oplog.adoption.report import AdoptedType, AdoptionReport
from oplog.adoption.run import CHUNK_ROWS, Progress, Target, adopt_tables

__all__ = [
    "CHUNK_ROWS",
    "AdoptedType",
    "AdoptionReport",
    "LockWait",
    "Progress",
    "Target",
    "adopt_tables",
]
