"""Notices that the server sends to a connection while its statements run.

Two are of interest. A guard says that it kept images. That saves asking for images in every
transaction, and no more: if a driver loses the notice, the guards refuse a COMMIT whose images
were not collected. And the server warns that a COMMIT did not wait for its synchronous standby.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy.engine import Connection

from oplog.errors import DurabilityNotConfirmedWarning
from oplog.receipt import Receipt
from oplog.schema.touched_keys import IMAGES_KEPT

_SYNCHRONOUS_WAIT = "SyncRepWaitForLSN"
"""The server's function that gives the warning. Its text is in the server's language, and its
SQLSTATE, 01000, is that of many warnings."""


_IN_TRANSACTION = 2
"""libpq's PQTRANS_INTRANS, as psycopg passes it on."""


@dataclass(slots=True, eq=False)
class NoticeState:
    """What notices said on one driver connection since its transaction began."""

    images_kept: bool = False
    """Images wait to be collected."""
    told: bool = False
    """The server may have told already that images wait. It does so once for each transaction: of
    those that come after a collection it says nothing."""
    no_notices: bool = False
    """The driver passes no notices on: whether images wait has to be asked."""
    in_session: bool = False
    """The transaction belongs to an attached session, which looks at `unconfirmed` itself."""
    unconfirmed: bool = False
    """COMMIT did not wait for a synchronous standby."""
    receipts: list[Receipt] = field(default_factory=list)
    """Receipts of a transaction without a session: marked here when the warning arrives."""

    def begin(self) -> None:
        """A transaction begins: earlier notices are not about it."""
        self.images_kept = self.told = self.in_session = self.unconfirmed = False
        self.receipts = []

    @property
    def may_have_images(self) -> bool:
        """Images wait, or that cannot be told without asking."""
        return self.images_kept or self.no_notices


class Notices:
    """The notice states of one engine's connections, for the log in one schema."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._states: WeakKeyDictionary[Any, NoticeState] = WeakKeyDictionary()

    def find(self, connection: Connection) -> NoticeState:
        """The state of a connection; notices are received from the first call on."""
        raw: Any = connection.connection.driver_connection
        found = self._states.get(raw)
        if found is None:
            # In a transaction that began before, it was told to nobody.
            found = self._states[raw] = NoticeState(told=is_in_transaction(raw))
            self._receive(raw, found)
        return found

    def _receive(self, raw: Any, state: NoticeState) -> None:
        schema = self._schema

        def receive(diagnostic: Any) -> None:
            if diagnostic.sqlstate == IMAGES_KEPT and diagnostic.schema_name == schema:
                state.images_kept = state.told = True
            elif diagnostic.source_function == _SYNCHRONOUS_WAIT:
                state.unconfirmed = True
                if not state.in_session:
                    state.receipts[:] = mark_unconfirmed(state.receipts)
                    warn_unconfirmed()

        add = getattr(raw, "add_notice_handler", None)
        if add is None:
            state.no_notices = True
        else:
            add(receive)


def is_in_transaction(raw: Any) -> bool:
    """The driver's connection is in a transaction, as far as the driver says."""
    status = getattr(getattr(raw, "pgconn", None), "transaction_status", None)
    return status == _IN_TRANSACTION


def mark_unconfirmed(receipts: Iterable[Receipt]) -> list[Receipt]:
    """The receipts of a COMMIT that did not wait for its standby."""
    return [replace(receipt, durability_confirmed=False) for receipt in receipts]


def warn_unconfirmed() -> None:
    """Warn that a COMMIT is on this server alone."""
    warnings.warn(
        "a COMMIT happened and its wait for a synchronous standby was cancelled: the "
        "transaction is on this server's disk, a failover may lose it",
        DurabilityNotConfirmedWarning,
        stacklevel=2,
    )
