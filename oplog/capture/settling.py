"""Settles a transaction that goes on: what it did so far is appended before tables are altered.

Postgres refuses to alter a table while a deferred check of its rows waits, and a column that is
dropped takes with it what was to be logged of it. So before such a statement the transaction's
record is built and appended, the guards' check runs, and what follows makes a further record.

In a migration everything is captured from the guards' images (`Recorder.live`), whatever
wrote the rows: text, ad hoc tables, models of another time. On a connection in AUTOCOMMIT each
statement that writes rows gets a transaction of its own there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.engine import Connection

from oplog.capture.control import (
    calls_function,
    changes_schema,
    ends_transaction,
    is_passive,
    is_text,
    match_control,
    may_alter,
    runs_routine,
    sets_constraints,
)
from oplog.capture.draft import Draft
from oplog.capture.notices import NoticeState
from oplog.capture.recorder import Recorder
from oplog.capture.script import split_script
from oplog.capture.sending import (
    check_committable,
    check_under_way,
    is_autocommitting,
    is_failed,
    send_control,
)
from oplog.errors import ConfigurationError, OplogError
from oplog.postgres.quoting import double_percent
from oplog.postgres.sqlstate import OBJECT_IN_USE
from oplog.receipt import Receipt
from oplog.schema.guard import make_prefix
from oplog.store.guard_state import is_armed, list_checks, list_deferred

_RAW = {"no_parameters": True}
"""Execution options under which a percent sign means itself."""
_ALONE = (
    "in AUTOCOMMIT, as in an autocommit_block, rows are written by INSERT, UPDATE, DELETE, MERGE "
    "or COPY, each of which gets a transaction of its own; run a routine that writes rows outside"
)


class Settler:
    """Settles the transactions of one engine."""

    def __init__(
        self,
        schema: str,
        *,
        find_notices: Callable[[Connection, Recorder], NoticeState],
        draft: Callable[[Connection, Recorder], Draft | None],
        send: Callable[[Connection, Draft], list[Receipt]],
    ) -> None:
        self._schema = schema
        self._prefix = make_prefix(schema)
        self._find_notices = find_notices
        self._draft = draft
        self._send = send

    # -- the transaction so far -----------------------------------------------------------

    def settle(self, connection: Connection, recorder: Recorder) -> None:
        """Append what the transaction did so far, and leave no check of the log waiting.

        A transaction with an idempotency key is left alone: the key stands for one record.
        """
        if recorder.busy or recorder.end.closed or recorder.claim is not None:
            return
        if is_failed(connection) or not connection.in_transaction():
            return
        with recorder.at_work():
            armed = self.has_images(connection, recorder)
            if not armed and not recorder.dirty:
                return
            draft = self._draft(connection, recorder)
            recorder.settle([] if draft is None else self._send(connection, draft))
            if armed:
                self._set_checks(connection, "IMMEDIATE")
                self._set_checks(connection, "DEFERRED")

    def has_images(self, connection: Connection, recorder: Recorder) -> bool:
        """The guards counted rows that no record tells yet.

        Of rows after a settled record no notice tells: it comes once for each transaction.
        """
        notices = self._find_notices(connection, recorder)
        if not (recorder.wrote or notices.images_kept) or not is_armed(connection, self._prefix):
            return False
        notices.images_kept = True
        return True

    def finish_migration(self, connection: Connection, recorder: Recorder) -> bool:
        """Run deferred triggers of a migration's transaction; whether there is anything to log."""
        check_committable(connection)
        with recorder.at_work():
            # What they write is not seen after this.
            deferred = list_deferred(connection, self._schema) if recorder.wrote else ()
            if deferred:
                names = double_percent(", ".join(deferred))
                connection.exec_driver_sql(f"SET CONSTRAINTS {names} IMMEDIATE")
            return self.has_images(connection, recorder) or recorder.dirty

    def _set_checks(self, connection: Connection, mode: str) -> None:
        names = list_checks(connection, self._schema)
        if names:
            connection.exec_driver_sql(
                f"SET CONSTRAINTS {', '.join(names)} {mode}", execution_options=_RAW
            )

    @staticmethod
    def check(connection: Connection, recorder: Recorder) -> None:
        """Raise if COMMIT would not commit what is recorded."""
        check_committable(connection)
        if recorder.dirty:
            check_under_way(connection)

    # -- each statement -------------------------------------------------------------------

    def before(
        self, connection: Connection, recorder: Recorder, statement: str, *, context: Any
    ) -> str:
        """A statement is about to be sent; returns what is to be sent."""
        if recorder.busy:
            return statement
        if recorder.dirty:
            check_under_way(connection)
        if recorder.live is not None:
            return self._before_in_migration(connection, recorder, statement, context=context)
        if _has_text(recorder, context) and changes_schema(statement):
            # If a session asks for the checks of its changes, the guard refuses them.
            asked = recorder.owned and sets_constraints(statement)
            if not asked:
                self.settle(connection, recorder)
        return statement

    def after(
        self, connection: Connection, recorder: Recorder, statement: str, *, context: Any
    ) -> None:
        """The statement was executed."""
        if recorder.busy:
            return
        if recorder.apart and recorder.live is not None:
            self._end_apart(connection, recorder)
        ended = ends_transaction(statement) if recorder.live is not None else None
        if ended is not None:
            self._find_notices(connection, recorder).images_kept = False
            recorder.restart(committed=ended == "commit")
        if not _has_text(recorder, context):
            return
        called = runs_routine(statement) or calls_function(statement)
        if may_alter(statement) or (recorder.live is not None and called):
            recorder.alter()
        elif sets_constraints(statement) and not recorder.owned:
            with recorder.at_work():
                self._set_checks(connection, "DEFERRED")

    def _before_in_migration(
        self, connection: Connection, recorder: Recorder, statement: str, *, context: Any
    ) -> str:
        *earlier, statement = _list_statements(statement, context)
        options = _RAW if context.execution_options.get("no_parameters") else {}
        for one in earlier:
            connection.exec_driver_sql(one, execution_options=options)
        if changes_schema(statement, strict=True) or ends_transaction(statement) == "commit":
            self.settle(connection, recorder)
        elif not is_passive(statement) or calls_function(statement):
            self._before_rows(connection, recorder, statement)
        recorder.wrote = recorder.wrote or not is_passive(statement)
        return statement

    def _before_rows(self, connection: Connection, recorder: Recorder, statement: str) -> None:
        called = calls_function(statement) or runs_routine(statement)
        alone = match_control(statement) is None and not runs_routine(statement)
        if alone and is_autocommitting(connection):
            send_control(connection, "BEGIN")
            recorder.apart = True
        if recorder.altered and recorder.live is not None:
            # Before the altered table has rows that the log does not know.
            recorder.altered = False
            with recorder.at_work():
                recorder.live.note(connection)
        if called:
            # It may alter tables, and it may write rows.
            self.settle(connection, recorder)
            recorder.wrote = True

    # -- AUTOCOMMIT -----------------------------------------------------------------------

    def _end_apart(self, connection: Connection, recorder: Recorder) -> None:
        try:
            self.settle(connection, recorder)
            send_control(connection, "COMMIT")
        except BaseException:
            self._roll_back_apart(connection, recorder)
            raise
        recorder.apart = False

    def _roll_back_apart(self, connection: Connection, recorder: Recorder) -> None:
        recorder.apart = False
        if not connection.closed and not connection.invalidated:
            send_control(connection, "ROLLBACK")

    # -- errors ---------------------------------------------------------------------------

    def fail(
        self,
        connection: Connection,
        recorder: Recorder,
        cause: BaseException,
        *,
        refusal: OplogError | None,
    ) -> OplogError | None:
        """A statement failed; what to raise, which is `refusal` unless more is known."""
        if recorder.apart:
            self._roll_back_apart(connection, recorder)
        elif refusal is not None and is_autocommitting(connection):
            refusal.hint = _ALONE
        elif recorder.claim is not None and getattr(cause, "sqlstate", None) == OBJECT_IN_USE:
            # Postgres says the same of a table that an open cursor reads.
            return ConfigurationError(
                f"{cause}; the changes of this transaction wait to be logged under the idempotency "
                f"key {recorder.claim.key!r}, which stands for one record",
                hint="alter tables before the first write, or in a transaction of their own",
            )
        return refusal


@contextmanager
def begin_apart(connection: Connection) -> Iterator[None]:
    """A transaction for what is done inside, if the connection is in AUTOCOMMIT."""
    if not is_autocommitting(connection):
        yield
        return
    send_control(connection, "BEGIN")
    try:
        yield
    except BaseException:
        if not connection.closed and not connection.invalidated:
            send_control(connection, "ROLLBACK")
        raise
    send_control(connection, "COMMIT")


def _has_text(recorder: Recorder, context: Any) -> bool:
    """The statement is judged by its text: DDL, and whatever a migration sends."""
    return recorder.live is not None or context.isddl or is_text(context.compiled)


def _list_statements(statement: str, context: Any) -> list[str]:
    """The statements of a text that Postgres would execute in one go."""
    if ";" not in statement or not is_text(context.compiled) or any(context.parameters):
        return [statement]
    return split_script(statement)
