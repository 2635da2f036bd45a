"""SQLAlchemy's events, tied to recording and writing.

One `EngineListener` for each engine, one `SessionListener` for each attached factory. The
hard thing is that the library neither opens nor ends the application's transaction: entries
are written inside the session's own commit, after its last flush, and a COMMIT that Postgres
would turn into a rollback is refused before the application believes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from oplog.binding import Binding
from oplog.capture.control import is_passive, is_text, match_control
from oplog.capture.notice import Notices
from oplog.capture.planning import Planned, StatementPlanner
from oplog.capture.recorder import Recorder
from oplog.capture.sending import (
    can_pipeline,
    check_committable,
    check_transactional,
    explain_unlogged,
    send_draft,
    send_draft_and_commit,
)
from oplog.capture.statement import StatementUnderWay, count, observe, prepare
from oplog.capture.writer import Draft, EntryWriter, list_unticketed
from oplog.catalog import TypeCatalog
from oplog.entry import Receipt, Ticket
from oplog.errors import NotCapturableError, OplogError, UnloggedWriteError
from oplog.events import EntriesAppended
from oplog.guard import make_prefix
from oplog.store.guards import Image

_DEFERRED = "oplog.deferred"
"""In `Connection.info`, which all logs of a connection share: one of them sends COMMIT."""


class EngineListener:
    """Watches one engine; records for the connections that belong to attached sessions."""

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

    def listen(self) -> None:
        """Begin to receive the engine's events."""
        for name in self._EVENTS:
            returns = name in ("before_cursor_execute", "handle_error")
            event.listen(self.engine, name, getattr(self, f"_on_{name}"), retval=returns)

    def is_dirty(self, connection: Connection) -> bool:
        """The connection's transaction has changes that are logged when it commits."""
        recorder = self._recorders.get(connection)
        dirty = recorder is not None and recorder.dirty
        return dirty or self._notices.attend(connection).images

    _EVENTS = (
        *("begin", "commit", "rollback", "prepare_twophase"),
        *("before_cursor_execute", "after_cursor_execute", "after_execute", "handle_error"),
    )

    # -- transactions ---------------------------------------------------------------------

    def open(self, connection: Connection, *, owned: bool = False) -> Recorder:
        """The recorder of a connection's transaction, begun if it has none.

        `owned` says that a session ends the transaction.
        """
        found = self._recorders.get(connection)
        if found is None:
            found = self._recorders[connection] = Recorder()
            self._notices.attend(connection)
        found.owned = found.owned or owned
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
            known = self._bind(connection)
            # What this transaction stored itself may yet be rolled back.
            self._binding = None if known.fresh else known
            self._planner.clear()
        recorder.bind(known)
        return known

    def close(self, connection: Connection) -> None:
        """Forget the transaction, however it ended."""
        self._recorders.pop(connection, None)
        if self._drafts.pop(connection, None) is not None:
            _release_deferral(connection)

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
            return
        check_committable(connection)
        images = self._take_images(connection, recorder)
        draft = self._writer.draft(connection, recorder, images=images)
        recorder.mark_drained()
        if draft is None:
            return
        # One log only: COMMIT must not leave before another log's entries.
        if defer and can_pipeline(connection) and _DEFERRED not in connection.info:
            connection.info[_DEFERRED] = True
            self._drafts[connection] = draft
        else:
            self._keep(recorder, send_draft(connection, draft), committed=False)

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
            bound = binding.find_relation(image.relation)
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

    def _force_deferred(self, connection: Connection, recorder: Recorder) -> None:
        """Let deferred triggers of the application's own write now what they would at COMMIT."""
        binding = recorder.binding if recorder.bound else self._binding
        if binding is None or not binding.deferred or not recorder.wrote:
            return
        check_committable(connection)
        names = ", ".join(binding.deferred).replace("%", "%%")
        connection.exec_driver_sql(f"SET CONSTRAINTS {names} IMMEDIATE")

    def send_deferred(self, connection: Connection, recorder: Recorder) -> None:
        """Send what was deferred to a COMMIT that this session did not make."""
        draft = self._drafts.pop(connection, None)
        if draft is not None:
            _release_deferral(connection)
            self._keep(recorder, send_draft(connection, draft), committed=False)

    def _keep(self, recorder: Recorder, receipts: list[Receipt], *, committed: bool) -> None:
        recorder.receipts += receipts
        if not receipts:
            return
        entry_ids = tuple([receipt.entry_id for receipt in receipts])
        self._writer.on_event(EntriesAppended(entry_ids, committed))

    # -- engine events --------------------------------------------------------------------

    def _on_before_cursor_execute(
        self, connection: Connection, cursor: Any, statement: str, *rest: Any
    ) -> tuple[str, Any]:
        recorder = self._recorders.get(connection)
        if recorder is None:
            return statement, rest[0]
        context = rest[1]
        planned = self._find_plan(connection, recorder, context, statement)
        if planned is None or planned.plan is None:
            return statement, rest[0]
        plan = planned.plan
        recorder.check_open(plan.bound)
        check_transactional(connection, plan.bound)
        if context in self._under_way:
            # A later batch of the same insert.
            return planned.announcement + statement, rest[0]
        announced = bool(planned.announcement)
        statement_under_way = prepare(connection, plan, context, announced=announced)
        self._under_way[context] = statement_under_way
        recorder.announce(statement_under_way)
        return planned.announcement + statement, rest[0]

    def _find_plan(
        self, connection: Connection, recorder: Recorder, context: Any, statement: str
    ) -> Planned | None:
        compiled = context.compiled
        if is_text(compiled):
            self._check_control(recorder, statement)
            recorder.wrote = recorder.wrote or not is_passive(statement)
            return None
        writes = context.isinsert or context.isupdate or context.isdelete
        if not writes and not getattr(compiled, "ctes", None):
            return None
        recorder.wrote = True
        return self._planner.find(context, lambda: self.bind(connection, recorder))

    @staticmethod
    def _check_control(recorder: Recorder, statement: str) -> None:
        matched = match_control(statement)
        if matched and matched["end"] and not matched["back"] and recorder.dirty:
            raise NotCapturableError(
                f"{matched['end'].upper()} was sent as a statement while changes wait to be logged",
                hint="end the transaction through the session: commit() or rollback()",
            )

    def _on_after_cursor_execute(
        self, connection: Connection, cursor: Any, statement: str, *rest: Any
    ) -> None:
        """Follow savepoints, which are seen as statements.

        Set by hand they count like the session's own, and SQLAlchemy's savepoint event comes
        before the name is known.
        """
        recorder = self._recorders.get(connection)
        if recorder is None:
            return
        context = rest[1]
        if context.isinsert and context in self._under_way and context._rowcount is None:  # noqa: SLF001
            # The driver forgets it when SQLAlchemy closes the cursor of an insert; a trigger
            # that suppresses rows shows nowhere else.
            context._rowcount = cursor.rowcount  # noqa: SLF001
        if not is_text(context.compiled):
            return
        matched = match_control(statement)
        if matched is None or not matched["name"]:
            return
        name = matched["name"]
        name = name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()
        if matched["save"]:
            recorder.push(name)
        elif matched["back"]:
            recorder.roll_back(name)
        elif matched["release"]:
            recorder.release(name)

    def _on_after_execute(self, connection: Connection, *rest: Any) -> None:
        recorder = self._recorders.get(connection)
        context = rest[-1].context
        done = None if context is None else self._under_way.pop(context, None)
        if recorder is None or done is None:
            return
        try:
            changes = observe(done, context)
            recorder.record(changes, tally=count(done, len(changes)))
        except OplogError as failure:
            # Swallowed by the application, it must still stop the COMMIT.
            recorder.fail(failure)
            raise
        recorder.settle(done)

    def _on_handle_error(self, exception_context: Any) -> OplogError | None:
        """A statement that the database refused, or that never left, changed nothing.

        Returns what SQLAlchemy shall raise instead of its own error, if that was a guard's.
        """
        unlogged = explain_unlogged(exception_context.original_exception)
        connection = exception_context.connection
        recorder = None if connection is None else self._recorders.get(connection)
        context = exception_context.execution_context
        if recorder is None or context is None or context not in self._under_way:
            return unlogged
        errors = connection.dialect.loaded_dbapi.Error
        if isinstance(exception_context.original_exception, errors):
            recorder.settle(self._under_way.pop(context))
        return unlogged

    def _on_begin(self, connection: Connection) -> None:
        # A migration finds the log by the engine's connection.
        connection.info.setdefault("oplog.log", self._log)
        ear = self._notices.attend(connection)
        ear.images = False
        ear.disowned = False
        if self.explicit:
            self._recorders[connection] = Recorder()

    def _on_rollback(self, connection: Connection) -> None:
        recorder = self._recorders.get(connection)
        if recorder is not None and not recorder.owned:
            self.close(connection)

    def _find_own(self, connection: Connection) -> Recorder | None:
        """The recorder of an engine's own transaction that has something to log."""
        recorder = self._recorders.get(connection)
        if recorder is None and self.users:
            ear = self._notices.attend(connection)
            if ear.images and not ear.disowned:
                recorder = self.open(connection)
        return recorder

    def _on_commit(self, connection: Connection) -> None:
        recorder = self._find_own(connection)
        if recorder is None:
            return
        draft = self._drafts.pop(connection, None)
        if draft is not None:
            _release_deferral(connection)
        try:
            if draft is None:
                check_committable(connection)
            if not recorder.owned:
                self.drain(connection, recorder, defer=False)
                self.receipts[connection] = recorder.receipts
            recorder.raise_failure()
            if recorder.dirty:
                raise UnloggedWriteError(
                    "tracked rows changed after the session's commit began",
                    hint="a listener writes rows too late; write them before commit()",
                )
            if draft is not None:
                self._keep(recorder, send_draft_and_commit(connection, draft), committed=True)
        except (OplogError, DBAPIError):
            # SQLAlchemy takes the transaction for ended once this hook ran: left open, it
            # would go back to the pool with the connection.
            if not connection.invalidated:
                connection.dialect.do_rollback(connection.connection)
            raise
        finally:
            if not recorder.owned:
                self.close(connection)

    def _on_prepare_twophase(self, connection: Connection, xid: Any) -> None:
        recorder = self._recorders.get(connection)
        if recorder is not None:
            self.send_deferred(connection, recorder)
            self._on_commit(connection)


def _release_deferral(connection: Connection) -> None:
    if not connection.closed and not connection.invalidated:
        connection.info.pop(_DEFERRED, None)
