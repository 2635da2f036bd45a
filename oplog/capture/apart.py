"""Statements on connections in AUTOCOMMIT: one that writes rows gets a transaction of its own.

Row and record have to commit together. So BEGIN is sent before the statement, and its record
with COMMIT after it, by the driver: SQLAlchemy does not know of it. Statements that read, and all
that is not known to write rows, are sent as they are; if one of these writes a guarded table
nevertheless, the guard refuses it. Of several logs on a connection the last one sends COMMIT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.engine import Connection

from oplog.capture.control import is_text, writes_rows
from oplog.capture.draft import Draft
from oplog.capture.recorder import Recorder
from oplog.capture.sending import (
    commit_alone,
    is_autocommitting,
    roll_back_apart,
    send_control,
)
from oplog.capture.session_target import belongs_to_session
from oplog.capture.statement_plan import find_written
from oplog.errors import CommitOutcomeUnknownError, ConfigurationError, NotCapturableError
from oplog.receipt import Receipt

_OPEN = "oplog.apart"
"""In `Connection.info`, which all logs of a connection share."""


@dataclass(slots=True)
class _OpenStatement:
    """The statement that a transaction was begun for, and the logs that take part.

    All of them have to know its effect before the first of them appends its record.
    """

    context: Any
    logs: int = 0
    ready: list[tuple[ApartStatements, Recorder]] = field(default_factory=list)


class ApartStatements:
    """The statements in AUTOCOMMIT of one engine's connections, as far as they are logged."""

    def __init__(
        self,
        *,
        keep_receipts: Callable[[Connection, Recorder], None],
        open_recorder: Callable[[Connection], Recorder],
        finish: Callable[[Connection, Recorder], Draft | None],
        send: Callable[..., list[Receipt]],
        on_lost: Callable[[CommitOutcomeUnknownError], None],
    ) -> None:
        self._keep_receipts = keep_receipts
        self._open_recorder = open_recorder
        self._finish = finish
        self._send = send
        self._on_lost = on_lost

    # -- before the statement -------------------------------------------------------------

    def join(self, connection: Connection, context: Any, statement: str) -> Recorder | None:
        """A recorder for a statement on a connection whose transaction has none.

        Its engine is that of an attached sessionmaker. As in a transaction, only what guards
        recorded is logged.
        """
        if not is_autocommitting(connection) or not _may_write(context, statement):
            return None
        if belongs_to_session(connection):
            return None
        recorder = self._open_recorder(connection)
        recorder.imaged = True
        return recorder

    def join_begun(self, connection: Connection) -> Recorder | None:
        """A recorder for a transaction that began before its engine was attached.

        What it did until now, guards know.
        """
        if is_autocommitting(connection) or not connection.in_transaction():
            return None
        recorder = self._open_recorder(connection)
        recorder.wrote = True
        if recorder.notices is not None:
            recorder.notices.told = True
        return recorder

    def begin(
        self, connection: Connection, recorder: Recorder, context: Any, statement: str
    ) -> None:
        """Begin a transaction for a statement that writes rows, if the connection has none."""
        if recorder.autocommit is None:
            raw: Any = connection.connection.driver_connection
            recorder.autocommit = bool(raw.autocommit)
        if not recorder.autocommit or recorder.busy:
            return
        found = self._find(connection)
        if recorder.apart and found is None:
            # Its end was never announced, and the pool rolled it back.
            recorder.end_apart()
        if found is not None and found.context is not context:
            self._refuse_second(connection, recorder, context, statement)
            return
        if recorder.apart or not _may_write(context, statement):
            return
        if found is None:
            if not is_autocommitting(connection):
                # The application began a transaction with a statement of its own.
                return
            if recorder.repeats:
                raise ConfigurationError(
                    "log.run may run its work again from the start, and in AUTOCOMMIT what it "
                    "wrote before is committed already",
                    hint="leave out isolation_level='AUTOCOMMIT' for this work",
                )
            send_control(connection, "BEGIN")
            found = connection.info[_OPEN] = _OpenStatement(context)
        found.logs += 1
        recorder.apart = True

    def _refuse_second(
        self, connection: Connection, recorder: Recorder, context: Any, statement: str
    ) -> None:
        """A listener of the application's writes rows, or raised after the statement before.

        If this one were executed with it, nobody would know when to commit them. What only
        calls a function may be another log's.
        """
        if _may_write(context, statement, functions=False):
            recorder.end_apart()
            self._abandon(connection)
            raise NotCapturableError(
                "a statement that writes rows came before the one before it had ended",
                hint="in AUTOCOMMIT listeners write no rows; if a listener raised before, what "
                "its statement wrote is rolled back now",
            )

    def _find(self, connection: Connection) -> _OpenStatement | None:
        found: _OpenStatement | None = connection.info.get(_OPEN)
        if found is not None and is_autocommitting(connection):
            # The connection was in the pool meanwhile, which rolled back.
            del connection.info[_OPEN]
            return None
        return found

    # -- after it -------------------------------------------------------------------------

    def end(self, connection: Connection, recorder: Recorder, context: Any) -> None:
        """The statement's effect is known: append its record and commit both."""
        if not recorder.apart or connection.invalidated:
            return
        found: _OpenStatement | None = connection.info.get(_OPEN)
        if found is None or found.context is not context:
            return
        found.ready.append((self, recorder))
        if len(found.ready) < found.logs:
            return
        with self.rolling_back(connection, recorder):
            sent = [
                log._append(connection, one, last=log is self)  # noqa: SLF001 - of this class
                for log, one in found.ready
            ]
        del connection.info[_OPEN]
        for (log, one), receipts in zip(found.ready, sent, strict=True):
            one.settle(receipts)
            one.frames[-1].settle_apart(len(receipts), owned=one.owned)
            one.end_apart()
            if not one.owned:
                log._keep_receipts(connection, one)  # noqa: SLF001 - as above

    def _append(self, connection: Connection, recorder: Recorder, *, last: bool) -> list[Receipt]:
        """Append the record of one log, the last one together with COMMIT."""
        with recorder.at_work():
            draft = self._finish(connection, recorder)
            try:
                if draft is not None:
                    return self._send(connection, draft, commit=last)
                if last:
                    commit_alone(connection)
            except CommitOutcomeUnknownError as lost:
                self._on_lost(lost)
                raise
        return []

    @contextmanager
    def rolling_back(self, connection: Connection, recorder: Recorder) -> Iterator[None]:
        """If the block fails, the statement it belongs to has not happened."""
        try:
            yield
        except BaseException:
            self.roll_back(connection, recorder)
            raise

    def roll_back(self, connection: Connection, recorder: Recorder) -> None:
        """The statement failed, or what it did cannot be logged."""
        if recorder.apart:
            recorder.end_apart()
            self._abandon(connection)

    @staticmethod
    def _abandon(connection: Connection) -> None:
        if connection.closed or connection.invalidated:
            return
        found: _OpenStatement | None = connection.info.pop(_OPEN, None)
        if found is not None:
            for _, one in found.ready:
                one.end_apart()
            roll_back_apart(connection)


def _may_write(context: Any, statement: str, *, functions: bool = True) -> bool:
    """The statement may write rows, or a function in it, and may run in a transaction."""
    if context.isinsert or context.isupdate or context.isdelete:
        return True
    if context.isddl or context._is_server_side:  # noqa: SLF001 - COMMIT would close its cursor
        return False
    if not is_text(context.compiled) and getattr(context.compiled, "ctes", None):
        return next(find_written(context.compiled.statement), None) is not None
    return writes_rows(statement, functions=functions)
