"""SQLAlchemy's events, tied to recording and writing.

One `EngineListener` for each engine, one `SessionListener` for each attached factory. The
hard thing is that the library neither opens nor ends the application's transaction: entries
are written inside the session's own commit, after its last flush, and a COMMIT that Postgres
would turn into a rollback is refused before the application believes it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from oplog.capture.control import is_passive, is_text, match_control, may_redirect
from oplog.capture.planning import Planned
from oplog.capture.recorder import Recorder
from oplog.capture.sending import (
    check_committable,
    check_transactional,
    describe_loss,
    explain_unlogged,
    find_process,
    is_undecided,
    send_draft_and_commit,
)
from oplog.capture.statement import count, observe, prepare
from oplog.capture.transaction import Transactions, release_deferral
from oplog.errors import (
    CommitOutcomeUnknownError,
    NotCapturableError,
    OplogError,
    UnloggedWriteError,
)
from oplog.events import OutcomeLost


class EngineListener(Transactions):
    """Watches one engine; records for the connections that belong to attached sessions."""

    def listen(self) -> None:
        """Begin to receive the engine's events."""
        for name in self._EVENTS:
            returns = name in ("before_cursor_execute", "handle_error")
            event.listen(self.engine, name, getattr(self, f"_on_{name}"), retval=returns)

    _EVENTS = (
        *("begin", "commit", "rollback", "prepare_twophase"),
        *("before_cursor_execute", "after_cursor_execute", "after_execute", "handle_error"),
    )

    # -- engine events --------------------------------------------------------------------

    def _on_before_cursor_execute(
        self, connection: Connection, cursor: Any, statement: str, *rest: Any
    ) -> tuple[str, Any]:
        recorder = self._recorders.get(connection)
        if recorder is None:
            return statement, rest[0]
        context = rest[1]
        planned = self._find_plan(connection, recorder, context, statement)
        if planned is None:
            self._settle_names(connection, recorder, statement)
            return statement, rest[0]
        self.owe(connection, recorder, planned.tables)
        if planned.plan is None:
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

    def _settle_names(self, connection: Connection, recorder: Recorder, statement: str) -> None:
        """Compare the names of what was written, before one of them may mean another table."""
        if recorder.owes and not recorder.paying and may_redirect(statement):
            self.pay(connection, recorder)

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
        # Of a sequence or a default that was executed by itself this is its value, not a result.
        context = getattr(rest[-1], "context", None)
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
        if recorder is not None and recorder.ending and exception_context.statement is None:
            return self._lose_outcome(exception_context, recorder) or unlogged
        context = exception_context.execution_context
        if recorder is None or context is None or context not in self._under_way:
            return unlogged
        errors = connection.dialect.loaded_dbapi.Error
        if isinstance(exception_context.original_exception, errors):
            recorder.settle(self._under_way.pop(context))
        return unlogged

    def _lose_outcome(
        self, exception_context: Any, recorder: Recorder
    ) -> CommitOutcomeUnknownError | None:
        """SQLAlchemy's own COMMIT failed: None if the server decided."""
        cause = exception_context.original_exception
        connection = exception_context.connection
        if not is_undecided(connection, cause):
            return None
        # A cancelled or interrupted driver call leaves the connection in the middle of it.
        if not exception_context.is_disconnect:
            exception_context.is_disconnect = True
            # The others of the pool are none the worse for it.
            exception_context.invalidate_pool_on_disconnect = False
        receipts = [replace(r, process_id=recorder.process_id) for r in recorder.receipts]
        # Unset until a listener has returned an error.
        lost = getattr(exception_context, "chained_exception", None)
        if isinstance(lost, CommitOutcomeUnknownError):
            # Another log of the same transaction was asked first.
            lost.receipts += receipts
        else:
            lost = describe_loss(cause, receipts, recorder.spent)
        self._writer.on_event(OutcomeLost(tuple(r.entry_id for r in receipts)))
        return lost

    def _on_begin(self, connection: Connection) -> None:
        # A migration finds the log by the engine's connection.
        connection.info.setdefault("oplog.log", self._log)
        self._notices.attend(connection).begin()
        # Kept beyond the COMMIT before, whose error it would have explained.
        self._recorders.pop(connection, None)
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
            release_deferral(connection)
        try:
            if draft is None:
                check_committable(connection)
            self._finish(connection, recorder)
            if draft is not None:
                with self.looking_again():
                    receipts = send_draft_and_commit(connection, draft)
                self._keep(recorder, receipts, committed=True)
            # Without entries there is nothing to ask about: the error stays the database's.
            recorder.ending = bool(recorder.receipts)
            recorder.process_id = find_process(connection) if recorder.ending else 0
        except CommitOutcomeUnknownError as lost:
            self._writer.on_event(OutcomeLost(tuple(r.entry_id for r in lost.receipts)))
            raise
        except (OplogError, DBAPIError):
            # SQLAlchemy takes the transaction for ended once this hook ran: left open, it
            # would go back to the pool with the connection.
            _roll_back(connection)
            raise
        finally:
            if not recorder.owned and not recorder.ending:
                self.close(connection)

    def _finish(self, connection: Connection, recorder: Recorder) -> None:
        if not recorder.owned:
            self.drain(connection, recorder, defer=False)
            self.receipts[connection] = recorder.receipts
            self._notices.attend(connection).receipts = recorder.receipts
        recorder.raise_failure()
        if recorder.dirty:
            raise UnloggedWriteError(
                "tracked rows changed after the session's commit began",
                hint="a listener writes rows too late; write them before commit()",
            )

    def _on_prepare_twophase(self, connection: Connection, xid: Any) -> None:
        recorder = self._recorders.get(connection)
        if recorder is not None:
            self.send_deferred(connection, recorder)
            self._on_commit(connection)


def _roll_back(connection: Connection) -> None:
    """End a transaction whose COMMIT was refused, on a connection that may have died of it."""
    if connection.invalidated:
        return
    try:
        connection.dialect.do_rollback(connection.connection)
    except connection.dialect.loaded_dbapi.Error as failure:
        # Whoever waits for the reason of the refusal must get that, and no other.
        connection.invalidate(failure)
