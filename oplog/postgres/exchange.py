"""Sends a message on a connection's own libpq, alone or together with COMMIT.

A cursor, its adaptation of parameters and its pipeline cost the client three times as much as
this. Statements are not prepared on the server: DISCARD ALL, or a pooler in between, would
forget them, and the transaction would fail for it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg import errors, generators
from psycopg.pq import ConnStatus, ExecStatus, Format, PipelineStatus, TransactionStatus
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from oplog.errors import ConfigurationError
from oplog.postgres.binary_message import Message, encode_parameter


@dataclass(slots=True)
class Answer:
    """What came of an exchange.

    `row` is that of the message, None if it failed; `error` is the first error, of whatever
    step. `sent` says that COMMIT may have reached the server.
    """

    row: Sequence[bytes] | None = None
    error: BaseException | None = None
    sent: bool = False
    results: list[list[Any]] = field(default_factory=list)
    """Of each step, as libpq gave them."""
    interrupted: bool = False
    """The connection is in the middle of an answer, and of no further use."""


def exchange(connection: Connection, message: Message, *, commit: bool = False) -> Answer:
    """Execute a message that gives one row, and with `commit` end the transaction.

    Both travel at once; if the message fails, the server skips the COMMIT behind it. No error
    is raised, but given with the answer: one that leaves open whether COMMIT happened must not
    look like another. Raises `ConfigurationError` for a connection that the application has in
    pipeline mode.
    """
    raw: Any = connection.connection.driver_connection
    if raw.pgconn.pipeline_status != PipelineStatus.OFF:
        raise ConfigurationError(
            "the connection is in pipeline mode, where the log cannot be appended to",
            hint="leave the block of connection.pipeline() before the transaction ends",
        )
    if raw.pgconn.transaction_status == TransactionStatus.IDLE:
        # The driver knows the isolation level and more that its BEGIN has to say.
        connection.exec_driver_sql("SELECT 1").close()
    answer = Answer()
    # SQL_ASCII means that the server converts nothing; the driver sends UTF-8 then, too.
    encoding = raw.info.encoding
    if encoding == "ascii":
        encoding = "utf-8"
    try:
        steps = _exchange(
            raw.pgconn,
            message.statement.encode(encoding),
            [(p.oid, encode_parameter(p, encoding=encoding)) for p in message.parameters],
            answer=answer,
            commit=commit,
        )
        if connection.dialect.is_async:
            await_only(_wait(raw, steps))
        else:
            with raw.lock:
                raw.wait(steps)
    except BaseException as cause:  # noqa: BLE001 - a cancellation too leaves COMMIT undecided
        answer.error = cause
        answer.interrupted = raw.pgconn.pipeline_status != PipelineStatus.OFF
    _read(answer, encoding)
    return answer


def execute(connection: Connection, message: Message) -> Sequence[bytes]:
    """The one row of a message; errors as SQLAlchemy raises them."""
    answer = exchange(connection, message)
    if answer.row is not None and answer.error is None:
        return answer.row
    cause = answer.error or errors.DatabaseError("the server gave no row")
    if not isinstance(cause, Exception):
        raise cause
    raise DBAPIError.instance(
        message.statement,
        None,
        cause,
        connection.dialect.loaded_dbapi.Error,
        hide_parameters=True,
        dialect=connection.dialect,
    ) from cause


async def _wait(raw: Any, steps: Generator[Any, Any, None]) -> None:
    async with raw.lock:
        await raw.wait(steps)


def _exchange(
    pgconn: Any,
    statement: bytes,
    values: Sequence[tuple[int, bytes | None]],
    *,
    answer: Answer,
    commit: bool,
) -> Generator[Any, Any, None]:
    pgconn.enter_pipeline_mode()
    try:
        pgconn.send_query_params(
            statement,
            [value for _, value in values],
            param_types=[oid for oid, _ in values],
            param_formats=[Format.BINARY] * len(values),
            result_format=Format.BINARY,
        )
        if commit:
            pgconn.send_query_params(b"COMMIT", None)
            answer.sent = True
        pgconn.pipeline_sync()
        yield from generators.send(pgconn)
        for _ in range(3 if commit else 2):
            answer.results.append((yield from generators.fetch_many(pgconn)))
    finally:
        _leave(pgconn)


def _leave(pgconn: Any) -> None:
    """Leave pipeline mode, unless the connection is in the middle of an answer or gone.

    It is then useless, and the error that says so is under way.
    """
    idle = pgconn.transaction_status != TransactionStatus.ACTIVE
    if pgconn.status == ConnStatus.OK and idle:
        pgconn.exit_pipeline_mode()


def _read(answer: Answer, encoding: str) -> None:
    """Take the row and the first error out of what arrived.

    A server that ends the session says why before it hangs up: that is the first error.
    """
    if answer.error is not None and not isinstance(answer.error, Exception):
        return
    for place, results in enumerate(answer.results):
        for result in results:
            if result.status == ExecStatus.FATAL_ERROR:
                answer.error = errors.error_from_result(result, encoding=encoding)
                return
            if place == 0 and result.status == ExecStatus.TUPLES_OK and result.ntuples == 1:
                answer.row = [bytes(result.get_value(0, n) or b"") for n in range(result.nfields)]
