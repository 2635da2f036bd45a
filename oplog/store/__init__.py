"""All SQL on the log's tables; nothing outside this package and `tables` names them.

`entries` writes and reads the log, `feed` finds what is new for a consumer, `inspection`
answers an operator's questions, `rows` are the plain values they give and take, `source` is
what a log must offer to be read, here or elsewhere. Must not
know catalogs, keys or sessions, and never opens or ends a transaction.
"""

from oplog.store.entries import Store
from oplog.store.log_source import LogSource, SequencedLog, SequencedPage
from oplog.store.rows import BrokenLink, EntryFilter, NewEntry, StoredEntry

__all__ = [
    "BrokenLink",
    "EntryFilter",
    "LogSource",
    "NewEntry",
    "SequencedLog",
    "SequencedPage",
    "Store",
    "StoredEntry",
]
