"""All SQL on the log's tables; takes connections and plain values, and gives plain values.

`records` writes and reads the log, `tables_log` reads it through one connection, `feed` finds
what is new for a consumer, `rows` has the plain values, `log_source` is the interface of
everything that a log can be read from. Nothing here opens or ends a transaction.
"""

from oplog.store.log_source import LogSource, SequencedLog, SequencedPage
from oplog.store.records import Store
from oplog.store.rows import BrokenLink, EntryFilter, NewRecord, StoredRecord
from oplog.store.tables_log import TablesLog

__all__ = [
    "BrokenLink",
    "EntryFilter",
    "LogSource",
    "NewRecord",
    "SequencedLog",
    "SequencedPage",
    "Store",
    "StoredRecord",
    "TablesLog",
]
