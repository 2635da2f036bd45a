"""An operation log in the same SQL transaction as the rows it describes.

Everything importable from here, from `oplog.errors`, `oplog.migration` and `oplog.testing` is
public; nothing else is.
"""

from oplog.catalog import TypeCatalog
from oplog.entry import (
    Change,
    Entry,
    LoggedEntry,
    Operation,
    OpType,
    Receipt,
    Ticket,
)
from oplog.facade import Oplog
from oplog.keyring import Keyring

__all__ = [
    "Change",
    "Entry",
    "Keyring",
    "LoggedEntry",
    "OpType",
    "Operation",
    "Oplog",
    "Receipt",
    "Ticket",
    "TypeCatalog",
]

__version__ = "0.1.0"
