"""All SQL on the log's tables; takes connections and plain values, and gives plain values.

`entries` writes and reads the log, `tables_log` reads it through one connection, `feed` finds
what is new for a consumer, `rows` has the plain values, `log_source` is the interface of
everything that a log can be read from. Nothing here opens or ends a transaction.
"""

from oplog.store.entries import Store
from oplog.store.log_source import LogSource, SequencedLog, SequencedPage
from oplog.store.rows import BrokenLink, EntryFilter, NewEntry, StoredEntry
from oplog.store.tables_log import TablesLog

__all__ = [
    "BrokenLink",
    "EntryFilter",
    "LogSource",
    "NewEntry",
    "SequencedLog",
    "SequencedPage",
    "Store",
    "StoredEntry",
    "TablesLog",
]
