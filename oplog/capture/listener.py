"""The events of one engine: statements observed, savepoints followed, COMMIT announced.

Translates SQLAlchemy's events into calls of `Transactions`, which every event is about. Events
of transactions that have no recorder are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakMethod

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from oplog.capture.control import is_passive, is_text, match_control, may_redirect
from oplog.capture.match_counts import keep_counts
from oplog.capture.planning import Planned
from oplog.capture.recorder import Recorder
from oplog.capture.rewriting import (
    copy_parameters,
    differs,
    is_rewritten,
    may_be_rewritten,
    refuse_rewritten,
    tells_what_was_sent,
)
from oplog.capture.sending import check_transactional, explain_unlogged, is_undecided
from oplog.capture.statement import StatementUnderWay, count, observe, prepare
from oplog.capture.transaction import Transactions
from oplog.entry import OpType
from oplog.errors import CommitOutcomeUnknownError, NotCapturableError, OplogError
from oplog.postgres.counted_batch import execute_counted

_EVENTS = (
    *("engine_connect", "begin", "commit", "rollback"),
    *("begin_twophase", "prepare_twophase", "commit_twophase", "rollback_twophase"),
    *("before_cursor_execute", "do_executemany", "after_cursor_execute", "after_execute"),
    "handle_error",
)
_RETURNING = ("before_cursor_execute", "do_executemany", "handle_error")
"""Events whose listener answers SQLAlchemy."""
_OF_DIALECT = ("do_executemany", "handle_error")


class EngineListener:
    """Listens to one engine; records for the transactions that have a recorder."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._under_way: WeakKeyDictionary[Any, StatementUnderWay] = WeakKeyDictionary()
        """By execution context. Each has its plan, which another thread may clear meanwhile."""
        self._sent: WeakKeyDictionary[Any, tuple[str, Any]] = WeakKeyDictionary()
        """By execution context, the statement as it is known, where others may rewrite it."""
        self._rewritten = False
        """A later listener rewrites statements: from then on they are left to the guards."""

    def listen(self) -> None:
        """Begin to receive the engine's events."""
        for name in _EVENTS:
            listener = getattr(self, f"_on_{name}")
            if name in _OF_DIALECT:
                listener = _listen_weakly(listener)
            event.listen(self._transactions.engine, name, listener, retval=name in _RETURNING)

    # -- statements -----------------------------------------------------------------------

    def _on_before_cursor_execute(
        self, connection: Connection, cursor: Any, statement: str, *rest: Any
    ) -> tuple[str, Any]:
        recorder = self._transactions.find(connection)
        context = rest[1]
        # A default that is executed by itself comes before its statement has parameters.
        executed = hasattr(context, "parameters")
        if recorder is None and executed:
            recorder = self._join(connection, context, statement)
        if recorder is None:
            return statement, rest[0]
        statement = self._transactions.settler.before(
            connection, recorder, statement, context=context
        )
        if recorder.routes and not recorder.busy:
            _forget_routes(recorder, context, statement)
        if recorder.live is not None:
            self._transactions.database.require_guards(connection, recorder, context)
            return statement, rest[0]
        if executed:
            self._transactions.apart.begin(connection, recorder, context, statement)
        if recorder.imaged or not executed:
            return statement, rest[0]
        planned = self._find_plan(connection, recorder, context=context, statement=statement)
        if planned is None:
            self._check_names(connection, recorder, statement)
            return statement, rest[0]
        if not planned.announcement:
            self._transactions.names.note(connection, recorder, planned.tables)
        if planned.plan is not None:
            statement = self._send_planned(
                connection, recorder, planned, (statement, rest[0]), context=context
            )
        return statement, rest[0]

    def _send_planned(
        self,
        connection: Connection,
        recorder: Recorder,
        planned: Planned,
        sent: tuple[str, Any],
        *,
        context: Any,
    ) -> str:
        """What to send instead of a statement and its parameters, which the application captures.

        Unless another listener made something else of it.
        """
        statement, parameters = sent
        shared = may_be_rewritten(connection, self._on_before_cursor_execute)
        guarded = self._rewritten and planned.announcement
        if shared and (guarded or is_rewritten(context, statement, parameters)):
            self._leave_to_guard(connection, recorder, planned, context=context)
            return statement
        statement = self._announce(connection, recorder, planned, context=context) + statement
        if shared:
            self._sent[context] = statement, copy_parameters(parameters)
        return statement

    def _leave_to_guard(
        self, connection: Connection, recorder: Recorder, planned: Planned, *, context: Any
    ) -> None:
        """Another listener made something else of a planned statement."""
        if planned.plan is None or context in self._under_way or not planned.announcement:
            raise refuse_rewritten(planned.tables)
        self._transactions.names.note(connection, recorder, planned.tables)

    def _join(self, connection: Connection, context: Any, statement: str) -> Recorder | None:
        """A recorder for a transaction that began unseen, or for a statement without one."""
        if self._transactions.explicit:
            return self._transactions.apart.join_begun(connection)
        if self._transactions.users:
            return self._transactions.apart.join(connection, context, statement)
        return None

    def _announce(
        self,
        connection: Connection,
        recorder: Recorder,
        planned: Planned,
        *,
        context: Any,
    ) -> str:
        """Read what has to be known before a planned statement; what to put before its text."""
        plan = planned.plan
        if plan is None:
            return ""
        if not recorder.apart:
            check_transactional(connection, plan.bound)
        under_way = self._under_way.get(context)
        if under_way is None:
            under_way = prepare(connection, plan, context, announced=bool(planned.announcement))
            self._under_way[context] = under_way
            recorder.begin_statement(under_way)
            if under_way.imaged:
                self._transactions.names.note(connection, recorder, planned.tables)
        # Otherwise this is a later batch of the same insert.
        return "" if under_way.imaged else planned.announcement

    def _on_do_executemany(self, cursor: Any, statement: str, *rest: Any) -> bool:
        """Execute an UPDATE or DELETE of many keys so that each says whether it matched a row."""
        parameters, context = rest
        under_way = self._under_way.get(context)
        if under_way is None or under_way.plan.kind is OpType.CREATE or under_way.imaged:
            return False
        counts = execute_counted(context.root_connection, cursor, statement, parameters)
        keep_counts(context, counts)
        return True

    def _find_plan(
        self, connection: Connection, recorder: Recorder, *, context: Any, statement: str
    ) -> Planned | None:
        compiled = context.compiled
        if is_text(compiled):
            self._check_control(recorder, statement)
            if not is_passive(statement):
                recorder.note_write(statement)
            return None
        writes = context.isinsert or context.isupdate or context.isdelete
        if not writes and not getattr(compiled, "ctes", None):
            return None
        recorder.note_write(statement)
        return self._transactions.database.find_plan(connection, recorder, context)

    def _check_names(self, connection: Connection, recorder: Recorder, statement: str) -> None:
        """Compare the names of what was written, before one of them may mean another table."""
        if recorder.has_unchecked and not recorder.checking_names and may_redirect(statement):
            self._transactions.names.check_now(connection, recorder)

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
        recorder = self._transactions.find(connection)
        if recorder is None:
            return
        context = rest[1]
        known = self._sent.pop(context, None)
        told = known is not None and tells_what_was_sent(context, statement)
        if known is not None and told and differs(known, (statement, rest[0])):
            self._refuse_sent(recorder, context)
        if context.isinsert and context in self._under_way and context._rowcount is None:  # noqa: SLF001
            # The driver forgets the count when SQLAlchemy closes the cursor of an insert, and
            # nothing else shows that a trigger suppressed rows.
            context._rowcount = cursor.rowcount  # noqa: SLF001
        self._transactions.settler.after(connection, recorder, statement, context=context)
        if not is_text(context.compiled):
            return
        if recorder.live is None:
            self._transactions.apart.end(connection, recorder, context)
        self._follow_savepoint(recorder, statement)
        self._transactions.append_late(connection, recorder)

    def _refuse_sent(self, recorder: Recorder, context: Any) -> None:
        """A listener after this one made something else of the statement that was announced."""
        under_way = self._under_way.get(context)
        if under_way is None or not under_way.imaged:
            self._rewritten = True
            failure = refuse_rewritten((), retryable=under_way is not None and under_way.announced)
            recorder.fail(failure)
            raise failure

    @staticmethod
    def _follow_savepoint(recorder: Recorder, statement: str) -> None:
        """Follow savepoints, which arrive as statements.

        SQLAlchemy's own savepoint event is no use: it comes before the savepoint has a name,
        and not at all for a savepoint that the application set with a statement.
        """
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
        recorder = self._transactions.find(connection)
        # For a sequence or a default executed by itself this is its value instead of a result.
        context = getattr(rest[-1], "context", None)
        done = None if context is None else self._under_way.pop(context, None)
        if recorder is None:
            return
        if recorder.apart and context is not None:
            with self._transactions.apart.rolling_back(connection, recorder):
                self._observe(recorder, done, context)
            self._transactions.apart.end(connection, recorder, context)
        else:
            self._observe(recorder, done, context)
            self._transactions.append_late(connection, recorder)

    @staticmethod
    def _observe(recorder: Recorder, done: StatementUnderWay | None, context: Any) -> None:
        if done is None:
            return
        try:
            changes = observe(done, context)
            recorder.record(changes, tally=count(done, len(changes)))
        except OplogError as failure:
            # If the application swallows it, it must still stop the COMMIT.
            recorder.fail(failure)
            raise
        recorder.end_statement(done)

    # -- errors ---------------------------------------------------------------------------

    def _on_handle_error(self, exception_context: Any) -> OplogError | None:
        """A statement that the database refused, or that was never sent, changed nothing.

        Returns what SQLAlchemy shall raise instead of its own error, if a guard refused or the
        answer to COMMIT was lost.
        """
        unlogged = explain_unlogged(exception_context.original_exception)
        connection = exception_context.connection
        recorder = None if connection is None else self._transactions.find(connection)
        if recorder is not None and recorder.end.ending and exception_context.statement is None:
            return self._explain_loss(exception_context, recorder) or unlogged
        context = exception_context.execution_context
        if recorder is not None and recorder.apart and recorder.live is None:
            self._transactions.apart.roll_back(connection, recorder)
        if recorder is not None and not recorder.busy:
            unlogged = self._transactions.settler.fail(
                connection, recorder, exception_context.original_exception, refusal=unlogged
            )
        if recorder is None or context is None or context not in self._under_way:
            return unlogged
        errors = connection.dialect.loaded_dbapi.Error
        if isinstance(exception_context.original_exception, errors):
            recorder.end_statement(self._under_way.pop(context))
        return unlogged

    def _explain_loss(
        self, exception_context: Any, recorder: Recorder
    ) -> CommitOutcomeUnknownError | None:
        """The error for SQLAlchemy's own COMMIT that failed; None if the server decided."""
        cause = exception_context.original_exception
        if not is_undecided(exception_context.connection, cause):
            return None
        # A cancelled or interrupted driver call leaves the connection in the middle of it.
        if not exception_context.is_disconnect:
            exception_context.is_disconnect = True
            # The other connections of the pool are not affected.
            exception_context.invalidate_pool_on_disconnect = False
        # Unset until a listener has returned an error.
        lost = getattr(exception_context, "chained_exception", None)
        return self._transactions.explain_loss(recorder, cause, lost=lost)

    # -- transactions ---------------------------------------------------------------------

    def _on_engine_connect(self, connection: Connection) -> None:
        self._name_log(connection)

    def _on_begin(self, connection: Connection) -> None:
        self._name_log(connection)
        self._transactions.begin(connection)

    def _name_log(self, connection: Connection) -> None:
        """A migration finds the log by the engine's connection, as long as it is attached."""
        log = self._transactions.log
        if self._transactions.explicit or self._transactions.users:
            connection.info.setdefault("oplog.log", log)
        elif connection.info.get("oplog.log") is log:
            del connection.info["oplog.log"]

    def _on_rollback(self, connection: Connection) -> None:
        self._transactions.roll_back(connection)

    def _on_commit(self, connection: Connection) -> None:
        last = _is_last(connection.engine, "commit", self._on_commit)
        self._transactions.commit(connection, last=last)

    def _on_begin_twophase(self, connection: Connection, xid: Any) -> None:
        self._on_begin(connection)

    def _on_prepare_twophase(self, connection: Connection, xid: Any) -> None:
        self._transactions.prepare(connection)

    def _on_commit_twophase(self, connection: Connection, xid: Any, is_prepared: Any) -> None:
        # Without a first phase it is a COMMIT like others.
        if not is_prepared:
            self._transactions.prepare(connection)

    def _on_rollback_twophase(self, connection: Connection, xid: Any, is_prepared: Any) -> None:
        self._transactions.roll_back(connection)


def _listen_weakly(listener: Callable[..., Any]) -> Callable[..., Any]:
    """The same listener, which keeps nothing alive.

    These are events of the dialect, and SQLAlchemy's caches of compiled statements keep that, of
    every engine that a program has made. The engine's other listeners hold this one.
    """
    found = WeakMethod(listener)

    def listen(*arguments: Any) -> Any:
        method = found()
        return None if method is None else method(*arguments)

    return listen


def _is_last(engine: Engine, name: str, listener: Callable[..., Any]) -> bool:
    """No other listener of the engine hears this event after `listener`.

    Those of a class of engines and of a connection hear it before.
    """
    return list(getattr(engine.dispatch, name))[-1:] == [listener]


def _forget_routes(recorder: Recorder, context: Any, statement: str) -> None:
    """What names mean is asked anew if the statement may change it, seen or unseen."""
    writes = context.isinsert or context.isupdate or context.isdelete
    if is_text(context.compiled) or not writes:
        if may_redirect(statement):
            recorder.routes.clear()
        else:
            # Where the server does not report it, a function may set the search path.
            recorder.routes.pop(None, None)
