"""Transactions of one engine: what each has recorded, and how its entries are sent.

Holds a recorder for each connection in a transaction, and drains it before COMMIT. Must not
know SQLAlchemy's events. The hard thing is that the library neither opens nor ends the
application's transaction: entries are written inside the session's own commit, after its last
flush.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from oplog.binding import Binding, BoundType
from oplog.capture.draft import Draft
from oplog.capture.naming import find_path, name_tables, under_path
from oplog.capture.notices import Notices
from oplog.capture.planning import StatementPlanner
from oplog.capture.recorder import Recorder
from oplog.capture.sending import can_pipeline, check_committable, is_failed, send_draft
from oplog.capture.statement import StatementUnderWay
from oplog.capture.writer import EntryWriter, list_unticketed
from oplog.catalog import TypeCatalog
from oplog.entry import (
    Ticket,
)
from oplog.errors import UnloggedWriteError
from oplog.events import EntriesAppended
from oplog.postgres.namesake import Named, check_names, find_name, refuse_other_table
from oplog.postgres.quoting import (
    double_percent,
    qualify,
)
from oplog.receipt import Receipt
from oplog.schema.guard import make_prefix
from oplog.store.guard_state import Image

_DEFERRED = "oplog.deferred"
"""In `Connection.info`, which all logs of a connection share: one of them sends COMMIT."""


class Transactions:
    """The transactions of one engine's connections that belong to attached sessions."""

    def __init__(
        self,
        engine: Engine,
        writer: EntryWriter,
        catalog: TypeCatalog,
        *,
        bind: Callable[[Connection], Binding],
        read_tickets: Callable[[Connection, list[str]], dict[str, int]],
        collect: Callable[[Connection], list[Image]],
        log: object,
    ) -> None:
        self.engine = engine
        self._writer = writer
        self._bind = bind
        self._read_tickets = read_tickets
        self._binding: Binding | None = None
        self._recorders: WeakKeyDictionary[Connection, Recorder] = WeakKeyDictionary()
        self._planner = StatementPlanner(catalog, prefix=make_prefix(writer.schema))
        self._notices = Notices(writer.schema)
        self._collect = collect
        self._log = log
        self.explicit = False
        """Every transaction of the engine is logged, not only those of sessions."""
        self.users: set[int] = set()
        """Attached factories that use the engine: its own connections' images are logged."""
        self.receipts: WeakKeyDictionary[Connection, list[Receipt]] = WeakKeyDictionary()
        """Of the last transaction that a connection of the engine's own committed."""
        self._drafts: WeakKeyDictionary[Connection, Draft] = WeakKeyDictionary()
        self._under_way: WeakKeyDictionary[Any, StatementUnderWay] = WeakKeyDictionary()
        """By execution context. The plan goes along: another thread may clear the plans."""

    def open(self, connection: Connection, *, owned: bool = False) -> Recorder:
        """The recorder of a connection's transaction, begun if it has none.

        `owned` says that a session ends the transaction.
        """
        found = self._recorders.get(connection)
        if found is None:
            found = self._recorders[connection] = Recorder()
            self._notices.attend(connection)
        found.owned = found.owned or owned
        self._notices.attend(connection).owned = found.owned
        return found

    def disown(self, connection: Connection) -> None:
        """The transaction belongs to a session that is not attached: its images stay."""
        self._notices.attend(connection).disowned = True

    def bind(self, connection: Connection, recorder: Recorder) -> Binding:
        """What the transaction knows of its database, found out at its first write.

        Not earlier: sessions that only read must not need the log.
        """
        if recorder.bound:
            return recorder.binding
        known = self._binding
        # A rotated key has to be known to the log before it is used.
        if known is None or known.key_id != self._writer.key_id:
            wrote = recorder.wrote
            known = self._bind(connection)
            # What binding stores is the log's own.
            recorder.wrote = wrote
            # What this transaction stored itself may yet be rolled back.
            self._binding = None if known.fresh else known
            self._planner.clear()
        recorder.bind(known)
        return known

    def is_unconfirmed(self, connection: Connection) -> bool:
        """COMMIT returned without having waited for its standby."""
        return not connection.invalidated and self._notices.attend(connection).unconfirmed

    def close(self, connection: Connection) -> None:
        """Forget the transaction, however it ended."""
        self._recorders.pop(connection, None)
        if self._drafts.pop(connection, None) is not None:
            release_deferral(connection)

    @contextmanager
    def looking_again(self) -> Iterator[None]:
        """The next transaction looks at the database anew if this one wrote other tables."""
        try:
            yield
        except UnloggedWriteError:
            self.refresh()
            raise

    def refresh(self) -> None:
        """Forget what is known of the database: types, tables, triggers."""
        self._binding = None
        self._planner.clear()

    def take_tickets(self, connection: Connection, recorder: Recorder) -> None:
        """Take the tickets of aggregates that this transaction wrote and holds none for."""
        # Row locks are held by now: a version read here cannot miss another writer of them.
        wanted = list_unticketed(recorder)
        if wanted:
            versions = self._read_tickets(connection, list(wanted))
            for name, frame in wanted.items():
                frame.tickets[name] = Ticket(name, versions.get(name, 0))

    def drain(self, connection: Connection, recorder: Recorder, *, defer: bool) -> None:
        """Build the transaction's entries and send them; nothing may be recorded after.

        With `defer` they are sent together with COMMIT, which the caller knows to follow.
        """
        if recorder.drained:
            return
        if self._must_log(connection, recorder):
            check_committable(connection)
            self.bind(connection, recorder)
        self._force_deferred(connection, recorder)
        if not self._must_log(connection, recorder):
            self.pay(connection, recorder)
            return
        check_committable(connection)
        images = self._take_images(connection, recorder)
        named = self._list_named(connection, recorder)
        draft = self._writer.draft(connection, recorder, images=images, named=named)
        if draft is None:
            self.pay(connection, recorder)
        recorder.mark_drained()
        if draft is None:
            return
        # One log only: COMMIT must not leave before another log's entries.
        if defer and can_pipeline(connection) and _DEFERRED not in connection.info:
            connection.info[_DEFERRED] = True
            self._drafts[connection] = draft
        else:
            self._send(connection, recorder, draft)

    # -- what names mean ------------------------------------------------------------------

    def owe(self, connection: Connection, recorder: Recorder, tables: Sequence[sa.Table]) -> None:
        """Tables are about to be written by name: what it means is compared before COMMIT.

        There it costs nothing: the append does it. Earlier, where it may change in between.
        """
        if tables:
            path = find_path(connection)
            if recorder.owes and any(before != path for before in recorder.owed.values()):
                self.pay(connection, recorder)
            recorder.owe(tables, path)

    def pay(self, connection: Connection, recorder: Recorder) -> None:
        """Compare the names of what was written with what they mean, now.

        Raises `UnloggedWriteError`, and the next transaction looks at the database anew.
        """
        owed = recorder.owed
        if not owed or is_failed(connection):
            return
        recorder.paying = True
        try:
            binding = self.bind(connection, recorder)
            now = find_path(connection)
            for path in dict.fromkeys(owed.values()):
                tables = [table for table, at in owed.items() if at == path]
                with under_path(connection, None if path == now else path):
                    check_names(connection, name_tables(binding, tables))
        except UnloggedWriteError:
            # What is owed stays so: swallowed by the application, it still stops the COMMIT.
            self.refresh()
            raise
        finally:
            recorder.paying = False
        recorder.pay()

    def _list_named(self, connection: Connection, recorder: Recorder) -> Named:
        """The names that the append has to compare: the search path is what it was."""
        owed = recorder.owed
        now = find_path(connection) if owed else None
        if any(path != now for path in owed.values()):
            self.pay(connection, recorder)
            return ()
        return name_tables(self.bind(connection, recorder), owed) if owed else ()

    def _must_log(self, connection: Connection, recorder: Recorder) -> bool:
        ear = self._notices.attend(connection)
        return recorder.dirty or ear.images or (ear.deaf and recorder.wrote)

    def _take_images(self, connection: Connection, recorder: Recorder) -> list[Image]:
        ear = self._notices.attend(connection)
        if not (ear.images or ear.deaf):
            return []
        ear.images = False
        binding = self.bind(connection, recorder)
        images = self._collect(connection)
        for image in images:
            bound = self._find_relation(connection, binding, image.relation)
            if bound.guard is None:
                # The next transaction looks anew.
                self.refresh()
                error = UnloggedWriteError(
                    f"table {bound.live.qualified} was found guarded, in whole or in part, and "
                    "had no guard when this process looked",
                    hint="run the transaction again; if it stays so, `oplog doctor` says why",
                )
                error.retryable = True
                raise error
        return images

    def _find_relation(self, connection: Connection, binding: Binding, oid: int) -> BoundType:
        try:
            return binding.find_relation(oid)
        except UnloggedWriteError:
            # A migration may have replaced the table: the next transaction looks anew.
            self.refresh()
            found = find_name(connection, oid)
            for bound in binding.types.values():
                if found is not None and bound.live.name == found[1]:
                    (written,) = qualify([found[1]], found[0])
                    raise refuse_other_table([bound.live.qualified], written=written) from None
            raise

    def _force_deferred(self, connection: Connection, recorder: Recorder) -> None:
        """Let deferred triggers of the application's own write now what they would at COMMIT."""
        binding = recorder.binding if recorder.bound else self._binding
        if binding is None or not binding.deferred or not recorder.wrote:
            return
        check_committable(connection)
        names = double_percent(", ".join(binding.deferred))
        connection.exec_driver_sql(f"SET CONSTRAINTS {names} IMMEDIATE")

    def send_deferred(self, connection: Connection, recorder: Recorder) -> None:
        """Send what was deferred to a COMMIT that this session did not make."""
        draft = self._drafts.pop(connection, None)
        if draft is not None:
            release_deferral(connection)
            self._send(connection, recorder, draft)

    def _send(self, connection: Connection, recorder: Recorder, draft: Draft) -> None:
        with self.looking_again():
            self._keep(recorder, send_draft(connection, draft), committed=False)

    def _keep(self, recorder: Recorder, receipts: list[Receipt], *, committed: bool) -> None:
        recorder.receipts += receipts
        if not receipts:
            return
        entry_ids = tuple([receipt.entry_id for receipt in receipts])
        self._writer.on_event(EntriesAppended(entry_ids, committed))

    def is_dirty(self, connection: Connection) -> bool:
        """The connection's transaction has changes that are logged when it commits."""
        recorder = self._recorders.get(connection)
        dirty = recorder is not None and recorder.dirty
        return dirty or self._notices.attend(connection).images


def release_deferral(connection: Connection) -> None:
    """COMMIT no longer waits for this log."""
    if not connection.closed and not connection.invalidated:
        connection.info.pop(_DEFERRED, None)
