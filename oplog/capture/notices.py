"""What the database tells a connection while statements run.

Listens for the guards' message that images wait. Must not know what is done about it. The
message is a hint that saves a query in every transaction: if a driver loses it, nothing
slips past, because the guards refuse a COMMIT whose images were not collected. The other
message is the server's own warning that a COMMIT no longer waits for its standby.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy.engine import Connection

from oplog.errors import DurabilityNotConfirmedWarning
from oplog.receipt import Receipt
from oplog.schema.touched_keys import IMAGES_KEPT

_SYNCHRONOUS_WAIT = "SyncRepWaitForLSN"
"""The server's function that gives the warning: its words are in the server's language, and
anything may warn with its SQLSTATE, 01000."""


class Ear:
    """What was heard on one driver connection since its transaction began."""

    __slots__ = ("deaf", "disowned", "images", "owned", "receipts", "unconfirmed")

    def __init__(self) -> None:
        self.images = False
        """Images wait to be collected."""
        self.deaf = False
        """The driver passes no messages on: whether images wait has to be asked."""
        self.disowned = False
        """The transaction belongs to a session that is not attached."""
        self.owned = False
        """It belongs to an attached one, which asks after COMMIT what was heard."""
        self.unconfirmed = False
        """COMMIT stopped waiting for a synchronous standby."""
        self.receipts: list[Receipt] = []
        """Of a transaction that no session asks about: marked in place."""

    def begin(self) -> None:
        """A transaction begins: what was heard before is not about it."""
        self.images = self.disowned = self.owned = self.unconfirmed = False
        self.receipts = []


class Notices:
    """The ears of one engine's connections, for the log in one schema."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._ears: WeakKeyDictionary[Any, Ear] = WeakKeyDictionary()

    def attend(self, connection: Connection) -> Ear:
        """The ear of a connection, which listens from the first call on."""
        raw: Any = connection.connection.driver_connection
        found = self._ears.get(raw)
        if found is None:
            found = self._ears[raw] = Ear()
            self._listen(raw, found)
        return found

    def _listen(self, raw: Any, ear: Ear) -> None:
        schema = self._schema

        def hear(diagnostic: Any) -> None:
            if diagnostic.sqlstate == IMAGES_KEPT and diagnostic.schema_name == schema:
                ear.images = True
            elif diagnostic.source_function == _SYNCHRONOUS_WAIT:
                ear.unconfirmed = True
                if not ear.owned:
                    ear.receipts[:] = mark_unconfirmed(ear.receipts)
                    warn_unconfirmed()

        add = getattr(raw, "add_notice_handler", None)
        if add is None:
            ear.deaf = True
        else:
            add(hear)


def mark_unconfirmed(receipts: Iterable[Receipt]) -> list[Receipt]:
    """The receipts of a COMMIT that did not wait for its standby."""
    return [replace(receipt, durability_confirmed=False) for receipt in receipts]


def warn_unconfirmed() -> None:
    """Say that a COMMIT happened on this server alone."""
    warnings.warn(
        "a COMMIT happened and its wait for a synchronous standby was cancelled: the "
        "transaction is on this server's disk, a failover may lose it",
        DurabilityNotConfirmedWarning,
        stacklevel=2,
    )
